"""Final detections of a head that needs no suppression: YOLO26-seg, ``nms=False`` or ultralytics before 8.4.142.

- Recognized by an output [batch, rows, 6 + C], no more rows than anchors, beside prototypes [batch, C, H/4, W/4], in
  a file without suppression. The number of classes is that of the head's channels, or of the names in the metadata.
- Input: letterboxed RGB in [0, 1].
- Rows by falling score: x1, y1, x2, y2 in network pixels, score, class, mask coefficients. One anchor may give rows of
  several classes, as its owner's tool shows it too.
- Where the head gives corners, which nothing behind it changes, the network is cut there, and the choice of the rows
  is made again: ultralytics has built it in several ways, some for one batch only. Otherwise the file's rows are taken.
- A request's ``iou`` has no effect: nothing is suppressed.
- Kept out of int8: the last convolutions of the head and all behind them, the choice of the rows too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from builder.errors import ExportError
from builder.families.base import BOX_CHANNELS, Ends, Family, Floats, Layout, Seen, Selection, Shape, prototypes_for
from builder.families.cutting import before, behind, cut_at, last_join
from builder.families.yolo import STRIDES

_BEFORE_COEFFICIENTS = 6
_MOST_ROWS = 3840  # of TensorRT's TopK
_LIKELY = 0.25
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Sigmoid", "Exp", "Clip", "MatMul", "Conv"})
MOST_TURNED = 0.1  # share of boxes whose corners are exchanged: heads without DFL give some


class EndToEnd(Family):
    """See the module."""

    key = "end-to-end"
    title = "YOLO26-seg, end-to-end head"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
        inside = seen.selection
        for name, shape in seen.flat.items():
            if inside is not None and name != inside.source_name:
                continue
            found = prototypes_for(seen, shape[2])
            if found is None or shape[2] != row_width(found[1]) or shape[1] > min(_MOST_ROWS, seen.cells(STRIDES[-1])):
                continue
            limits = {"least_iou": 1.0, "most_iou": 1.0}
            if inside is not None:
                head = seen.outputs[inside.detections_name]
                classes = head[1] - BOX_CHANNELS - found[1][0]
                return Layout(self, inside.detections_name, head[1:], *found, classes, shape[1], name, limits)
            if not seen.num_names:
                raise ExportError(
                    f"the output {name} {list(shape)} holds final detections, which do not show how many classes there "
                    "are, and the metadata has no class names. Give them with --class-names"
                )
            return Layout(self, name, shape[1:], *found, seen.num_names, shape[1], name, limits)
        return None

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        at = ends.at
        if layout.detections_name != layout.source_name:
            _choose(layout, ends)
            return
        ends.node("Transpose", "to_planes_of_rows", [layout.detections_name], [at("row_planes")], perm=[0, 2, 1])
        parts = {"upper_left": 2, "lower_right": 2, "row_score": 1, "row_class": 1}
        ends.split(at("row_planes"), {**parts, "coefficients": layout.num_coefficients})
        ends.node("Squeeze", "row_score", [at("row_score"), ends.constant("axis_1", [1])], [at("score_per_anchor")])
        box = ends.centers(at("upper_left"), at("lower_right"))
        ends.features([*box, at("row_class"), at("coefficients")])

    def standard(self, found: Mapping[str, Floats], layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        return standard_of_rows(found[layout.source_name], layout.num_classes)

    def check(self, standard: Floats, num_classes: int, height: int, width: int) -> None:
        """Refuse exchanged corners; see :meth:`Family.check`."""
        check_corners(standard, num_classes)


def _choose(layout: Layout, ends: Ends) -> None:
    """The best pairs of anchor and class: the best anchors by their best class first, then the pairs among them."""
    at, constant, node = ends.at, ends.constant, ends.node
    rows, classes, coefficients = layout.num_anchors, layout.num_classes, layout.num_coefficients
    parts = {"upper_left": 2, "lower_right": 2, "class_scores": classes, "coefficients": coefficients}
    ends.split(layout.detections_name, parts)
    ends.best_score("anchor_score")
    count = constant("rows", [rows])
    node("TopK", "top_anchors", [at("anchor_score"), count], [at("anchor_top"), at("anchor_index")], axis=1)
    scores = ends.gather(at("class_scores"), at("anchor_index"), classes, rows, "likely_scores")
    node("Transpose", "likely_rows", [scores], [at("likely_rows")], perm=[0, 2, 1])
    ends.best_pairs(at("likely_rows"), rows, classes)
    box = ends.centers(at("upper_left"), at("lower_right"))
    node("Concat", "anchors", [*box, at("coefficients")], [at("anchors")], axis=1)
    likely = ends.gather(at("anchors"), at("anchor_index"), BOX_CHANNELS + coefficients, rows, "likely_anchors")
    chosen = ends.gather(likely, at("pair_row"), BOX_CHANNELS + coefficients, rows, "chosen_anchors")
    ends.split(chosen, {"chosen_box": BOX_CHANNELS, "chosen_coefficients": coefficients})
    ends.features([at("chosen_box"), at("class_float"), at("chosen_coefficients")])


def cut(model: onnx.ModelProto) -> Selection | None:
    """Cut a graph where the head ends, if the choice of the best rows is behind it; the graph is changed.

    Ultralytics has built that choice in several ways, some for one batch size only; what :meth:`EndToEnd.graft` puts in
    its place is the same choice for any.

    Returns:
        What was cut off; None if there is nothing to cut, or not of this kind.
    """
    graph = model.graph
    chosen = {output for node in graph.node if node.op_type == "TopK" for output in node.output}
    if not chosen:
        return None
    tail = behind(graph, chosen)
    ends = [value.name for value in graph.output if value.name in tail]
    head = last_join(graph, before(graph, chosen))
    if len(ends) != 1 or head is None or head.output[0] in tail or _computes(model, head.output[0]):
        return None
    cut_at(graph, head.output[0], tail)
    return Selection(ends[0], head.output[0])


def _computes(model: onnx.ModelProto, head: str) -> bool:
    """Whether something behind the head computes with floats: then its boxes may not be those of the rows."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    after = behind(model.graph, {head})
    return any(
        node.op_type in _ARITHMETIC and node.output[0] in floats & after and node.output[0] != head
        for node in model.graph.node
    )


