"""Exports of the family ``yolo`` with ``nms=True``: suppression inside, thresholds baked in.

The suppression's sizes depend on the pixels, and its thresholds serve every request alike. So the network is cut where
the head ends; the thresholds are read, and bound what a request may ask for: not below the confidence, not above the
IoU, no more than the rows. The file itself is compared with the cut network behind a suppression written in NumPy.

- Recognized by a node NonMaxSuppression behind a Concat of boxes, scores and coefficients.
- Input: letterboxed RGB in [0, 1].
- Behind the head: x1, y1, x2, y2 in network pixels, scores, coefficients, as channels. The file's own rows are x1, y1,
  x2, y2, score, class, coefficients, and zeros behind the last one.
- Kept out of int8: as of the family ``yolo``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from builder.errors import ExportError
from builder.families.base import Ends, Floats, Layout, Seen, Suppression
from builder.families.cutting import before, behind, cut_at, last_join
from builder.families.end_to_end import check_corners, row_width, standard_of_rows
from builder.families.metadata import EXPORT_COMMAND, advice_without_suppression
from builder.families.yolo import Yolo
from builder.onnx_tools import constant_tensors, label

_OPERATORS: Final = frozenset(
    {
        "NonMaxSuppression",
        "EfficientNMS_TRT",
        "EfficientNMSX_TRT",
        "BatchedNMS_TRT",
        "BatchedNMSDynamic_TRT",
        "TRTBatchedNMS",
    }
)
_TAIL: Final = frozenset(
    {"Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Equal", "Expand", "Flatten", "Gather", "Identity", "Mul"}
    | {"NonMaxSuppression", "Pad", "Reshape", "ScatterND", "Shape", "Slice", "Squeeze", "Sub", "Transpose"}
    | {"Unsqueeze", "Where"}
)
"""What ultralytics puts behind the suppression."""


class Suppressed(Yolo):
    """See the module."""

    key = "suppressed"
    title = "YOLOv8-, 9-, 11-, 12- and 26-seg with nms=True"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
        inside = seen.suppression
        layout = super().recognize(seen) if inside is not None else None
        if inside is None or layout is None:
            return None
        if layout.num_classes > 1 and not inside.is_per_class:
            raise ExportError(
                "the suppression inside the export compares boxes of different classes (agnostic_nms=True), which the "
                f"server does not do. Export again without it (`{EXPORT_COMMAND}`)"
            )
        rows = seen.outputs.get(inside.source_name, ())
        if len(rows) != 3 or rows[2] != row_width(layout.prototypes_shape):
            raise ExportError(
                f"the output {inside.source_name} {list(rows)} behind the suppression is unknown; expected rows of "
                f"x1, y1, x2, y2, score, class and {layout.num_coefficients} mask coefficients"
            )
        limits = {"least_confidence": inside.confidence, "most_iou": inside.iou, "most_detections": float(rows[1])}
        return replace(layout, source_name=inside.source_name, limits=limits)

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        parts = {"upper_left": 2, "lower_right": 2, "class_scores": layout.num_classes}
        ends.split(layout.detections_name, {**parts, "coefficients": layout.num_coefficients})
        ends.best_class()
        box = ends.centers(ends.at("upper_left"), ends.at("lower_right"))
        ends.features([*box, ends.at("class_float"), ends.at("coefficients")])

    def standard(self, found: Mapping[str, Floats], layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        return standard_of_rows(found[layout.source_name], layout.num_classes)

    def check(self, standard: Floats, num_classes: int, height: int, width: int) -> None:
        """Refuse exchanged corners; see :meth:`Family.check`."""
        check_corners(standard, num_classes)


def cut(model: onnx.ModelProto, metadata: Mapping[str, str]) -> Suppression | None:
    """Cut a graph where the head ends, if suppression is behind it; the graph is changed.

    Returns:
        What was cut off; None if there is nothing to cut.

    Raises:
        ExportError: suppression is inside, but not as ultralytics builds it.
    """
    graph = model.graph
    inside = [node for node in graph.node if node.op_type in _OPERATORS]
    if not inside:
        return None
    leading = before(graph, {name for node in inside for name in node.input})
    head = last_join(graph, leading)
    tail = behind(graph, {output for node in inside for output in node.output})
    ends = [value for value in graph.output if value.name in tail]
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in constant_tensors(graph).items()}
    ious = {_number(constants, node.input[3]) for node in inside if len(node.input) > 3}
    after_head = behind(graph, {head.output[0]}) if head is not None else set()
    least = {
        _number(constants, node.input[1])
        for node in graph.node
        if node.op_type == "Greater" and node.output[0] in leading & after_head
    }
    unknown = next((node for node in graph.node if tail.intersection(node.output) and node.op_type not in _TAIL), None)
    if (
        head is None
        or unknown is not None
        or any(node.op_type != "NonMaxSuppression" for node in inside)
        or not (len(ends) == len(ious) == len(least) == 1)
        or None in ious | least
    ):
        raise ExportError(
            f"non-maximum suppression is already inside the export (node {label(inside[0])}, operator "
            f"{inside[0].op_type}), but not as ultralytics builds it, so its thresholds cannot be read"
            f"{f' (unknown: node {label(unknown)}, operator {unknown.op_type})' if unknown is not None else ''}. "
            f"{advice_without_suppression(metadata)}"
        )
    offsets = before(graph, {node.input[0] for node in inside}, made_by="ArgMax")
    cut_at(graph, head.output[0], tail)
    (iou,), (confidence,) = ious, least
    return Suppression(
        ends[0].name, head.output[0], float(confidence or 0), float(iou or 0), is_per_class=bool(offsets)
    )


def _number(constants: Mapping[str, NDArray[Any]], name: str) -> float | None:
    """A constant of one value."""
    return float(constants[name].reshape(())) if name in constants and constants[name].size == 1 else None
