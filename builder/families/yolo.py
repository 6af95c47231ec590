"""YOLOv8-, 9-, 11-, 12- and 26-seg, YOLOE with its classes fused, p6: anchor-free, boxes decoded, no suppression.

- Recognized by an output [batch, 4 + classes + C, anchors] with one anchor per cell of three strides (8, 16, 32) or
  four (64 too), beside prototypes [batch, C, H/4, W/4].
- Input: letterboxed RGB in [0, 1].
- Channels: cx, cy, w, h in network pixels, class scores behind a sigmoid, mask coefficients.
- Kept out of int8: the last convolutions of the head and the decoding behind them (:mod:`builder.families.head`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from builder.errors import ExportError
from builder.families.base import BOX_CHANNELS, Ends, Family, Floats, Layout, Seen, prototypes_for
from builder.families.metadata import EXPORT_COMMAND

STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64))
"""Strides of the detection scales, of usual models and of p6."""


_TWICE: Final = 2.0
_MOST_CORNERS: Final = 0.8  # share of the anchors


def centers_of_cells(height: int, width: int, anchors: int) -> Floats | None:
    """Centers of the grids' cells in the order of the anchors, float64 [2, anchors] of x, y; None if none fits."""
    for strides in STRIDES:
        parts = []
        for stride in strides:
            rows, columns = np.indices((height // stride, width // stride), dtype=np.float64)
            parts.append((np.stack([columns.ravel(), rows.ravel()]) + 0.5) * stride)
        grid: Floats = np.concatenate(parts, axis=1)
        if grid.shape[1] == anchors:
            return grid
    return None


def corner_share(detections: Floats, grid: Floats) -> float:
    """Share of the anchors, of float64 [4 + …, anchors], whose first four values read better as corners.

    A box lies around its anchor's cell. Read as cx, cy, w, h, the first two values are near the cell; read as corners,
    the middle of both points is.
    """
    as_center = np.abs(detections[:2] - grid).sum(axis=0)
    as_corners = np.abs((detections[:2] + detections[2:4]) / 2 - grid).sum(axis=0)
    return float((as_corners * _TWICE < as_center).mean())


class Yolo(Family):
    """See the module."""

    key = "yolo"
    title = "YOLOv8-, 9-, 11-, 12- and 26-seg, YOLOE-seg"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
        if seen.selection is not None:
            return None
        for name, shape in seen.flat.items():
            anchors = next((count for count in map(seen.cells, STRIDES) if count in shape[1:]), None)
            if anchors is None or not seen.planes:
                continue
            if shape[1] == anchors != shape[2]:
                raise ExportError(f"the output {name} {list(shape)} has its axes swapped; expected anchors last")
            found = prototypes_for(seen, shape[1] - BOX_CHANNELS)
            if found is None:
                raise ExportError(
                    f"the output {name} {list(shape)} has {shape[1]} channels; expected: 4 for the box, at least one "
                    f"class, and as many mask coefficients as there are prototypes. Outputs: {seen.shown}"
                )
            classes = shape[1] - BOX_CHANNELS - found[1][0]
            if 0 < seen.num_names == classes - 1 and not seen.is_named:
                raise ExportError(
                    f"the output {name} {list(shape)} has {classes} values between box and coefficients, but the "
                    f"metadata names {seen.num_names} classes: the first value may be objectness. If all of them are "
                    "classes, say so with --family yolo; otherwise export the model again"
                )
            return Layout(self, name, shape[1:], *found, classes, anchors, name)
        return None

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        parts = {"boxes": BOX_CHANNELS, "class_scores": layout.num_classes, "coefficients": layout.num_coefficients}
        ends.split(layout.detections_name, parts)
        ends.best_class()
        ends.features([ends.at("boxes"), ends.at("class_float"), ends.at("coefficients")])

    def standard(self, found: Mapping[str, Floats], layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        return found[layout.source_name]

    def check(self, standard: Floats, num_classes: int, height: int, width: int) -> None:
        """Refuse boxes that are corners; see :meth:`Family.check`."""
        grid = centers_of_cells(height, width, standard.shape[2])
        if grid is None:
            return
        share = float(np.mean([corner_share(one, grid) for one in standard]))
        if share > _MOST_CORNERS:
            raise ExportError(
                f"the boxes are corners (x1, y1, x2, y2): read so, {share:.0%} of them lie around their anchors, and "
                f"read as centers and sizes they do not; expected cx, cy, w, h. Export again as ultralytics does it "
                f"(`{EXPORT_COMMAND}`)"
            )
