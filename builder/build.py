"""The build, step by step: from an export to verified, tagged versions, precision by precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from base.progress import Steps
from builder.artifact import Profile
from builder.checkpoint import onnx_of
from builder.cpu_profile import CpuProfile
from builder.datasets import CalibrationSet, Datasets, VerificationSet, resolve_datasets
from builder.errors import BuilderError, CalibrationError, GateError
from builder.export import Export, load_export
from builder.publication import Built, Publisher
from builder.restoration import make_verified
from builder.sensitivity import Subject
from builder.settings import BuildSettings
from builder.source_check import CHECK_IMAGES, Differences, check_source
from builder.surgery import make_batch_dynamic
from builder.verification import letterboxed
from builder.verifier import Verifier
from repository.errors import RepositoryError
from repository.store import ModelRepository
from scenes.reference import REFERENCE_CLASSES, REFERENCE_NAME, fetch_reference


@dataclass(frozen=True)
class Inputs:
    """What a build needs; nothing is written yet.

    Attributes:
        export: what is built.
        profile: makes the networks.
        verifier: compares them with the export's file.
        fp32_graph: how far the fp32 graph differs from the file.
    """

    export: Export
    profile: Profile
    verifier: Verifier
    fp32_graph: Differences

    def int8_subject(self) -> Subject:
        """The int8 network before any group is restored, with what is needed to examine it.

        Raises:
            BuilderError: it cannot be made.
        """
        quantized = self.profile.make("int8", frozenset()).quantized
        if quantized is None:
            raise BuilderError(f"the profile {self.profile.name} makes int8 without quantizers that could be examined")
        return self.verifier.subject(quantized, self.profile.reference)


def build(settings: BuildSettings, steps: Steps, on_built: Callable[[Built], None] | None = None) -> list[Built]:
    """Build, verify and write versions: fp32, then fp16, then int8, each with its gate.

    If one precision fails, the others are built all the same.

    Args:
        settings: what to build.
        steps: where progress is shown.
        on_built: called with each precision that is finished, also if another one fails.

    Returns:
        One entry per precision, in order.

    Raises:
        BuilderError: a precision failed; the message names fault and remedy. Nothing of it is left; versions of the
            others are there.
        ServingError: the reference model is wanted and cannot be fetched.
    """
    ModelRepository(settings.repository).check_writable()
    inputs = open_inputs(settings, steps)
    profile, verifier = inputs.profile, inputs.verifier
    publisher = Publisher(settings, inputs.export, profile, verifier, inputs.fp32_graph, steps)
    done: list[Built] = []
    failed: dict[str, BuilderError] = {}
    for precision in settings.precisions:
        before = set(steps.durations_s)
        try:
            built = publisher.existing(precision)
            if built is None:
                verified = make_verified(precision, profile, verifier, settings.fallback.max_restorations, steps)
                durations_s = {name: value for name, value in steps.durations_s.items() if name not in before}
                built = publisher.publish(precision, verified, durations_s)
        except (RepositoryError, CalibrationError):
            raise  # every other precision would fail too
        except BuilderError as error:
            failed[precision] = error
            if precision != settings.precisions[-1]:
                steps.warn(f"{precision} failed, the others go on: {str(error).splitlines()[0]}")
            continue
        done.append(built)
        if on_built is not None:
            on_built(built)
    if failed:
        raise _summary(failed, [built.manifest.precision for built in done])
    return done


def _summary(failed: Mapping[str, BuilderError], finished: Sequence[str]) -> BuilderError:
    """One error for all that failed."""
    if len(failed) == 1:
        return next(iter(failed.values()))
    texts = list(dict.fromkeys(str(error) for error in failed.values()))
    head = f"{' and '.join(failed)} failed; finished: {', '.join(finished) or 'nothing'}"
    kind = GateError if all(isinstance(error, GateError) for error in failed.values()) else BuilderError
    return kind("\n\n".join([head, *texts]))


def open_inputs(settings: BuildSettings, steps: Steps) -> Inputs:
    """Inspect the export and gather what a build needs; nothing is written yet.

    Raises:
        BuilderError: see :func:`build`.
        ServingError: see :func:`build`.
    """
    reference = None
    path, name = settings.onnx, settings.name
    if path is None:
        with steps.step("fetch reference model"):
            reference = fetch_reference()
        path, name = reference.onnx, name or REFERENCE_NAME
    path = onnx_of(path, settings.input_size, steps.note)
    with steps.step("inspect export", path.name):
        export = load_export(
            path, name, settings.input_size, settings.inspection.limits, settings.family, settings.class_names
        )
    if reference is not None:
        export = replace(export, class_names=REFERENCE_CLASSES)
    for line in (export.summary(), *export.notes):
        steps.note(line)
    with steps.step("graph surgery", "dynamic batch, grafted ends"):
        network = make_batch_dynamic(export)
    datasets = resolve_datasets(settings, reference, steps)
    profile = _profile(settings, export, network, datasets, steps)
    fp32_graph = _prove(export, network, profile.reference, datasets.verification, steps)
    return Inputs(export, profile, Verifier(settings, export, datasets.verification, steps), fp32_graph)


def _prove(
    export: Export, network: onnx.ModelProto, grafted: onnx.ModelProto, images: VerificationSet, steps: Steps
) -> Differences:
    """Compare the grafted fp32 network with the export's file on a few images."""
    chosen = images.paths[:: max(1, len(images.paths) // CHECK_IMAGES)][:CHECK_IMAGES]
    with steps.step("compare with the export", f"{export.path.name}, unchanged, on {len(chosen)} images"):
        batch = np.stack([image for image, _ in letterboxed(chosen, export.input_size, stretch=export.stretch)])
        proof = check_source(export, network, grafted, batch)
    steps.note(f"fp32 graph: {proof.summary()}")
    return proof


def _profile(
    settings: BuildSettings, export: Export, network: onnx.ModelProto, datasets: Datasets, steps: Steps
) -> Profile:
    if settings.profile == "cpu":
        return CpuProfile(settings, export, network, datasets.calibration, steps)
    from base.gpu import find_gpu
    from builder.tensorrt.profile import TensorRTProfile
    from repository.flavor import detect_flavor

    wanted = settings.plan.flavor
    flavor = detect_flavor("tensorrt-rtx" if wanted == "tensorrt-rtx" else "tensorrt" if wanted else None)
    if wanted is not None and flavor.name != wanted:
        raise BuilderError(f"plan.flavor is {wanted}, but {flavor} is installed; install it, or leave the entry out")
    gpu = find_gpu()
    steps.note(f"{flavor}, {gpu.name if gpu else 'no GPU available'}")
    if flavor.is_rtx:
        steps.warn("plans of TensorRT-RTX are for RTX machines: Triton's TensorRT backend does not load them")
    # Without int8, AutoCast still needs one real image for the range of every value.
    images = datasets.calibration or CalibrationSet.of(datasets.verification.paths[:1], "")
    return TensorRTProfile(settings, export, network, images, flavor, gpu, steps)
