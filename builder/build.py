"""The build: from an export to verified, tagged versions, precision by precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from base.progress import Steps
from builder.advice import gate_message, ways_on
from builder.artifact import Artifact, Profile
from builder.calibration import calibration_set
from builder.cpu_profile import CpuProfile
from builder.datasets import Datasets, resolve_datasets
from builder.errors import BuilderError, CalibrationError, GateError
from builder.export import Export, load_export, tensor_sizes
from builder.report import REPORT_NAME, Example, Report, choose_examples, write_report
from builder.restoration import Verified, restore
from builder.sensitivity import GroupCost, Subject, groups_with_convolutions, rank_groups
from builder.settings import BuildSettings
from builder.source import SourceNetwork
from builder.source_check import CHECK_IMAGES, Differences, Transformed, check_source, detection_differences
from builder.surgery import find_head, make_batch_dynamic
from builder.trade import trade_table
from builder.verification import (
    Comparison,
    compare,
    letterboxed,
    mask_map,
    sample_warnings,
    segment_set,
    segment_source,
)
from pipeline import contract
from pipeline.postprocess import ImageSegmentation
from repository import manifest as manifests
from repository.errors import RepositoryError
from repository.manifest import FileEntry, Manifest
from repository.network import onnx_network
from repository.networks import Mixture, mixture, mixture_remedy
from repository.store import ModelRepository
from scenes.reference import REFERENCE_NAME, fetch_reference

BUILD_REVISION: Final = 7
"""Raised whenever the builder makes something else out of the same inputs; part of every build key."""

_MODEL_FILE: Final = "model.onnx"
_MODEL_SHIM: Final = '''"""Runs this version's ``model.onnx`` (profile cpu)."""

from steps.onnx_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Built:
    """One precision's outcome.

    Attributes:
        manifest: of the version.
        folder: where the version lies.
        existed: an equal build had been made before; nothing was written.
        promoted: the profile's configuration names the version.
        state: for people: served, or what has to be done to serve it.
    """

    manifest: Manifest
    folder: Path
    existed: bool
    promoted: bool
    state: str


def build(settings: BuildSettings, steps: Steps, on_built: Callable[[Built], None] | None = None) -> list[Built]:
    """Build, verify and write versions: fp32, then fp16, then int8, each with a gate of its own.

    A precision that fails does not keep the others from being finished.

    Args:
        settings: what to build.
        steps: where progress is shown.
        on_built: called with each precision that is finished, also if another one fails.

    Returns:
        One entry per precision, in order.

    Raises:
        BuilderError: a precision failed; the message names fault and remedy. Of it nothing is left; versions of the
            others are there.
        ServingError: the reference model is wanted and cannot be fetched.
    """
    run = open_build(settings, steps)
    run.fit_repository()
    built: list[Built] = []
    failed: dict[str, BuilderError] = {}
    for precision in settings.precisions:
        try:
            entry = run.precision(precision)
        except (RepositoryError, CalibrationError):
            raise  # so would every other precision
        except BuilderError as error:
            failed[precision] = error
            if precision != settings.precisions[-1]:
                steps.warn(f"{precision} failed, the others go on: {str(error).splitlines()[0]}")
            continue
        built.append(entry)
        if on_built is not None:
            on_built(entry)
    if failed:
        raise _summary(failed, [entry.manifest.precision for entry in built])
    return built


def _summary(failed: Mapping[str, BuilderError], finished: Sequence[str]) -> BuilderError:
    """One error for all that failed."""
    if len(failed) == 1:
        return next(iter(failed.values()))
    texts = list(dict.fromkeys(str(error) for error in failed.values()))
    head = f"{' and '.join(failed)} failed; finished: {', '.join(finished) or 'nothing'}"
    kind = GateError if all(isinstance(error, GateError) for error in failed.values()) else BuilderError
    return kind("\n\n".join([head, *texts]))


