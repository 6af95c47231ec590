"""Greedy non-maximum suppression, per class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def box_iou(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of one box with many.

    Args:
        box: float32 [4] of x1, y1, x2, y2.
        boxes: float32 [n, 4] of x1, y1, x2, y2 in the same frame.

    Returns:
        float32 [n] in [0, 1]; 0 where both boxes are empty.
    """
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = area + areas - intersection
    result: NDArray[np.float32] = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return result


def nms(
    boxes: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    iou_threshold: float,
    max_detections: int,
) -> NDArray[np.intp]:
    """Keep the best box of every group of overlapping boxes of one class.

    Args:
        boxes: float32 [n, 4] of x1, y1, x2, y2, sorted by falling score.
        class_ids: int32 [n]; boxes of different classes never suppress each other.
        iou_threshold: a box that overlaps a kept one of its class by more than this is dropped, in [0, 1].
        max_detections: stop after this many are kept.

    Returns:
        intp [m], indices of the boxes kept, m <= max_detections, rising (so by falling score).
    """
    remaining = np.arange(len(boxes))
    kept: list[int] = []
    while len(remaining) and len(kept) < max_detections:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        if not len(remaining):
            break
        overlap = box_iou(boxes[best], boxes[remaining])
        suppressed = (overlap > iou_threshold) & (class_ids[remaining] == class_ids[best])
        remaining = remaining[~suppressed]
    return np.array(kept, np.intp)
