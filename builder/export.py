"""Inspects an ONNX export: is it a YOLO segmentation export, and what does it hold?"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort

from builder.errors import ExportError

MIN_OPSET: Final = 13  # Split and Unsqueeze take their sizes and axes as inputs since 13
MAX_OPSET: Final = 22
STRIDES: Final = (8, 16, 32)
"""Strides of the three detection scales of the YOLOv8 and YOLO11 families."""

_NMS_OPERATORS: Final = frozenset(
    {
        "NonMaxSuppression",
        "EfficientNMS_TRT",
        "EfficientNMSX_TRT",
        "BatchedNMS_TRT",
        "BatchedNMSDynamic_TRT",
        "TRTBatchedNMS",
    }
)


@dataclass(frozen=True)
class Export:
    """What is known of a segmentation export.

    Attributes:
        path: the ONNX file.
        sha256: of its bytes, hexadecimal.
        name: a short name for tags, in lower case letters, digits, ``-`` and ``_``.
        opset: version of the default operator set.
        input_name: name of the image input, float32 [batch, 3, height, width].
        detections_name: output [batch, 4 + classes + coefficients, anchors].
        prototypes_name: output [batch, coefficients, height / 4, width / 4].
        input_height: in pixels.
        input_width: in pixels.
        num_classes: number of classes.
        num_coefficients: mask coefficients per anchor (32 in these families).
        num_anchors: anchors over all scales.
        class_names: one name per class.
    """

    path: Path
    sha256: str
    name: str
    opset: int
    input_name: str
    detections_name: str
    prototypes_name: str
    input_height: int
    input_width: int
    num_classes: int
    num_coefficients: int
    num_anchors: int
    class_names: tuple[str, ...]

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.name}: input {self.input_width}x{self.input_height}, {self.num_classes} class(es), "
            f"{self.num_anchors} anchors, {self.num_coefficients} mask coefficients, opset {self.opset}"
        )


def load_export(
    path: Path, name: str | None = None, input_size: tuple[int, int] | None = None
) -> tuple[Export, onnx.ModelProto]:
    """Read and check an export.

    Args:
        path: the ONNX file.
        name: name for tags; by default the metadata's model name, else the file's name.
        input_size: height and width for an export whose input size is dynamic.

    Returns:
        What the export holds, and its graph with the input size fixed.

    Raises:
        ExportError: the file is not a YOLOv8-seg or YOLO11-seg export; the message says what is wrong.
    """
    model = _read(path)
    _check_operators(model)
    opset = _check_opset(model)
    input_name, height, width = _check_input(model, input_size)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    outputs = _run_once(model, input_name, height, width)
    detections_name, prototypes_name = _check_outputs(outputs, metadata, height, width)
    channels, anchors = outputs[detections_name][1:]
    coefficients = outputs[prototypes_name][1]
    num_classes = channels - 4 - coefficients
    export = Export(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        name=slug(name or _model_name(metadata) or path.stem),
        opset=opset,
        input_name=input_name,
        detections_name=detections_name,
        prototypes_name=prototypes_name,
        input_height=height,
        input_width=width,
        num_classes=num_classes,
        num_coefficients=coefficients,
        num_anchors=anchors,
        class_names=_class_names(metadata, num_classes),
    )
    return export, model


def slug(text: str) -> str:
    """Lower case letters, digits, ``-`` and ``_`` of a name; never empty."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "model"


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ExportError(f"{path}: no such file; give an ONNX export with --onnx PATH")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, onnx and I/O each raise types of their own
        detail = str(error).strip().splitlines()[:1]
        raise ExportError(
            f"{path}: not a readable ONNX model ({' '.join(detail) or type(error).__name__}); export it again, "
            "for example `yolo export model=yolov8n-seg.pt format=onnx`"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise ExportError(f"{path}: the ONNX model has no graph; export it again")
    return model


def _check_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in _NMS_OPERATORS:
            raise ExportError(
                f"non-maximum suppression is already inside the export (node {node.name or node.op_type!r}, operator "
                f"{node.op_type}); the server does its own, set per request. Export again with nms=False"
            )


def _check_opset(model: onnx.ModelProto) -> int:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ExportError(
            f"the export uses opset {opset}; allowed: {MIN_OPSET} to {MAX_OPSET}. Export again with opset=17"
        )
    return int(opset)


def _check_input(model: onnx.ModelProto, input_size: tuple[int, int] | None) -> tuple[str, int, int]:
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) != 1:
        raise ExportError(
            f"the export has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); expected: 1 image"
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if len(dims) != 4 or dims[1] not in (3, None):
        shown = "x".join("?" if dim is None else str(dim) for dim in dims)
        raise ExportError(f"the input {inputs[0].name!r} has shape {shown}; expected: batch x 3 x height x width")
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(
            f"the input {inputs[0].name!r} is {kind}; expected: FLOAT. Export again with half=False, int8=False: "
            "the builder makes fp16 and int8 itself"
        )
    if (dims[2] is None or dims[3] is None) and input_size is None:
        raise ExportError("the export's input size is dynamic; say which one to serve with --input-size HEIGHTxWIDTH")
    height, width = dims[2] or 0, dims[3] or 0
    if input_size is not None:
        if (height and height != input_size[0]) or (width and width != input_size[1]):
            raise ExportError(
                f"--input-size {input_size[0]}x{input_size[1]} was given, but the export's input is fixed at "
                f"{height}x{width}; leave the option out or export again with imgsz={input_size[0]},{input_size[1]}"
            )
        height, width = input_size
    if height % STRIDES[-1] or width % STRIDES[-1] or not height or not width:
        raise ExportError(f"the input size {height}x{width} is no multiple of {STRIDES[-1]}")
    tensor.shape.dim[2].dim_value, tensor.shape.dim[3].dim_value = height, width
    return inputs[0].name, height, width


def _run_once(model: onnx.ModelProto, input_name: str, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs, by running the export on one empty image."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = session.run(None, {input_name: np.zeros((1, 3, height, width), np.float32)})
    except Exception as error:  # ONNX Runtime raises types of its own, one per status
        raise ExportError(f"the export does not run in ONNX Runtime: {str(error).strip().splitlines()[0]}") from error
    outputs = list(zip((output.name for output in session.get_outputs()), arrays, strict=True))
    for name, array in outputs:
        if array.dtype != np.float32:
            raise ExportError(f"the output {name!r} is {array.dtype}; expected: float32. Export again with half=False")
    return {name: tuple(array.shape) for name, array in outputs}


def _check_outputs(
    outputs: dict[str, tuple[int, ...]], metadata: dict[str, str], height: int, width: int
) -> tuple[str, str]:
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())
    anchors = sum((height // stride) * (width // stride) for stride in STRIDES)
    flat = {name: shape for name, shape in outputs.items() if len(shape) == 3}
    planes = {name: shape for name, shape in outputs.items() if len(shape) == 4}
    if any(shape[2] < anchors and shape[1] <= 1000 and shape[2] <= 1000 for shape in flat.values()):
        raise ExportError(
            f"the outputs ({shown}) hold final detections: non-maximum suppression is already inside the export, or it "
            "is an end-to-end model. Export again with nms=False (and end2end=False)"
        )
    if not planes:
        task = metadata.get("task", "")
        if task == "segment":
            raise ExportError(f"the outputs ({shown}) lack the mask prototypes; export the whole model again")
        kind = f"its metadata says task={task!r}" if task else "it has no mask prototypes (a 4-D output)"
        raise ExportError(
            f"this is not a segmentation export but, it seems, a detection one: {kind}; outputs: {shown}. Export a "
            "*-seg model, for example `yolo export model=yolov8n-seg.pt format=onnx`"
        )
    if len(flat) != 1 or len(planes) != 1:
        raise ExportError(
            f"the outputs are {shown}; expected: [batch, 4 + classes + 32, anchors] and [batch, 32, H/4, W/4]"
        )
    detections_name, detections = next(iter(flat.items()))
    prototypes_name, prototypes = next(iter(planes.items()))
    if prototypes[2] != height // 4 or prototypes[3] != width // 4:
        raise ExportError(f"the prototypes {list(prototypes)} are not a quarter of the input {height}x{width}")
    if detections[1] == anchors:
        raise ExportError(
            f"the output {detections_name} {list(detections)} has its axes swapped; expected anchors last"
        )
    if detections[2] != anchors:
        raise ExportError(
            f"the output {detections_name} {list(detections)} has {detections[2]} anchors; YOLOv8-seg and YOLO11-seg "
            f"have {anchors} at {height}x{width}. Other families (YOLOv5-seg, YOLOv7-seg) are not supported"
        )
    if detections[1] - 4 - prototypes[1] < 1:
        raise ExportError(
            f"the output {detections_name} has {detections[1]} channels; expected: 4 for the box, at least one class "
            f"and {prototypes[1]} mask coefficients"
        )
    return detections_name, prototypes_name


def _model_name(metadata: dict[str, str]) -> str | None:
    """``yolov8n-seg`` out of a description such as ``Ultralytics YOLOv8n-seg model trained on coco.yaml``."""
    match = re.search(r"\b(yolo\w*?-seg)\b", metadata.get("description", ""), re.IGNORECASE)
    return match.group(1) if match else None


def _class_names(metadata: dict[str, str], num_classes: int) -> tuple[str, ...]:
    """Class names from the metadata (``{0: 'person', …}``), else ``class_0`` and so on."""
    fallback = tuple(f"class_{index}" for index in range(num_classes))
    try:
        names = ast.literal_eval(metadata["names"])
    except (KeyError, ValueError, SyntaxError):
        return fallback
    if isinstance(names, dict):
        names = [names.get(index, fallback[index]) for index in range(num_classes)]
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != num_classes:
        return fallback
    return tuple(str(name) for name in names)
