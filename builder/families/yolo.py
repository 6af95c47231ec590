"""YOLOv8-, 9-, 11-, 12- and 26-seg as ultralytics exports them: anchor-free, three scales, decoded boxes.

Two outputs: detections [batch, 4 + classes + coefficients, anchors] (cx, cy, w, h in network pixels, scores in [0, 1],
mask coefficients) and prototypes [batch, coefficients, H/4, W/4]. Non-maximum suppression is not inside.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx

from builder.errors import ExportError
from builder.onnx_tools import QUANTIZERS, label, producers

NAMES: Final = "YOLOv8-, 9-, 11-, 12- and 26-seg"
STRIDES: Final = (8, 16, 32)
"""Strides of the detection scales."""
PROTOTYPE_STRIDE: Final = 4
BOX_CHANNELS: Final = 4
EXPORT_COMMAND: Final = "yolo export model=best.pt format=onnx"

_MOST_NAMES: Final = 1 << 20  # characters; ten thousand names of a hundred
_QUOTED: Final = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_FLAT: Final = re.compile(r"\s*(\{[0-9\s:,]*\}|\[[0-9\s,]*\]|\([0-9\s,]*\))\s*")
_MOST_SHOWN: Final = 100  # characters of the metadata in a message
_SHAPES: Final = ("Shape", "Size")
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


def check_suppression(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Refuse exports with suppression inside.

    Raises:
        ExportError: it is inside; the advice fits the version of ultralytics that the file names.
    """
    advice = _advice_without_suppression(metadata)
    if metadata.get("end2end") == "True":
        raise ExportError(f"the export is an end-to-end one: final detections leave it. {advice}")
    for node in model.graph.node:
        if node.op_type in _NMS_OPERATORS:
            raise ExportError(
                f"non-maximum suppression is already inside the export (node {label(node)}, operator {node.op_type}); "
                f"the server does it, with thresholds per request. {advice}"
            )


def _advice_without_suppression(metadata: Mapping[str, str]) -> str:
    """How to export plain outputs with the version of ultralytics that the file names.

    YOLO26 has an end-to-end head. Before 8.4.8 its exports always use it; from 8.4.8 to 8.4.141 it is the default and
    ``end2end=False`` turns it off; from 8.4.142 on plain outputs are the default and ``nms=False`` selects that head
    (read in the packages 8.4.0, 8.4.7, 8.4.8, 8.4.141, 8.4.142 and 8.4.190).
    """
    since = f"leave `nms` and `end2end` out (`{EXPORT_COMMAND}`), because nms=False selects the end-to-end head"
    before = f"set end2end=False and leave `nms` out (`{EXPORT_COMMAND} end2end=False`)"
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", metadata.get("version", ""))
    if match is None:
        return f"Export again. With ultralytics 8.4.142 or newer: {since}. With an older one: {before}"
    again = f"Export again (ultralytics {match.group()})"
    version = tuple(map(int, match.groups()))
    if version >= _NMS_SELECTS_THE_HEAD_SINCE:
        return f"{again}: {since}"
    if metadata.get("end2end") != "True":
        return f"{again} with nms=False (`{EXPORT_COMMAND} nms=False`)"
    if version < _HEAD_CAN_BE_TURNED_OFF_SINCE:
        return f"This version of ultralytics ({match.group()}) cannot turn it off; update it, export again and {since}"
    return f"{again}: {before}. From 8.4.142 on: {since}"


