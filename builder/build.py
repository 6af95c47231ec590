"""The build: from an export to verified, tagged versions, precision by precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from builder import manifest as manifests
from builder.artefact import Artefact, Profile
from builder.calibration import calibration_set
from builder.cpu_profile import CpuProfile
from builder.datasets import Datasets, resolve_datasets
from builder.errors import BuilderError, GateError
from builder.export import Export, load_export
from builder.manifest import FileEntry, Manifest
from builder.progress import Steps
from builder.reference import REFERENCE_NAME, fetch_reference
from builder.report import REPORT_NAME, Example, Report, choose_examples, write_report
from builder.repository import ModelRepository, tensor_sizes
from builder.sensitivity import GroupCost, Subject, Trade, groups_of, int8_size_bytes, rank_groups
from builder.settings import BuildSettings
from builder.source import SourceNetwork
from builder.source_check import CHECK_IMAGES, Differences, Transformed, check_source, detection_differences
from builder.surgery import find_head, make_batch_dynamic
from builder.trade import trade_table
from builder.verification import Comparison, compare, letterboxed, mask_map, onnx_network, segment_set, segment_source
from pipeline import contract
from pipeline.postprocess import ImageSegmentation

BUILD_REVISION: Final = 4
"""Raised whenever the builder makes something else out of the same inputs; part of every build key."""

_MODEL_FILE: Final = "model.onnx"
_MODEL_SHIM: Final = '''"""Runs this version's ``model.onnx`` (profile cpu)."""

from serving.onnx_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


ReplaceProfile = Callable[[Profile], Profile]


@dataclass(frozen=True)
class Built:
    """One precision's outcome.

    Attributes:
        manifest: of the version.
        folder: where the version lies.
        existed: an equal build had been made before; nothing was written.
        promoted: the profile's configuration names the version.
    """

    manifest: Manifest
    folder: Path
    existed: bool
    promoted: bool


@dataclass(frozen=True)
class _Verified:
    """An artefact and how it compares."""

    artefact: Artefact
    comparison: Comparison
    measured: str
    found: list[ImageSegmentation]
    failures: list[str]
    ranking: tuple[GroupCost, ...] = ()
    trades: tuple[Trade, ...] = ()


def build(settings: BuildSettings, steps: Steps, replace_profile: ReplaceProfile | None = None) -> list[Built]:
    """Build, verify and write versions: fp32, then fp16, then int8, each gated before the next.

    Args:
        settings: what to build.
        steps: where progress is shown.
        replace_profile: gets the profile and returns the one to use; for tests.

    Returns:
        One entry per precision, in order.

    Raises:
        BuilderError: the message names fault and remedy. Versions of precisions that were finished before stay; of the
            one that failed nothing is left.
        ServingError: the reference model is wanted and cannot be fetched.
    """
    run = open_build(settings, steps, replace_profile)
    run.fit_repository()
    return [run.precision(precision) for precision in settings.precisions]


