"""RF-DETR-seg: a set of queries with a box, class logits and a ready mask each; no prototypes, no suppression.

- Recognized by three outputs: boxes [batch, queries, 4], class logits [batch, queries, classes] and mask logits
  [batch, queries, H/4, W/4]. Its exports have no metadata: class names come from ``--class-names``. Models trained on
  COCO have 91 classes, numbered by COCO's category ids; fine-tuned ones have one more than they were trained on.
- Exported with ``dynamic_batch=True``: otherwise the decoder works with constants of one batch.
- Input: stretched RGB in [0, 1], ImageNet's mean and deviation (``rfdetr``'s ``predict``). The network that is
  built takes bytes and normalizes them itself.
- Outputs: cx, cy, w, h as shares of the input; a sigmoid makes scores of the logits. The best pairs of query and class
  are the detections, as many as queries (``num_select`` of all segmentation models of rfdetr 1.11). A mask is where its
  logits are above 0, and is not cropped to the box.
- A request's ``iou`` has no effect: nothing is suppressed.
- Kept out of int8: the decoder and the heads behind the backbone's last convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from builder.errors import ExportError
from builder.families.base import BOX_CHANNELS, Ends, Family, Floats, InputFormat, Layout, Seen
from builder.families.end_to_end import standard_of_rows

_OUTPUTS = 3


class RfDetr(Family):
    """See the module."""

    key = "rf-detr"
    title = "RF-DETR-seg"
    input = InputFormat(stretch=True, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))

    needs_dynamic_batch = "model.export(dynamic_batch=True)"

    def recognize(self, seen: Seen) -> Layout | None:
        """See :meth:`Family.recognize`."""
        # Boxes first, also where four classes have the logits look like them.
        flat = sorted(seen.flat.items(), key=lambda output: output[1][2] != BOX_CHANNELS)
        if len(seen.outputs) != _OUTPUTS or len(flat) != 2 or len(seen.planes) != 1 or flat[0][1][2] != BOX_CHANNELS:
            return None
        (boxes, (_, queries, _)), (logits, scores) = flat
        ((masks, planes),) = seen.planes.items()
        if scores[1] != queries or planes[1] != queries:
            return None
        if queries == 1:
            raise ExportError("the export has one query; expected: 100 to 300, as RF-DETR-seg has them")
        return Layout(
            self,
            boxes,
            (queries, BOX_CHANNELS),
            masks,
            planes[1:],
            num_classes=scores[2],
            num_anchors=queries,
            source_name=boxes,
            limits={"least_iou": 1.0, "most_iou": 1.0},
            further={logits: scores[1:]},
            has_ready_masks=True,
        )

    def graft(self, layout: Layout, ends: Ends) -> None:
        """See :meth:`Family.graft`."""
        at, constant, node = ends.at, ends.constant, ends.node
        (logits,) = layout.further
        queries, classes = layout.num_anchors, layout.num_classes
        node("Sigmoid", "class_scores", [logits], [at("class_scores")])
        ends.best_pairs(at("class_scores"), queries, classes)
        ends.plane_of_floats("pair_row", "query_float")
        node("Transpose", "boxes", [layout.detections_name], [at("boxes")], perm=[0, 2, 1])
        sides = constant("sides", np.reshape(_sides(layout), (1, BOX_CHANNELS, 1)), np.float32)
        node("Mul", "boxes_px", [at("boxes"), sides], [at("boxes_px")])
        box = ends.gather(at("boxes_px"), at("pair_row"), BOX_CHANNELS, queries, "chosen_boxes")
        ends.features([box, at("class_float"), at("query_float")])

    def standard(self, found: Mapping[str, Floats], layout: Layout) -> Floats:
        """See :meth:`Family.standard`."""
        (logits,) = layout.further
        boxes = found[layout.source_name] * _sides(layout)
        scores = 1 / (1 + np.exp(-found[logits]))
        flat = scores.reshape(len(scores), -1)
        pairs = np.argsort(-flat, axis=1, kind="stable")[:, : layout.num_anchors]
        queries, class_ids = pairs // layout.num_classes, pairs % layout.num_classes
        chosen = np.take_along_axis(boxes, queries[..., None], axis=1)
        center, half = chosen[..., :2], chosen[..., 2:] / 2
        columns = (np.take_along_axis(flat, pairs, axis=1), class_ids, queries)
        rows = np.concatenate([center - half, center + half, np.stack(columns, axis=-1)], axis=-1)
        return standard_of_rows(rows, layout.num_classes)


def _sides(layout: Layout) -> Floats:
    """Width, height, width, height of the input."""
    height, width = layout.input_size
    return np.array([width, height] * 2, np.float64)
