"""YOLOv8-, 9-, 11-, 12- and 26-seg, YOLOE with its classes fused, p6: anchor-free, boxes decoded, no suppression.

- Recognized by an output [batch, 4 + classes + C, anchors] with one anchor per cell of three strides (8, 16, 32) or
  four (64 too), beside prototypes [batch, C, H/4, W/4].
- Input: letterboxed RGB in [0, 1].
- Channels: cx, cy, w, h in network pixels, class scores behind a sigmoid, mask coefficients.
- Kept out of int8: the last convolutions of the head and the decoding behind them (:mod:`builder.families.head`).
"""

from __future__ import annotations

from typing import Final

from builder.errors import ExportError
from builder.families.base import BOX_CHANNELS, Ends, Family, Floats, Layout, Seen, prototypes_for

STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64))
"""Strides of the detection scales, of usual models and of p6."""


class Yolo(Family):
    """See the module."""

    key = "yolo"
    title = "YOLOv8-, 9-, 11-, 12- and 26-seg, YOLOE-seg"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
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
            return Layout(self, name, shape[1:], *found, classes, anchors, name)
        return None

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        parts = {"boxes": BOX_CHANNELS, "class_scores": layout.num_classes, "coefficients": layout.num_coefficients}
        ends.split(layout.detections_name, parts)
        ends.best_class()
        ends.features([ends.at("boxes"), ends.at("class_float"), ends.at("coefficients")])

    def standard(self, found: Floats, layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        return found