def open_build(settings: BuildSettings, steps: Steps, replace_profile: ReplaceProfile | None = None) -> Build:
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
    if replace_profile is not None:
        profile = replace_profile(profile)
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
    from builder.tensorrt.flavour import detect_flavour
    from builder.tensorrt.gpu import gpu_at_hand
    from builder.tensorrt.profile import TensorRTProfile

    wanted = settings.plan.flavour
    flavour = detect_flavour("tensorrt-rtx" if wanted == "tensorrt-rtx" else "tensorrt" if wanted else None)
    if wanted is not None and flavour.name != wanted:
        raise BuilderError(f"plan.flavour is {wanted}, but {flavour} is installed; install it, or leave the entry out")
    gpu = gpu_at_hand()
    steps.note(f"{flavour}, {gpu.name if gpu else 'no GPU at hand'}")
    if flavour.is_rtx:
        steps.warn("plans of TensorRT-RTX are for RTX machines: Triton's TensorRT backend does not load them")
    # Without int8, AutoCast still looks at one real image for the range of every value.
    images = datasets.calibration or calibration_set(datasets.verification.paths[:1], "")
    return TensorRTProfile(settings, export, network, images, flavour, gpu, steps)


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
        self._cut_images = 0
        self._finished: list[Manifest] = []

    def fit_repository(self) -> None:
        """Make the repository if it is not there, and write this network's sizes into its configurations.

        Raises:
            RepositoryError: it is something else, or holds a network of another shape.
        """
        self._repository = ModelRepository.open(self._settings.repository)
        with self._repository.locked():
            for path in self._repository.fit_network(self._export, self._settings.top_k):
                self._steps.note(f"sizes of this network written to {path}")

    def int8_subject(self) -> Subject:
        """The int8 network as it is before any group is restored, with what is needed to examine it.

        Raises:
            BuilderError: it cannot be made.
        """
        quantised = self._profile.make("int8", frozenset()).quantised
        if quantised is None:
            raise BuilderError(f"the profile {self._profile.name} makes int8 without quantisers that could be examined")
        return self._subject(quantised)

    def precision(self, precision: str) -> Built:
        """Build, verify and write one precision."""
        key = self._key(precision)
        existing = self._repository.find_build(precision, key)
        if existing is not None:
            self._finished.append(existing)
            self._steps.note(f"{precision}: already built as version {existing.version}, {existing.tag}")
            folder = self._repository.model_folder(precision) / str(existing.version)
            return Built(existing, folder, True, self._is_promoted(precision, existing.version))
        before = set(self._steps.durations_s)
        verified = self._verified(precision)
        if verified.failures:
            raise GateError(_gate_message(precision, verified, self._settings))
        built = self._write(precision, key, verified, before)
        self._finished.append(built.manifest)
        self._steps.note(f"{precision}: version {built.manifest.version}, {built.manifest.tag}")
        return built

    def _verified(self, precision: str) -> _Verified:
        """Make a precision, and while its gate fails, take the costliest group of layers out of int8."""
        verified = self._verify(precision, self._profile.make(precision, frozenset()))
        quantised = verified.artefact.quantised
        if not verified.failures or quantised is None or not self._settings.fallback.max_restorations:
            return verified
        self._steps.warn(
            f"{precision}: gate not passed ({'; '.join(verified.failures)}); looking for the costliest layers"
        )
        ranking = tuple(self._rank(quantised))
        trades = [self._trade((), verified)]
        for count in range(1, min(self._settings.fallback.max_restorations, len(ranking)) + 1):
            worst = ranking[:count]
            self._steps.note(f"{precision}: restoring {worst[-1].group} (cost {worst[-1].cost:.4f})")
            nodes = frozenset(name for cost in worst for name in cost.nodes)
            verified = self._verify(precision, self._profile.make(precision, nodes))
            trades.append(self._trade(worst, verified))
            if not verified.failures:
                break
        self._steps.console.print(trade_table(trades))
        return _Verified(
            verified.artefact,
            verified.comparison,
            verified.measured,
            verified.found,
            verified.failures,
            ranking,
            tuple(trades),
        )

    def _trade(self, restored: Sequence[GroupCost], verified: _Verified) -> Trade:
        artefact = verified.artefact
        size = int8_size_bytes(artefact.quantised) if artefact.quantised is not None else 0
        in_int8 = int(artefact.layers.get("convolutions", {}).get("int8", 0))
        return Trade(tuple(cost.group for cost in restored), in_int8, size, verified.comparison)

    def _subject(self, quantised: onnx.ModelProto) -> Subject:
        paths = self._datasets.verification.paths[: self._settings.fallback.sensitivity_images]
        reference = self._reference_results()[: len(paths)]
        original = self._profile.reference
        return Subject(quantised, original, paths, reference, self._input_size, self._settings.verification)

    def _rank(self, quantised: onnx.ModelProto) -> list[GroupCost]:
        subject = self._subject(quantised)
        total = len(groups_of(quantised))
        with self._steps.step("int8: rank groups of layers", f"{len(subject.paths)} images", total) as advance:
            return rank_groups(subject, advance)

    def _verify(self, precision: str, artefact: Artefact) -> _Verified:
        """Compare an artefact with the export's own file, the plan itself where it can run here."""
        verification = self._datasets.verification
        reference = self._reference_results()
        if artefact.network is not None:
            network, measured = artefact.network, "the plan, run by TensorRT on this machine"
        else:
            network, measured = (
                onnx_network(artefact.model.SerializeToString()),
                "model.onnx, run by ONNX Runtime on the CPU",
            )
        total = len(verification.paths)
        with self._steps.step(f"{precision}: verify", f"against the export on {total} images", total) as advance:
            found = self._segment(network, advance)
        comparison = compare(reference, found, self._settings.verification.confidence)
        if verification.annotations is not None:
            map50_95, map50 = mask_map(found, verification.paths, verification.annotations)
            comparison = Comparison(**{**comparison.__dict__, "map50_95": map50_95, "map50": map50})
        failures = comparison.failures(self._settings.gates.of(precision))
        self._steps.note(f"{precision}: {comparison.summary()}: {'; '.join(failures) or 'gate passed'}")
        self._steps.note(f"{precision}: {self._differences(found).summary()}")
        return _Verified(artefact, comparison, measured, found, failures)

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

    def _write(self, precision: str, key: str, verified: _Verified, before: set[str]) -> Built:
        repository, artefact = self._repository, verified.artefact
        with repository.locked(), repository.staging(precision) as staged:
            onnx.save(artefact.model, staged / _MODEL_FILE)
            (staged / "model.py").write_text(_MODEL_SHIM)
            for name, plan in artefact.plans.items():
                (staged / name).write_bytes(plan)
            _check_runs(staged / _MODEL_FILE)
            version = repository.next_version(precision)
            durations = {name: value for name, value in self._steps.durations_s.items() if name not in before}
            main = next(iter(artefact.plans), _MODEL_FILE)
            manifest = Manifest(
                tag=f"{self._export.name}-{precision}-{artefact.runtime}-{FileEntry.of(staged / main).sha256[:8]}",
                model=contract.segmentation_model(precision),
                version=version,
                precision=precision,
                profile=self._settings.profile,
                created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                build_key=key,
                source=self._source(),
                toolchain={**_toolchain(), **artefact.toolchain},
                settings=self._settings.plain(),
                files={},
                calibration=artefact.calibration,
                excluded_nodes=artefact.excluded,
                layers=artefact.layers,
                plans=artefact.plan_facts,
                verification=self._verification(precision, verified),
                attempts=artefact.attempts,
                durations_s=durations,
            )
            self._report(staged / REPORT_NAME, manifest, verified)
            files = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
            manifest = Manifest(**{**manifest.__dict__, "files": files})
            (staged / manifests.MANIFEST_NAME).write_text(manifest.to_json())
            folder = repository.publish(precision, staged, version)
            self._promote_first(precision, version)
            return Built(manifest, folder, False, self._is_promoted(precision, version))

    def _promote_first(self, precision: str, version: int) -> None:
        """Serve a version at once where it replaces nothing."""
        profile = self._settings.profile
        servable = self._repository.is_servable(precision, version, profile)
        if servable and not self._repository.promoted(precision, profile):
            self._repository.promote(precision, profile, version)

    def _verification(self, precision: str, verified: _Verified) -> dict[str, Any]:
        gate = self._settings.gates.of(precision)
        return {
            "passed": not verified.failures,
            "gate": gate.model_dump(),
            "metrics": verified.comparison.as_dict(),
            "measured": verified.measured,
            "reference": f"{self._export.path.name} as it came, run by ONNX Runtime, decoded in float64 by other code",
            "differences": self._differences(verified.found).as_dict(),
            "fp32_graph": self._proof.as_dict(),
            "images_beyond_top_k": self._cut_images,
            "images": len(self._datasets.verification.paths),
            "images_sha256": self._datasets.verification.sha256,
            "confidence": self._settings.verification.confidence,
            "iou": self._settings.verification.iou,
            "sensitivity": [cost.as_dict() for cost in verified.ranking],
            "trades": [trade.as_dict() for trade in verified.trades],
        }

    def _report(self, path: Path, manifest: Manifest, verified: _Verified) -> None:
        reference = self._reference_results()
        chosen = choose_examples(reference, verified.found, self._settings.verification.confidence)
        paths = self._datasets.verification.paths
        examples = [Example(paths[index], reference[index], verified.found[index]) for index in chosen]
        confidence = self._settings.verification.confidence
        write_report(path, Report(manifest, tuple(self._finished), tuple(examples), verified.trades, confidence))

    def _source(self) -> dict[str, Any]:
        export = self._export
        return {
            "name": export.name,
            "file": export.path.name,
            "sha256": export.sha256,
            "files": export.files,
            "opset": export.opset,
            "num_classes": export.num_classes,
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


def _gate_message(precision: str, verified: _Verified, settings: BuildSettings) -> str:
    tried = f" after restoring {', '.join(verified.trades[-1].restored)}" if verified.trades else ""
    advice = "keep fp32, or check that the images show what the model was trained on"
    if precision == "int8":
        worst = ", ".join(cost.group for cost in verified.ranking[:5])
        advice = (
            "calibrate on more images of what the model will see (--images), keep fp16, exclude the layers that "
            "`python -m builder sensitivity` names"
            + (f" ({worst})" if worst else "")
            + f", raise fallback.max_restorations (now {settings.fallback.max_restorations}), or upgrade TensorRT"
        )
    return (
        f"{precision} does not pass its gate{tried}: {'; '.join(verified.failures)}. No version was written; {advice}"
    )


def _check_runs(path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises types of its own, one per status
        raise BuilderError(f"the built network does not load in ONNX Runtime: {str(error).splitlines()[0]}") from error


def _toolchain() -> dict[str, str]:
    return manifests.toolchain("numpy", "onnx", "onnxruntime", "opencv-python-headless", "triton-instance-segmentation")
