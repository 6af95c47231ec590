"""The build: from an export to tagged versions, precision by precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort

from builder import manifest as manifests
from builder.calibration import CalibrationSet
from builder.errors import BuilderError
from builder.export import Export, load_export
from builder.float16 import to_float16
from builder.manifest import FileEntry, Manifest
from builder.progress import Steps
from builder.quantize_cpu import METHOD, count_quantized_convolutions, quantize_for_cpu
from builder.repository import ModelRepository, tensor_sizes
from builder.surgery import Head, find_head, graft_ends, make_batch_dynamic
from pipeline import contract

BUILD_REVISION: Final = 1
"""Raised whenever the builder makes something else out of the same inputs; part of every build key."""

_MODEL_FILE: Final = "model.onnx"
_MODEL_SHIM: Final = '''"""Runs this version's ``model.onnx`` (profile cpu)."""

from serving.onnx_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class BuildSettings:
    """What to build.

    Attributes:
        onnx: the export.
        repository: the model repository to write to.
        precisions: which ones, in the order of :data:`pipeline.contract.PRECISIONS`.
        name: model name for tags; None takes the export's own.
        input_size: height and width, for an export of dynamic size.
        top_k: anchors that leave the network per image.
    """

    onnx: Path
    repository: Path
    precisions: tuple[str, ...] = contract.PRECISIONS
    name: str | None = None
    input_size: tuple[int, int] | None = None
    top_k: int = contract.DEFAULT_TOP_K


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


@dataclass
class _Artefact:
    """A network ready to be written."""

    model: onnx.ModelProto
    excluded: Sequence[str] = ()
    layers: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None


def build_cpu(settings: BuildSettings, calibration: CalibrationSet | None, steps: Steps) -> list[Built]:
    """Build versions for the cpu profile.

    Args:
        settings: what to build.
        calibration: images for int8; may be None if int8 is not asked for.
        steps: where progress is shown.

    Returns:
        One entry per precision, in order.

    Raises:
        BuilderError: the message names fault and remedy; no partial version is left.
    """
    if "int8" in settings.precisions and calibration is None:
        raise BuilderError("int8 needs calibration images; give some with --images FOLDER")
    with steps.step("inspect export", settings.onnx.name):
        export, model = load_export(settings.onnx, settings.name, settings.input_size)
    steps.note(export.summary())
    with steps.step("graph surgery", "dynamic batch"):
        network = make_batch_dynamic(model, export)
        head = find_head(network, export)
    repository = ModelRepository.open(settings.repository)
    with repository.locked():
        for path in repository.fit_network(export, settings.top_k):
            steps.note(f"sizes of this network written to {path}")
    return [
        _build_precision(_Context(settings, export, network, head, calibration, repository, steps), precision)
        for precision in contract.PRECISIONS
        if precision in settings.precisions
    ]


@dataclass(frozen=True)
class _Context:
    settings: BuildSettings
    export: Export
    network: onnx.ModelProto
    head: Head
    calibration: CalibrationSet | None
    repository: ModelRepository
    steps: Steps


def _build_precision(context: _Context, precision: str) -> Built:
    key = _build_key(context, precision)
    repository = context.repository
    existing = repository.find_build(precision, key)
    if existing is not None:
        context.steps.note(f"{precision}: already built as version {existing.version}, {existing.tag}")
        folder = repository.model_folder(precision) / str(existing.version)
        return Built(existing, folder, True, existing.version in repository.promoted(precision, "cpu"))
    before = dict(context.steps.durations_s)
    artefact = _ARTEFACTS[precision](context)
    with context.steps.step(f"{precision}: graft ends"):
        model = graft_ends(artefact.model, context.export, context.settings.top_k)
    with context.steps.step(f"{precision}: write version"):
        built = _write(context, precision, key, artefact, model, before)
    context.steps.note(f"{precision}: version {built.manifest.version}, {built.manifest.tag}")
    return built


def _fp32(context: _Context) -> _Artefact:
    _, convolutions = count_quantized_convolutions(context.network)
    return _Artefact(context.network, layers={"convolutions": {"fp32": convolutions}})


