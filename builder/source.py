"""The export's file, unchanged: run by ONNX Runtime and decoded in plain float64.

Nothing here uses ``pipeline``, the code that serves, or a graph that the builder has changed: a reference that shares
code with what it judges shares its faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from builder.errors import ExportError
from builder.export import Export
from builder.families.base import InputFormat
from builder.onnx_tools import file_session, first_line, quiet_session

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input.

    A point (x, y) of the image, in pixels with centers at .5, lies in the input at (x * scale_x + left,
    y * scale_y + top).

    Attributes:
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale_x: network pixels per image pixel, across.
        scale_y: likewise, down.
        left: network pixels of border left of the image.
        top: network pixels of border above it.
    """

    height: int
    width: int
    scale_x: float
    scale_y: float
    left: float
    top: float


@dataclass(frozen=True)
class Decoded:
    """The instances of one image, best first; n may be 0.

    Attributes:
        boxes: float64 [n, 4] of x1, y1, x2, y2 in pixels of the image, clipped to it.
        scores: float64 [n] in [0, 1], falling.
        class_ids: int64 [n].
        masks: n masks, COCO compressed, of the whole image.
        left_out: the best score of the anchors beyond the limit, which are ignored; 0 if there were none.
    """

    boxes: Floats
    scores: Floats
    class_ids: NDArray[np.int64]
    masks: list[bytes]
    left_out: float


