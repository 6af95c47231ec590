"""Inspects an ONNX export: is it a YOLO segmentation export, and what does it hold?"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper, version_converter

from base.files import sha256_of
from builder.errors import ExportError
from pipeline import contract

MIN_OPSET: Final = 11  # the first one with the Resize that these networks need
WORKING_OPSETS: Final = range(13, 23)
"""What the builder works with. Split and Unsqueeze take their sizes and axes as inputs since 13; later than 22, tools
behind the builder do not follow. Older and newer graphs are converted to the nearest one by onnx's own converter."""
_ADVISED_OPSET: Final = 17
STRIDES: Final = (8, 16, 32)
"""Strides of the three detection scales of the YOLOv8 and YOLO11 families."""

_QUANTIZED: Final = re.compile(
    r"(Dynamic)?QuantizeLinear|DequantizeLinear|QLinear\w+|QAttention|QGemm|ConvInteger|MatMulInteger\w*|MatMulNBits"
    r"|DynamicQuantizeMatMul|FakeQuant\w*|TRT_\w*(Quantize|DequantizeLinear)\w*"
)
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_UNBOUNDED: Final = frozenset({"Clip", "Max", "Min", "Pad", "Where"})
"""Operators that may well have an infinite operand."""
_HEAD_CAN_BE_TURNED_OFF_SINCE: Final = (8, 4, 8)
_NMS_SELECTS_THE_HEAD_SINCE: Final = (8, 4, 142)
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
        files: name to SHA-256, hexadecimal, of every file that the model consists of: the ONNX file itself, and those
            that hold its weights where they lie outside it.
        sha256: over all of them; of the ONNX file where it is the only one.
        name: a short name for tags, in lower case letters, digits, ``-`` and ``_``.
        opset: version of the default operator set.
        batch: the batch that the file is made for; None if it takes any.
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
    files: dict[str, str]
    sha256: str
    name: str
    opset: int
    batch: int | None
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
    files = _files_of(path)
    model, opset = _read(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _check_suppression(model, metadata)
    input_name, batch, height, width = _check_input(model, input_size)
    outputs = _run_once(model, input_name, (batch or 1, 3, height, width))
    detections_name, prototypes_name = _check_outputs(outputs, metadata, height, width)
    channels, anchors = outputs[detections_name][1:]
    coefficients = outputs[prototypes_name][1]
    num_classes = channels - 4 - coefficients
    export = Export(
        path=path,
        files=files,
        sha256=_digest(files),
        name=slug(name or _model_name(metadata) or path.stem),
        opset=opset,
        batch=batch,
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


def tensor_sizes(export: Export, top_k: int) -> dict[str, list[int]]:
    """Tensor name to dimensions, without batch, of the tensors that depend on the network."""
    columns = contract.FIRST_COEFFICIENT_COLUMN + export.num_coefficients
    return {
        contract.IMAGES.name: [export.input_height, export.input_width, 3],
        contract.CANDIDATES.name: [min(top_k, export.num_anchors), columns],
        contract.PROTOTYPES.name: [export.num_coefficients, export.input_height // 4, export.input_width // 4],
    }


def slug(text: str) -> str:
    """Lower case letters, digits, ``-`` and ``_`` of a name; never empty."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "model"


def _files_of(path: Path) -> dict[str, str]:
    """Name to SHA-256 of the ONNX file and of every file beside it that holds its weights."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file; give an ONNX export with --onnx PATH")
    files = {path.name: sha256_of(path)}
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise _unreadable(path, error) from error
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            beside = path.parent / entry.value
            # What lies outside the folder, or is missing, is refused when the weights are read.
            if entry.key == "location" and entry.value not in files and beside.is_file():
                files[entry.value] = sha256_of(beside)
    return files


def _digest(files: Mapping[str, str]) -> str:
    if len(files) == 1:
        return next(iter(files.values()))
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def _unreadable(path: Path, error: Exception) -> ExportError:
    detail = str(error).strip().splitlines()[:1]
    return ExportError(
        f"{path}: not a readable ONNX model ({' '.join(detail) or type(error).__name__}); export it again, "
        "for example `yolo export model=yolov8n-seg.pt format=onnx`"
    )


def _read(path: Path) -> tuple[onnx.ModelProto, int]:
    """The graph, in an opset that the builder works with, and the file's own opset."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf, onnx and I/O each raise types of their own
        raise _unreadable(path, error) from error
    if not model.graph.node or not model.graph.output:
        raise ExportError(f"{path}: the ONNX model has no graph; export it again")
    _check_precision(model)
    _check_finite(model)
    opset = next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ExportError(
            f"{path}: the export uses opset {opset}; allowed: {MIN_OPSET} to {newest}. Export again with opset="
            f"{_ADVISED_OPSET} (`yolo export model=best.pt format=onnx opset={_ADVISED_OPSET}`)"
        )
    try:
        _sort_nodes(model.graph)
        onnx.checker.check_model(model)
    except Exception as error:
        raise _unreadable(path, error) from error
    if opset not in WORKING_OPSETS:
        model = _converted(model, path, opset)
    return model, opset


def _converted(model: onnx.ModelProto, path: Path, opset: int) -> onnx.ModelProto:
    """The graph in the opset that the builder works with."""
    target = _ADVISED_OPSET if opset < WORKING_OPSETS.start else WORKING_OPSETS.stop - 1
    try:
        converted = version_converter.convert_version(model, target)
    except Exception as error:  # the converter raises types of its own
        raise ExportError(
            f"{path}: its opset {opset} cannot be converted to {target} ({str(error).strip().splitlines()[0]}). "
            f"Export again with opset={_ADVISED_OPSET} (`yolo export model=best.pt format=onnx opset={_ADVISED_OPSET}`)"
        ) from error
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Put nodes behind those whose outputs they read; converters to half precision leave them in another order."""
    made = {name for node in graph.node for name in node.output}
    ready = {""}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        left = []
        for node in waiting:
            if all(name in ready or name not in made for name in _read_by(node)):
                ordered.append(node)
                ready.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise ValueError(f"its nodes form a circle around {left[0].name or left[0].op_type!r}")
        waiting = left
    if any(one is not other for one, other in zip(ordered, graph.node, strict=True)):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(copies)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initializers, and the values of Constant nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def _check_precision(model: onnx.ModelProto) -> None:
    """Only float32 weights: the others have lost what fp32 is made of."""
    quantized = [node for node in model.graph.node if _QUANTIZED.fullmatch(node.op_type)]
    if quantized:
        kinds = ", ".join(sorted({node.op_type for node in quantized}))
        raise ExportError(
            f"the export is quantized already: {len(quantized)} nodes of the kind {kinds}, the first is "
            f"{quantized[0].name or quantized[0].output[0]!r}. The builder needs the float32 weights and makes int8 "
            "itself, gated and with a fallback. Export again without quantize=8 or int8=True "
            "(`yolo export model=best.pt format=onnx`)"
        )
    kinds_of = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kinds_of |= {
        node.output[0]: attribute.t.data_type
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for node in model.graph.node:
        if node.op_type not in _WEIGHTED:
            continue
        for name in node.input:
            kind = kinds_of.get(name, TensorProto.FLOAT)
            if kind != TensorProto.FLOAT:
                raise ExportError(
                    f"the export's weights are {TensorProto.DataType.Name(kind)} (node {node.name or node.op_type!r}); "
                    "expected: FLOAT. The builder needs the float32 weights and makes fp16 and int8 itself. Export "
                    "again without half=True, int8=True or quantize=… (`yolo export model=best.pt format=onnx`)"
                )


def _check_finite(model: onnx.ModelProto) -> None:
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in model.graph.initializer:
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            continue
        values = numpy_helper.to_array(tensor)
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nan or (infinite and not readers.get(tensor.name, set()) <= _UNBOUNDED):
            raise ExportError(
                f"the weights {tensor.name!r} hold {nan} NaN and {infinite} infinite values of {values.size}: the "
                "checkpoint is damaged, or training diverged. Export a checkpoint that works again"
            )


def _check_suppression(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    advice = _advice_without_suppression(metadata)
    if metadata.get("end2end") == "True":
        raise ExportError(f"the export is an end-to-end one: final detections leave it. {advice}")
    for node in model.graph.node:
        if node.op_type in _NMS_OPERATORS:
            raise ExportError(
                f"non-maximum suppression is already inside the export (node {node.name or node.op_type!r}, operator "
                f"{node.op_type}); the server does its own, set per request. {advice}"
            )


def _advice_without_suppression(metadata: Mapping[str, str]) -> str:
    """How to export plain outputs, by the version of ultralytics that the file names.

    YOLO26 has an end-to-end head. Before 8.4.8 its exports cannot do without it; from 8.4.8 to 8.4.141 it is the
    default and ``end2end=False`` turns it off; from 8.4.142 on plain outputs are the default, and ``nms=False`` selects
    that head
    (read in the packages 8.4.0, 8.4.7, 8.4.8, 8.4.141, 8.4.142 and 8.4.190).
    """
    command = "yolo export model=best.pt format=onnx"
    since = f"leave `nms` and `end2end` out (`{command}`), for nms=False selects the end-to-end head"
    before = f"set end2end=False and leave `nms` out (`{command} end2end=False`)"
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", metadata.get("version", ""))
    if match is None:
        return f"Export again. With ultralytics 8.4.142 or newer: {since}. With an older one: {before}"
    again = f"Export again (ultralytics {match.group()})"
    version = tuple(map(int, match.groups()))
    if version >= _NMS_SELECTS_THE_HEAD_SINCE:
        return f"{again}: {since}"
    if metadata.get("end2end") == "True":
        if version < _HEAD_CAN_BE_TURNED_OFF_SINCE:
            return (
                f"This version of ultralytics ({match.group()}) cannot do without; update it, export again and {since}"
            )
        return f"{again}: {before}. From 8.4.142 on: {since}"
    return f"{again} with nms=False (`{command} nms=False`)"


def _check_input(model: onnx.ModelProto, input_size: tuple[int, int] | None) -> tuple[str, int | None, int, int]:
    """Name, batch, height and width of the input, whose size is fixed in the graph."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) != 1:
        raise ExportError(
            f"the export has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); expected: 1 image"
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if len(dims) != 4 or dims[1] not in (3, None):
        shown = "x".join("?" if dim is None else str(dim) for dim in dims)
        raise ExportError(f"the input {inputs[0].name!r} has shape {shown}; expected: batch x 3 x height x width")
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(
            f"the input {inputs[0].name!r} is {kind}; expected: FLOAT. Export again without half=True, "
            "int8=True or quantize=… (`yolo export model=best.pt format=onnx`): the builder makes fp16 and int8 itself"
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
    return inputs[0].name, dims[0], height, width


def _run_once(model: onnx.ModelProto, input_name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs, by running the export on empty images of its own batch."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = session.run(None, {input_name: np.zeros(shape, np.float32)})
    except Exception as error:  # ONNX Runtime raises types of its own, one per status
        raise ExportError(f"the export does not run in ONNX Runtime: {str(error).strip().splitlines()[0]}") from error
    outputs = list(zip((output.name for output in session.get_outputs()), arrays, strict=True))
    for name, array in outputs:
        if array.dtype != np.float32:
            raise ExportError(f"the output {name!r} is {array.dtype}; expected: float32; export without half=True")
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
            f"is an end-to-end one. {_advice_without_suppression(metadata)}"
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
