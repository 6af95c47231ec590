"""YOLOv5-seg and YOLOv7-seg: three anchors per cell, objectness, anchors before channels.

- Recognized by an output [batch, anchors, 5 + classes + C] with three anchors per cell of three or four strides, beside
  prototypes [batch, C, H/4, W/4]; further outputs, such as the raw maps of each scale, are ignored.
- Input: letterboxed RGB in [0, 1].
- Channels: cx, cy, w, h in network pixels, objectness, class scores, mask coefficients; score = objectness x class.
- Kept out of int8: the last convolutions of the head and the decoding behind them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from builder.errors import ExportError
from builder.families.base import BOX_CHANNELS, Ends, Family, Floats, Layout, Seen, prototypes_for
from builder.families.yolo import STRIDES

_ANCHORS_PER_CELL = 3
_FIRST_CLASS = BOX_CHANNELS + 1


class YoloV5(Family):
    """See the module."""

    key = "yolov5"
    title = "YOLOv5-seg and YOLOv7-seg"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
        if seen.selection is not None:
            return None
        for name, shape in seen.flat.items():
            if shape[1] not in [_ANCHORS_PER_CELL * seen.cells(strides) for strides in STRIDES] or not seen.planes:
                continue
            found = prototypes_for(seen, shape[2] - _FIRST_CLASS)
            if found is None:
                raise ExportError(
                    f"the output {name} {list(shape)} has {shape[2]} channels; expected: 4 for the box, 1 for "
                    f"objectness, at least one class, and as many coefficients as prototypes. Outputs: {seen.shown}"
                )
            return Layout(self, name, shape[1:], *found, shape[2] - _FIRST_CLASS - found[1][0], shape[1], name)
        return None

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        at = ends.at
        ends.node("Transpose", "to_planes_of_rows", [layout.detections_name], [at("row_planes")], perm=[0, 2, 1])
        parts = {"boxes": BOX_CHANNELS, "objectness": 1, "conditional": layout.num_classes}
        ends.split(at("row_planes"), {**parts, "coefficients": layout.num_coefficients})
        ends.node("Mul", "class_scores", [at("conditional"), at("objectness")], [at("class_scores")])
        ends.best_class()
        ends.features([at("boxes"), at("class_float"), at("coefficients")])

    def standard(self, found: Mapping[str, Floats], layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        planes = np.swapaxes(found[layout.source_name], 1, 2)
        last = _FIRST_CLASS + layout.num_classes
        scores = planes[:, _FIRST_CLASS:last] * planes[:, BOX_CHANNELS:_FIRST_CLASS]
        result: Floats = np.concatenate([planes[:, :BOX_CHANNELS], scores, planes[:, last:]], axis=1)
        return result