def turned_share(standard: Floats, num_classes: int) -> float:
    """Share of the likely boxes, of float64 [n, 4 + classes + C, rows], whose second corner is not behind the first."""
    likely = standard[:, 4 : 4 + num_classes].max(axis=1) >= _LIKELY
    sizes = standard[:, 2:4].transpose(0, 2, 1)[likely]
    return float((sizes < 0).any(axis=-1).mean()) if len(sizes) else 0.0


def check_corners(standard: Floats, num_classes: int) -> None:
    """Refuse rows whose boxes are no corners.

    Raises:
        ExportError: the third and fourth values are often less than the first two.
    """
    share = turned_share(standard, num_classes)
    if share > MOST_TURNED:
        raise ExportError(
            f"the detections' third and fourth values are less than the first two in {share:.0%} of the likely rows; "
            "expected rows of x1, y1, x2, y2, score, class and mask coefficients"
        )


def standard_of_rows(rows: Floats, num_classes: int) -> Floats:
    """Rows [n, R, 6 + C] of x1, y1, x2, y2, score, class, coefficients as :meth:`Family.standard` gives them.

    Raises:
        ExportError: what should be classes are none.
    """
    box, score, class_ids = rows[..., :4], rows[..., 4], rows[..., 5]
    shown = score > 0
    if (class_ids[shown] != np.round(class_ids[shown])).any() or not (
        (class_ids[shown] >= 0) & (class_ids[shown] < num_classes)
    ).all():
        raise ExportError(
            "the sixth value of the detections is not always the number of a class, from 0 to "
            f"{num_classes - 1}; expected rows of x1, y1, x2, y2, score, class and mask coefficients"
        )
    standard = np.zeros((len(rows), 4 + num_classes + rows.shape[2] - 6, rows.shape[1]))
    standard[:, :2] = ((box[..., :2] + box[..., 2:]) / 2).transpose(0, 2, 1)
    standard[:, 2:4] = (box[..., 2:] - box[..., :2]).transpose(0, 2, 1)
    image, row = np.nonzero(shown)
    standard[image, 4 + class_ids[image, row].astype(np.int64), row] = score[image, row]
    standard[:, 4 + num_classes :] = rows[..., 6:].transpose(0, 2, 1)
    return standard


def row_width(prototypes: Shape) -> int:
    """Values of one row, for prototypes [C, H/4, W/4]."""
    return _BEFORE_COEFFICIENTS + prototypes[0]