def check_outputs(
    outputs: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], height: int, width: int
) -> tuple[str, str]:
    """Recognize the two outputs by their shapes.

    Args:
        outputs: name to shape.
        metadata: the file's properties.
        height: of the input, in pixels.
        width: likewise.

    Returns:
        Names of detections and prototypes.

    Raises:
        ExportError: the outputs are not those of this family; says what the file seems to be instead.
    """
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
        kind = f"its metadata says task={task[:_MOST_SHOWN]!r}" if task else "it has no mask prototypes (a 4-D output)"
        raise ExportError(
            f"this looks like a detection export, not a segmentation export: {kind}; outputs: {shown}. Export a "
            "*-seg model, for example `yolo export model=yolov8n-seg.pt format=onnx`"
        )
    if len(flat) != 1 or len(planes) != 1:
        raise ExportError(
            f"the outputs are {shown}; expected: [batch, 4 + classes + 32, anchors] and [batch, 32, H/4, W/4]"
        )
    ((detections_name, detections),) = flat.items()
    ((prototypes_name, prototypes),) = planes.items()
    name = f"the output {detections_name} {list(detections)}"
    if prototypes[2:] != (height // PROTOTYPE_STRIDE, width // PROTOTYPE_STRIDE):
        raise ExportError(f"the prototypes {list(prototypes)} are not a quarter of the input {height}x{width}")
    if detections[1] == anchors:
        raise ExportError(f"{name} has its axes swapped; expected anchors last")
    if detections[2] != anchors:
        raise ExportError(
            f"{name} has {detections[2]} anchors; {NAMES} have {anchors} at {height}x{width}. Other families "
            "(YOLOv5-seg, YOLOv7-seg) are not supported"
        )
    if detections[1] - BOX_CHANNELS - prototypes[1] < 1:
        raise ExportError(
            f"{name} has {detections[1]} channels; expected: 4 for the box, at least one class and {prototypes[1]} "
            "mask coefficients"
        )
    return detections_name, prototypes_name


def model_name(metadata: Mapping[str, str]) -> str | None:
    """``yolov8n-seg`` out of a description such as ``Ultralytics YOLOv8n-seg model trained on coco.yaml``."""
    match = re.search(r"\b(yolo\w{0,40}?-seg)\b", metadata.get("description", ""), re.IGNORECASE)
    return match.group(1) if match else None


def class_names(metadata: Mapping[str, str], num_classes: int) -> tuple[tuple[str, ...], str]:
    """Class names from the metadata (``{0: 'person', …}``), else ``class_0`` and so on.

    Returns:
        One name per class, in printable characters; and a note that says what of the metadata is ignored, empty if
        nothing is.
    """
    fallback = tuple(f"class_{index}" for index in range(num_classes))
    text = metadata.get("names")
    if text is None:
        return fallback, ""
    ignored = "the export's metadata 'names' is ignored, and classes are called class_0 and so on: {}"
    if len(text) > _MOST_NAMES:
        return fallback, ignored.format(f"it has {len(text)} characters; allowed: {_MOST_NAMES}")
    # Python's own reader fails on deep nesting in ways that end the process: nothing but a flat list reaches it.
    if not _FLAT.fullmatch(_QUOTED.sub("", text)):
        return fallback, ignored.format("it is not a flat list of names, such as {0: 'person'}")
    try:
        names = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return fallback, ignored.format("it is not a list of names, such as {0: 'person'}")
    if isinstance(names, dict):
        names = [names.get(index, fallback[index]) for index in range(num_classes)]
    if not isinstance(names, list | tuple) or len(names) != num_classes:
        return fallback, ignored.format(f"it does not hold {num_classes} names")
    shown = tuple("".join(one if one.isprintable() else "\ufffd" for one in str(name)) for name in names)
    changed = sum(name != str(given) for name, given in zip(shown, names, strict=True))
    return shown, f"{changed} class names held characters that cannot be printed; they are replaced" if changed else ""


@dataclass(frozen=True)
class Head:
    """The end of the network: it turns features into boxes, scores and coefficients.

    Attributes:
        decode_nodes: names of the nodes behind the last convolutions (DFL, anchors, sigmoid, concatenations), in the
            graph's order, without quantizers.
        output_convolutions: names of the last convolutions, likewise.
    """

    decode_nodes: tuple[str, ...]
    output_convolutions: tuple[str, ...]


def find_head(model: onnx.ModelProto, output: str) -> Head:
    """Walk back from the detections to the last convolutions.

    The DFL's convolution (fixed weights 0, 1, 2, … behind a softmax; Li et al., 2020) belongs to the decoding:
    quantizing it costs accuracy and saves nothing. The walk stops at shapes: what sizes the grid of the anchors is no
    part of the head.

    Args:
        model: the network, with or without its ends and quantizers; every node has a name.
        output: name of the detections, or of the grafted candidates.
    """
    made_by = producers(model.graph)
    decode: set[str] = set()
    convolutions: set[str] = set()
    queue = deque([made_by[output]])
    seen: set[str] = set()
    while queue:
        node = queue.popleft()
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Conv" and not _follows_softmax(node, made_by):
            convolutions.add(node.name)
            continue
        if node.op_type not in QUANTIZERS:
            decode.add(node.name)
        if node.op_type not in _SHAPES:
            queue.extend(made_by[name] for name in node.input if name in made_by)
    order = [node.name for node in model.graph.node]
    return Head(tuple(name for name in order if name in decode), tuple(name for name in order if name in convolutions))


def _follows_softmax(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a convolution reads a Softmax, directly or through nodes that only reorder or cast."""
    producer = made_by.get(node.input[0])
    while producer is not None and (
        producer.op_type in ("Transpose", "Reshape", "Cast") or producer.op_type in QUANTIZERS
    ):
        producer = made_by.get(producer.input[0])
    return producer is not None and producer.op_type == "Softmax"


def group_of(node: str) -> str:
    """The group that a layer belongs to: its module, or its branch where the module is the head.

    ``/model.4/m.0/cv1/conv/Conv`` belongs to ``model.4``, ``/model.22/cv3.1/cv3.1.0/conv/Conv`` to
    ``model.22.cv3``, ``/model.22/proto/cv1/conv/Conv`` to ``model.22.proto``. Any other name is a group by itself.
    """
    match = re.match(r"/(?:.*/)?(model\.\d+)/(?:(cv[234]\b|proto\b|one2one\w*))?", node)
    if match is None:
        return node
    # Only the head numbers the layers of its branches (cv2.0, cv3.1, cv4.2), and only it has prototypes.
    in_head = re.search(r"/(cv[234]\.\d|proto/)", node) is not None
    return f"{match.group(1)}.{match.group(2)}" if match.group(2) and in_head else match.group(1)
