"""Final detections of a head that needs no suppression: YOLO26-seg, ``nms=False`` or ultralytics before 8.4.142.

- Recognized by an output [batch, rows, 6 + C], no more rows than anchors, beside prototypes [batch, C, H/4, W/4], in
  a file without suppression. The number of classes is that of the names in the metadata.
- Input: letterboxed RGB in [0, 1].
- Rows by falling score: x1, y1, x2, y2 in network pixels, score, class, mask coefficients. One anchor may give rows of
  several classes, as its owner's tool shows it too.
- A request's ``iou`` has no effect: nothing is suppressed.
- Kept out of int8: the last convolutions of the head and all behind them, the choice of the rows too.
"""

from __future__ import annotations

import numpy as np

from builder.errors import ExportError
from builder.families.base import Ends, Family, Floats, Layout, Seen, Shape, prototypes_for
from builder.families.yolo import STRIDES

_BEFORE_COEFFICIENTS = 6
_MOST_ROWS = 3840  # of TensorRT's TopK
_LIKELY = 0.25
MOST_TURNED = 0.1  # share of boxes whose corners are exchanged: heads without DFL give some


class EndToEnd(Family):
    """See the module."""

    key = "end-to-end"
    title = "YOLO26-seg, end-to-end head"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
        for name, shape in seen.flat.items():
            found = prototypes_for(seen, shape[2])
            if found is None or shape[2] != row_width(found[1]) or shape[1] > min(_MOST_ROWS, seen.cells(STRIDES[-1])):
                continue
            if not seen.num_names:
                raise ExportError(
                    f"the output {name} {list(shape)} holds final detections, which do not show how many classes there "
                    "are, and the metadata has no class names. Give them with --class-names"
                )
            return Layout(
                self, name, shape[1:], *found, seen.num_names, shape[1], name, {"least_iou": 1.0, "most_iou": 1.0}
            )
        return None

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        at = ends.at
        ends.node("Transpose", "to_planes_of_rows", [layout.detections_name], [at("row_planes")], perm=[0, 2, 1])
        parts = {"upper_left": 2, "lower_right": 2, "row_score": 1, "row_class": 1}
        ends.split(at("row_planes"), {**parts, "coefficients": layout.num_coefficients})
        ends.node("Squeeze", "row_score", [at("row_score"), ends.constant("axis_1", [1])], [at("score_per_anchor")])
        box = ends.centers(at("upper_left"), at("lower_right"))
        ends.features([*box, at("row_class"), at("coefficients")])

    def standard(self, found: Floats, layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        return standard_of_rows(found, layout.num_classes)

    def check(self, standard: Floats, num_classes: int, height: int, width: int) -> None:
        """Refuse exchanged corners; see :meth:`Family.check`."""
        check_corners(standard, num_classes)


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