def open_build(settings: BuildSettings, steps: Steps) -> Build:
    """Inspect the export and gather what a build needs; nothing is written yet.

    Raises:
        BuilderError: see :func:`build`.
        ServingError: see :func:`build`.
    """
    reference = None
    source, name = settings.onnx, settings.name
    if source is None:
        with steps.step("fetch reference model"):
            reference = fetch_reference()
        source, name = reference.onnx, name or REFERENCE_NAME
    with steps.step("inspect export", source.name):
        export, model = load_export(source, name, settings.input_size)
    steps.note(export.summary())
    with steps.step("graph surgery", "dynamic batch, grafted ends"):
        network = make_batch_dynamic(model, export)
    datasets = resolve_datasets(settings, reference, steps)
    profile = _profile(settings, export, network, datasets, steps)
    proof = _prove(export, model, network, profile, datasets, steps)
    return Build(settings, export, datasets, profile, steps, proof)


def _prove(
    export: Export, model: onnx.ModelProto, network: onnx.ModelProto, profile: Profile, datasets: Datasets, steps: Steps
) -> Differences:
    """Compare the grafted fp32 network with the export's own file."""
    paths = datasets.verification.paths
    chosen = paths[:: max(1, len(paths) // CHECK_IMAGES)][:CHECK_IMAGES]
    with steps.step("compare with the export", f"{export.path.name} as it came, on {len(chosen)} images"):
        images = np.stack([image for image, _ in letterboxed(chosen, (export.input_height, export.input_width))])
        proof = check_source(export, Transformed(model, network, profile.reference), images)
    steps.note(f"fp32 graph: {proof.summary()}")
    return proof


def _profile(
    settings: BuildSettings, export: Export, network: onnx.ModelProto, datasets: Datasets, steps: Steps
) -> Profile:
    if settings.profile == "cpu":
        head = find_head(network, export)
        return CpuProfile(settings, export, network, head, datasets.calibration, steps)
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
    # Without int8, AutoCast still looks at one real image for the range of every value.
    images = datasets.calibration or calibration_set(datasets.verification.paths[:1], "")
    return TensorRTProfile(settings, export, network, images, flavor, gpu, steps)


class Build:
    """One run of the builder; made by :func:`open_build`."""

    def __init__(
        self,
        settings: BuildSettings,
        export: Export,
        datasets: Datasets,
        profile: Profile,
        steps: Steps,
        proof: Differences,
    ) -> None:
        self._settings, self._export, self._datasets = settings, export, datasets
        self._profile, self._steps, self._proof = profile, steps, proof
        self._repository = ModelRepository(settings.repository)
        self._reference: list[ImageSegmentation] | None = None
        self._weaknesses: list[str] = []
        self._cut_images = 0
        self._finished: list[Manifest] = []

    def fit_repository(self) -> None:
        """Make the repository if it is not there, and write this network's sizes into its configurations.

        Raises:
            RepositoryError: it is something else, or holds a network of another shape.
        """
        self._repository = ModelRepository.open(self._settings.repository)
        with self._repository.locked():
            for path in self._repository.fit_network(
                tensor_sizes(self._export, self._settings.top_k), self._export.class_names
            ):
                self._steps.note(f"sizes of this network written to {path}")

    def int8_subject(self) -> Subject:
        """The int8 network as it is before any group is restored, with what is needed to examine it.

        Raises:
            BuilderError: it cannot be made.
        """
        quantized = self._profile.make("int8", frozenset()).quantized
        if quantized is None:
            raise BuilderError(f"the profile {self._profile.name} makes int8 without quantizers that could be examined")
        return self._subject(quantized)

    def precision(self, precision: str) -> Built:
        """Build, verify and write one precision."""
        key = self._key(precision)
        existing = self._repository.find_build(precision, key)
        if existing is not None:
            self._finished.append(existing)
            self._steps.note(f"{precision}: already built as version {existing.version}, {existing.tag}")
            folder = self._repository.model_folder(precision) / str(existing.version)
            return self._built(existing, folder, existed=True)
        before = set(self._steps.durations_s)
        verified = self._verified(precision)
        if verified.failures:
            raise GateError(self._failure(precision, key, verified, before))
        built = self._write(precision, key, verified, before)
        self._finished.append(built.manifest)
        self._steps.note(f"{precision}: version {built.manifest.version}, {built.manifest.tag}")
        return built

    def _verified(self, precision: str) -> Verified:
        """Make a precision, and while its gate fails, take the costliest groups of layers out of int8."""
        verified = self._verify(precision, self._profile.make(precision, frozenset()))
        quantized = verified.artifact.quantized
        limit = self._settings.fallback.max_restorations
        if not verified.failures or quantized is None or not limit or not verified.comparison.reference_detections:
            return verified
        self._steps.warn(
            f"{precision}: gate not passed ({'; '.join(verified.failures)}); looking for the costliest layers"
        )
        restored = restore(
            verified,
            self._rank(quantized),
            lambda nodes: self._verify(precision, self._profile.make(precision, nodes)),
            limit,
            self._steps,
        )
        self._steps.console.print(trade_table(restored.trades))
        return restored

    def _subject(self, quantized: onnx.ModelProto) -> Subject:
        paths = self._datasets.verification.paths[: self._settings.fallback.sensitivity_images]
        reference = self._reference_results()[: len(paths)]
        original = self._profile.reference
        return Subject(quantized, original, paths, reference, self._input_size, self._settings.verification)

    def _rank(self, quantized: onnx.ModelProto) -> list[GroupCost]:
        subject = self._subject(quantized)
        groups = groups_with_convolutions(quantized)
        with self._steps.step("int8: rank groups of layers", f"{len(subject.paths)} images", len(groups)) as advance:
            return rank_groups(subject, advance, groups)

    def _verify(self, precision: str, artifact: Artifact) -> Verified:
        """Compare an artifact with the export's own file, the plan itself where it can run here."""
        verification = self._datasets.verification
        if artifact.network is not None:
            network, measured = artifact.network, "the plan, run by TensorRT on this machine"
        else:
            network, measured = (
                onnx_network(artifact.model.SerializeToString()),
                "model.onnx, run by ONNX Runtime on the CPU",
            )
        total = len(verification.paths)
        with self._steps.step(f"{precision}: verify", f"against the export on {total} images", total) as advance:
            found = self._segment(network, advance)
        comparison = self._compare(found)
        # Where the images show nothing, fp32 that finds nothing either is not at fault.
        is_gated = precision != "fp32" or comparison.reference_detections + comparison.detections > 0
        gate = self._settings.gates.of(precision)
        verified = Verified(artifact, comparison, measured, found, gate, is_gated)
        outcome = "; ".join(verified.failures) or ("gate passed" if is_gated else "nothing to compare")
        self._steps.note(f"{precision}: {comparison.summary()}: {outcome}")
        self._steps.note(f"{precision}: {self._differences(found).summary()}")
        return verified

    def _compare(self, found: list[ImageSegmentation]) -> Comparison:
        verification = self._datasets.verification
        names = self._export.class_names
        comparison = compare(self._reference_results(), found, self._settings.verification.confidence, names)
        if verification.annotations is not None:
            map50_95, map50 = mask_map(found, verification.paths, verification.annotations)
            comparison = replace(comparison, map50_95=map50_95, map50=map50)
        return comparison

    def _reference_results(self) -> list[ImageSegmentation]:
        if self._reference is None:
            total = len(self._datasets.verification.paths)
            file = self._export.path.name
            with self._steps.step("reference", f"{file} as it came, on {total} images", total) as advance:
                low_scores = self._datasets.verification.annotations is not None
                self._reference, self._cut_images = segment_source(
                    SourceNetwork(self._export),
                    self._datasets.verification.paths,
                    self._input_size,
                    self._settings.verification,
                    self._settings.top_k,
                    advance,
                    low_scores,
                )
            confidence = self._settings.verification.confidence
            itself = compare(self._reference, self._reference, confidence)
            self._weaknesses = sample_warnings(itself)
            for text in self._weaknesses:
                self._steps.warn(text)
            if self._cut_images:
                self._steps.warn(
                    f"{self._cut_images} of {total} verification images have more candidates than top_k "
                    f"({self._settings.top_k}): detections may be lost there; raise top_k"
                )
        return self._reference

    def _differences(self, found: list[ImageSegmentation]) -> Differences:
        """Of boxes and scores from those of the export's own file, over the matched detections."""
        confidence = self._settings.verification.confidence
        return detection_differences(self._reference_results(), found, self._input_size, confidence)

    def _segment(self, network: Any, advance: Callable[[], None]) -> list[ImageSegmentation]:
        verification = self._datasets.verification
        low_scores = verification.annotations is not None
        settings = self._settings.verification
        return segment_set(network, verification.paths, self._input_size, settings, advance, low_scores)

    @property
    def _input_size(self) -> tuple[int, int]:
        return self._export.input_height, self._export.input_width

    def _is_promoted(self, precision: str, version: int) -> bool:
        return version in self._repository.promoted(precision, self._settings.profile)

    def _write(self, precision: str, key: str, verified: Verified, before: set[str]) -> Built:
        repository, artifact = self._repository, verified.artifact
        with repository.locked(), repository.staging(precision) as staged:
            onnx.save(artifact.model, staged / _MODEL_FILE)
            (staged / "model.py").write_text(_MODEL_SHIM, encoding="utf-8")
            for name, plan in artifact.plans.items():
                (staged / name).write_bytes(plan)
            _check_runs(staged / _MODEL_FILE)
            version = repository.next_version(precision)
            main = next(iter(artifact.plans), _MODEL_FILE)
            suffix = FileEntry.of(staged / main).sha256[:8]
            manifest = self._manifest(precision, key, verified, before, version, suffix)
            self._report(staged / REPORT_NAME, manifest, verified)
            files = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
            manifest = replace(manifest, files=files)
            (staged / manifests.MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
            served = {
                profile: repository.promoted(precision, profile)
                for profile in contract.PROFILES
                if repository.config_path(precision, profile).is_file()
            }
            folder = repository.publish(precision, staged, version)
            self._promote_first(precision, version, served)
            return self._built(manifest, folder, existed=False)

    def _built(self, manifest: Manifest, folder: Path, *, existed: bool) -> Built:
        precision, version, profile = manifest.precision, manifest.version, self._settings.profile
        promoted = self._is_promoted(precision, version)
        unservable = self._repository.why_not_servable(precision, version, profile)
        mixed = None if promoted else self._mixture(precision, version)
        state = "served" if promoted else "not served until promoted"
        if unservable is not None:
            state = f"not served under the profile {profile}: {unservable}"
        elif mixed is not None:
            what_to_do = mixture_remedy(self._repository, mixed, self._export.sha256)
            state += f" together with the other precisions of its export: {what_to_do}"
        return Built(manifest, folder, existed, promoted, state)

    def _promote_first(self, precision: str, version: int, served: Mapping[str, list[int]]) -> None:
        """Serve a version at once where it replaces nothing, and where what is served beside it is of its network.

        Args:
            precision: of the version.
            version: its number.
            served: per profile, the versions that were served before it was published.
        """
        for profile, before in served.items():
            if before or not self._repository.is_servable(precision, version, profile):
                continue
            named = version in self._repository.named_versions(precision, profile)  # as shipped, a first version is
            if mixture(self._repository, profile, planned={precision: version}) is not None:
                if named:
                    self._repository.withdraw(precision, profile)
            elif profile == self._settings.profile and not named:
                self._repository.promote(precision, profile, version)

    def _mixture(self, precision: str, version: int) -> Mixture | None:
        return mixture(self._repository, self._settings.profile, planned={precision: version})

    def _manifest(
        self, precision: str, key: str, verified: Verified, before: set[str], version: int, suffix: str
    ) -> Manifest:
        artifact = verified.artifact
        return Manifest(
            tag=f"{self._export.name}-{precision}-{artifact.runtime}-{suffix}",
            model=contract.network_model(precision),
            version=version,
            precision=precision,
            profile=self._settings.profile,
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            build_key=key,
            source=self._source(),
            toolchain={**_toolchain(), **artifact.toolchain},
            settings=self._settings.plain(),
            files={},
            calibration=artifact.calibration,
            excluded_nodes=artifact.excluded,
            layers=artifact.layers,
            plans=artifact.plan_facts,
            verification=self._verification(verified),
            attempts=artifact.attempts,
            durations_s={name: value for name, value in self._steps.durations_s.items() if name not in before},
        )

    def _failure(self, precision: str, key: str, verified: Verified, before: set[str]) -> str:
        """Write the report of a precision that does not pass, and say what failed and what to do."""
        passed = [manifest.precision for manifest in self._finished]
        ways = ways_on(precision, verified, self._settings, passed)
        manifest = self._manifest(precision, key, verified, before, 0, "not-written")
        report = self._settings.report / f"{self._export.name}-{precision}.html"
        try:
            report.parent.mkdir(parents=True, exist_ok=True)
            self._report(report, manifest, verified, ways)
        except OSError as error:
            self._steps.warn(f"the report is not written to {report} ({error.strerror}); choose a folder with --report")
            return gate_message(precision, verified, ways, None)
        return gate_message(precision, verified, ways, report)

    def _verification(self, verified: Verified) -> dict[str, Any]:
        settings = self._settings.verification
        return {
            "passed": not verified.failures,
            "failures": list(verified.failures),
            "gate": verified.gate.model_dump(),
            "metrics": verified.comparison.as_dict(),
            "classes": [one.as_dict() for one in verified.comparison.classes],
            "warnings": list(self._weaknesses),
            "measured": verified.measured,
            "reference": f"{self._export.path.name} as it came, run by ONNX Runtime, decoded in float64 by other code",
            "differences": self._differences(verified.found).as_dict(),
            "fp32_graph": self._proof.as_dict(),
            "images_beyond_top_k": self._cut_images,
            "images": len(self._datasets.verification.paths),
            "images_sha256": self._datasets.verification.sha256,
            "confidence": settings.confidence,
            "iou": settings.iou,
            "sensitivity": [cost.as_dict() for cost in verified.ranking],
            "trades": [trade.as_dict() for trade in verified.trades],
            "restored": list(verified.restored),
        }

    def _report(self, path: Path, manifest: Manifest, verified: Verified, ways: Sequence[str] = ()) -> None:
        reference = self._reference_results()
        confidence = self._settings.verification.confidence
        chosen = choose_examples(reference, verified.found, confidence)
        paths = self._datasets.verification.paths
        examples = [Example(paths[index], reference[index], verified.found[index]) for index in chosen]
        report = Report(manifest, tuple(self._finished), tuple(examples), verified.trades, confidence, tuple(ways))
        write_report(path, report)

    def _source(self) -> dict[str, Any]:
        export = self._export
        return {
            "name": export.name,
            "file": export.path.name,
            "sha256": export.sha256,
            "files": export.files,
            "opset": export.opset,
            "num_classes": export.num_classes,
            "input_size": [export.input_height, export.input_width],
            "class_names": list(export.class_names),
            "tensor_sizes": tensor_sizes(export, self._settings.top_k),
        }

    def _key(self, precision: str) -> str:
        """Hash over all that determines the result."""
        facts = {
            "revision": BUILD_REVISION,
            "profile": self._settings.profile,
            "precision": precision,
            "source": self._source(),
            "toolchain": _toolchain(),
            "verification": [self._datasets.verification.sha256, self._settings.verification.model_dump(mode="json")],
            "gates": self._settings.gates.model_dump(),
            "fallback": self._settings.fallback.model_dump(),
            **self._profile.facts(precision),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _check_runs(path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises types of its own, one per status
        raise BuilderError(f"the built network does not load in ONNX Runtime: {str(error).splitlines()[0]}") from error


def _toolchain() -> dict[str, str]:
    return manifests.toolchain("numpy", "onnx", "onnxruntime", "opencv-python-headless", "triton-instance-segmentation")