def _fp16(context: _Context) -> _Artefact:
    with context.steps.step("fp16: convert", "weights and activations to half"):
        model = to_float16(context.network, context.head.decode_nodes)
    _, convolutions = count_quantized_convolutions(model)
    in_tail = sum(1 for node in model.graph.node if node.op_type == "Conv" and node.name in context.head.decode_nodes)
    layers = {"convolutions": {"fp16": convolutions - in_tail, "fp32": in_tail}}
    return _Artefact(model, context.head.decode_nodes, layers)


def _int8(context: _Context) -> _Artefact:
    calibration = context.calibration
    if calibration is None:
        raise BuilderError("int8 needs calibration images; give some with --images FOLDER")
    if calibration.warning:
        context.steps.warn(calibration.warning)
    # Final convolutions and decoding stay in float: box and score regression is what int8 hurts most.
    excluded = (*context.head.output_convolutions, *context.head.decode_nodes)
    with context.steps.step("int8: calibrate and quantise", METHOD.split(" (")[0], len(calibration)) as advance:
        result = quantize_for_cpu(context.network, context.export, calibration, excluded, advance)
    counts = {"int8": result.quantized_convolutions, "fp32": result.convolutions - result.quantized_convolutions}
    return _Artefact(
        result.model,
        excluded,
        {"convolutions": counts},
        {
            "method": METHOD,
            "images": len(calibration.paths),
            "variants_per_image": calibration.augmented,
            "sha256": calibration.sha256,
            "warning": calibration.warning,
        },
    )


_ARTEFACTS: Final = {"fp32": _fp32, "fp16": _fp16, "int8": _int8}


def _write(
    context: _Context, precision: str, key: str, artefact: _Artefact, model: onnx.ModelProto, before: dict[str, float]
) -> Built:
    repository = context.repository
    with repository.locked(), repository.staging(precision) as staged:
        onnx.save(model, staged / _MODEL_FILE)
        (staged / "model.py").write_text(_MODEL_SHIM)
        _check_runs(staged / _MODEL_FILE)
        files = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
        version = repository.next_version(precision)
        durations = {name: value for name, value in context.steps.durations_s.items() if name not in before}
        manifest = Manifest(
            tag=_tag(context.export.name, precision, files[_MODEL_FILE].sha256),
            model=contract.segmentation_model(precision),
            version=version,
            precision=precision,
            profile="cpu",
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            build_key=key,
            source=_source(context),
            toolchain=_toolchain(),
            settings=_settings(context.settings),
            files=files,
            calibration=artefact.calibration,
            excluded_nodes=tuple(artefact.excluded),
            layers=artefact.layers,
            durations_s=durations,
        )
        (staged / manifests.MANIFEST_NAME).write_text(manifest.to_json())
        folder = repository.publish(precision, staged, version)
        first = not repository.promoted(precision, "cpu")
        if first:  # there is nothing that it would replace
            repository.promote(precision, "cpu", version)
        return Built(manifest, folder, False, version in repository.promoted(precision, "cpu"))


def _check_runs(path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises types of its own, one per status
        raise BuilderError(f"the built network does not load in ONNX Runtime: {str(error).splitlines()[0]}") from error


def _tag(name: str, precision: str, digest: str) -> str:
    return f"{name}-{precision}-ort{ort.__version__}-cpu-{digest[:8]}"


def _source(context: _Context) -> dict[str, Any]:
    export = context.export
    return {
        "name": export.name,
        "file": export.path.name,
        "sha256": export.sha256,
        "opset": export.opset,
        "num_classes": export.num_classes,
        "class_names": list(export.class_names),
        "tensor_sizes": tensor_sizes(export, context.settings.top_k),
    }


def _toolchain() -> dict[str, str]:
    return manifests.toolchain("numpy", "onnx", "onnxruntime", "opencv-python-headless", "triton-instance-segmentation")


def _settings(settings: BuildSettings) -> dict[str, Any]:
    values = {**asdict(settings), "onnx": settings.onnx.name, "repository": settings.repository.name}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _build_key(context: _Context, precision: str) -> str:
    """Hash over all that determines the result."""
    calibration = context.calibration if precision == "int8" else None
    facts = {
        "revision": BUILD_REVISION,
        "profile": "cpu",
        "precision": precision,
        "name": context.export.name,
        "source": context.export.sha256,
        "sizes": tensor_sizes(context.export, context.settings.top_k),
        "calibration": [calibration.sha256, calibration.augmented] if calibration else None,
        "toolchain": _toolchain(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