class SourceNetwork:
    """The export's file, run unchanged; if that is in half precision, its weights in single precision."""

    def __init__(self, export: Export, *, as_it_is: bool = False, threads: int | None = None) -> None:
        """Load the file.

        Args:
            export: the file.
            as_it_is: in half precision too.
            threads: for one image; None takes all cores. With 1, several threads run images beside each other.

        Raises:
            ExportError: ONNX Runtime does not load it.
        """
        self._export = export
        try:
            if export.is_half and not as_it_is:
                self._session = quiet_session(export.model.SerializeToString(), threads)
            else:
                self._session = file_session(export.path, threads)
        except Exception as error:  # ONNX Runtime and onnx have their exception types
            raise ExportError(f"{export.path} does not load in ONNX Runtime: {first_line(error)}") from error

    def run(self, images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Run images in the batch that the file is made for; one at a time if it takes any.

        Args:
            images: uint8 [n, H, W, 3] RGB, letterboxed.

        Returns:
            In float64: detections [n, 4 + classes + C, rows] as :meth:`builder.families.base.Family.standard` gives
            them, and prototypes [n, C, H/4, W/4].

        Raises:
            ExportError: the outputs are not what they were taken for.
        """
        layout = self._export.layout
        names = [*layout.source_names, layout.prototypes_name]
        half = self._session.get_inputs()[0].type == "tensor(float16)"
        parts = [
            self._session.run(names, {self._export.input_name: blob.astype(np.float16) if half else blob})
            for blob in blobs(self._export.batch, images, layout.family.input)
        ]
        *found, prototypes = (
            np.concatenate(arrays)[: len(images)].astype(np.float64) for arrays in zip(*parts, strict=True)
        )
        return layout.family.standard(dict(zip(layout.source_names, found, strict=True)), layout), prototypes

    def segment(
        self, image: NDArray[np.uint8], placement: Placement, thresholds: tuple[float, float, int, int]
    ) -> Decoded:
        """Find the instances of one letterboxed image, uint8 [H, W, 3]; see :func:`decode`."""
        detections, prototypes = self.run(image[None])
        return decode(
            detections[0],
            prototypes[0],
            self._export.num_classes,
            placement,
            (image.shape[0], image.shape[1]),
            thresholds,
        )


def blobs(batch: int | None, images: NDArray[np.uint8], wanted: InputFormat) -> Iterator[NDArray[np.float32]]:
    """Images in batches that an export takes, the last one filled up with its last image."""
    batch = batch or 1
    for first in range(0, len(images), batch):
        chunk = images[first : first + batch]
        yield wanted.planes(np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)]))


def decode(
    detections: Floats,
    prototypes: Floats,
    num_classes: int,
    placement: Placement,
    input_size: tuple[int, int],
    thresholds: tuple[float, float, int, int],
) -> Decoded:
    """Decode one image's raw outputs.

    The best class of every anchor, a threshold, greedy suppression per class, boxes mapped back; masks as in YOLACT
    (Bolya et al., 2019): coefficients times prototypes, bilinear, above 0, inside the box. A ready mask is not cropped.

    Args:
        detections: float64 [4 + classes + C, anchors]; cx, cy, w, h in network pixels, scores in [0, 1], coefficients.
        prototypes: float64 [C, H/4, W/4]; or ready masks, of which the only coefficient of a detection is the number.
        num_classes: number of classes.
        placement: where the image lies in the input.
        input_size: height and width of the input.
        thresholds: least score, greatest IoU between detections of one class, most detections, most anchors.
    """
    confidence, iou, most, most_anchors = thresholds
    scores = detections[4 : 4 + num_classes]
    best = scores.max(axis=0)
    chosen = np.flatnonzero(best >= confidence)
    chosen = chosen[np.argsort(-best[chosen], kind="stable")]
    left_out = float(best[chosen[most_anchors]]) if len(chosen) > most_anchors else 0.0
    chosen = chosen[:most_anchors]
    class_ids = scores[:, chosen].argmax(axis=0)
    corners = _corners(detections[:4, chosen].T)
    offset = np.array([placement.left, placement.top] * 2)
    factor = np.array([placement.scale_x, placement.scale_y] * 2)
    limit = np.array([placement.width, placement.height] * 2, np.float64)
    boxes = np.clip((corners - offset) / factor, 0.0, limit)
    inside = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    kept = inside[_suppress(corners[inside], class_ids[inside], iou, most)]
    boxes = boxes[kept]
    coefficients = detections[4 + num_classes :, chosen[kept]].T
    cells = (prototypes.shape[1] / input_size[0], prototypes.shape[2] / input_size[1])
    is_ready = coefficients.shape[1] == 1 < len(prototypes)
    everywhere = np.array([0, 0, placement.width, placement.height], np.float64)
    masks = [
        _mask(prototypes[int(weights[0])], everywhere, placement, cells)
        if is_ready
        else _mask(np.tensordot(weights, prototypes, 1), box, placement, cells)
        for weights, box in zip(coefficients, boxes, strict=True)
    ]
    return Decoded(boxes, best[chosen[kept]], class_ids[kept], masks, left_out)


def _corners(boxes: Floats) -> Floats:
    centers, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centers - half, centers + half], axis=1)


def box_ious(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of one box, float64 [4] of x1, y1, x2, y2, with many, [n, 4]: float64 [n] in [0, 1]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - both
    result: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return result


def suppressed(rows: Floats, confidence: float, iou: float, most: int) -> Floats:
    """What suppression leaves of candidates [K, 6 + C] (score, cx, cy, w, h, class, C coefficients, by falling score).

    Args:
        rows: float64.
        confidence: only greater scores pass.
        iou: the worse of two boxes of a class that overlap by more is dropped.
        most: that are left.
    """
    rows = rows[rows[:, 0] > confidence]
    return rows[_suppress(_corners(rows[:, 1:5]), rows[:, 5].astype(np.int64), iou, most)]


def _suppress(corners: Floats, class_ids: NDArray[np.int64], iou: float, most: int) -> NDArray[np.int64]:
    """Indices that stay, of boxes by falling score."""
    kept: list[int] = []
    left = np.arange(len(corners))
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(int(first))
        same = class_ids[left] == class_ids[first]
        left = left[~(same & (box_ious(corners[first], corners[left]) > iou))]
    return np.array(kept, np.int64)


def _mask(logits: Floats, box: Floats, placement: Placement, cells: tuple[float, float]) -> bytes:
    """The pixels of the image whose centers lie in the box and whose logit is above 0, COCO compressed."""
    left, top = (max(0, int(np.ceil(value - 0.5))) for value in box[:2])
    left, top = min(left, placement.width - 1), min(top, placement.height - 1)
    right = min(max(int(np.ceil(box[2] - 0.5)), left + 1), placement.width)
    bottom = min(max(int(np.ceil(box[3] - 0.5)), top + 1), placement.height)
    rows = ((np.arange(top, bottom) + 0.5) * placement.scale_y + placement.top) * cells[0] - 0.5
    columns = ((np.arange(left, right) + 0.5) * placement.scale_x + placement.left) * cells[1] - 0.5
    values = _between(_between(logits, rows).T, columns).T
    mask = np.zeros((placement.height, placement.width), np.uint8, order="F")
    mask[top:bottom, left:right] = values > 0
    counts: bytes = coco_mask.encode(mask)["counts"]
    return counts


def _between(values: Floats, at: Floats) -> Floats:
    """Rows of ``values`` at fractional positions, linear in between, the first and last row beyond the ends."""
    at = np.clip(at, 0, len(values) - 1)
    low = np.minimum(at.astype(np.int64), max(0, len(values) - 2))
    share = (at - low)[:, None]
    result: Floats = values[low] * (1 - share) + values[np.minimum(low + 1, len(values) - 1)] * share
    return result
