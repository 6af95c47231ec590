"""Greedy non-maximum suppression, per class."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 64  # boxes that are compared with each other at once


def box_iou(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of one box, or of a column of boxes, with many.

    Args:
        box: float32 [4] or [m, 1, 4] of x1, y1, x2, y2.
        boxes: float32 [n, 4] of x1, y1, x2, y2 in the same frame.

    Returns:
        float32 [n] or [m, n] in [0, 1]; 0 where both boxes are empty.

    Example:
        >>> box_iou(np.array([0, 0, 2, 2], np.float32), np.array([[0, 0, 2, 1], [5, 5, 6, 6]], np.float32)).tolist()
        [0.5, 0.0]
    """
    left, top, right, bottom = (box[..., side] for side in range(4))
    lefts, tops, rights, bottoms = np.ascontiguousarray(boxes.T)
    width = np.minimum(right, rights) - np.maximum(left, lefts)
    height = np.minimum(bottom, bottoms) - np.maximum(top, tops)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = (right - left) * (bottom - top) + (rights - lefts) * (bottoms - tops) - intersection
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
        iou_threshold: a box that overlaps a kept one of its class by more than this is dropped, in [0, 1]; at 1 none
            is.
        max_detections: stop after this many are kept.

    Returns:
        intp [m], indices of the boxes kept, m <= max_detections, rising (so by falling score).

    Example:
        >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]], np.float32)
        >>> nms(boxes, np.zeros(3, np.int32), iou_threshold=0.45, max_detections=300).tolist()
        [0, 2]
    """
    if iou_threshold >= 1:  # no overlap is greater
        return np.arange(min(len(boxes), max_detections))
    remaining = np.arange(len(boxes))
    kept: list[NDArray[np.intp]] = []
    room = max_detections
    while len(remaining) and room > 0:
        block, remaining = remaining[:_BLOCK], remaining[_BLOCK:]
        best = block[_greedy(_overlapping(boxes, class_ids, block, block, iou_threshold))][:room]
        kept.append(best)
        room -= len(best)
        if len(remaining) and room > 0:
            remaining = remaining[~_overlapping(boxes, class_ids, best, remaining, iou_threshold).any(axis=0)]
    return np.concatenate(kept) if kept else np.zeros(0, np.intp)


def _overlapping(
    boxes: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    ones: NDArray[np.intp],
    others: NDArray[np.intp],
    iou_threshold: float,
) -> NDArray[np.bool_]:
    """Whether each of ``ones`` and each of ``others`` overlap too much: bool [ones, others]."""
    overlap = box_iou(boxes[ones][:, None], boxes[others])
    too_much: NDArray[np.bool_] = (overlap > iou_threshold) & (class_ids[ones][:, None] == class_ids[others])
    return too_much


def _greedy(overlapping: NDArray[np.bool_]) -> list[int]:
    """Indices kept when each, in order, drops the later ones that it overlaps; bool [n, n]."""
    dropped = [int.from_bytes(row.tobytes(), "little") for row in np.packbits(overlapping, axis=1, bitorder="little")]
    kept, gone = [], 0
    for index, row in enumerate(dropped):
        if not gone >> index & 1:
            kept.append(index)
            gone |= row
    return kept
