"""Candidates of the network to detections: threshold, class filter, suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import BOX_COLUMNS, CLASS_COLUMN, FIRST_COEFFICIENT_COLUMN, SCORE_COLUMN
from pipeline.letterbox import Geometry
from pipeline.nms import nms
from pipeline.parameters import RequestParameters

_LEAST_SCORE: Final = 1e-3
"""Candidates below it are background: at ``confidence`` 0 they pass, but none of them is a lost instance."""


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first; n may be 0.

    Attributes:
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image, none of them empty.
        scores: float32 [n] in [0, 1], falling.
        class_ids: int32 [n].
        coefficients: float32 [n, C], weights of the C mask prototypes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    coefficients: NDArray[np.float32]


def may_be_cut(candidates: NDArray[np.float32], parameters: RequestParameters) -> bool:
    """Whether the network has more candidates above the threshold than it returns.

    Args:
        candidates: float32 [K, 6 + C], the best K, sorted by falling score.
        parameters: with the threshold.

    Returns:
        Whether even the last one is above the threshold: instances after it are lost.

    Example:
        >>> may_be_cut(np.array([[0.9], [0.4]], np.float32), RequestParameters(confidence=0.25))
        True
    """
    return bool(len(candidates)) and is_cut(float(candidates[-1, SCORE_COLUMN]), parameters)


def is_cut(last_score: float, parameters: RequestParameters) -> bool:
    """See :func:`may_be_cut`, of the last candidate's score."""
    return last_score >= max(parameters.confidence, _LEAST_SCORE)


def decode_candidates(candidates: NDArray[np.float32], geometry: Geometry, parameters: RequestParameters) -> Detections:
    """Turn one image's candidates into detections.

    Args:
        candidates: float32 [K, 6 + C], rows of score, cx, cy, w, h, class, C coefficients; boxes in network
            pixels; sorted by falling score, as TopK leaves them.
        geometry: where the image lies in the network's input.
        parameters: thresholds, class filter and bound.

    Returns:
        The remaining detections. Boxes entirely in the border do not count: they suppress nothing, and use up none of
        ``max_detections``.

    Example:
        >>> row = [0.9, 320, 320, 100, 50, 0]  # score, cx, cy, w, h, class; no coefficients
        >>> candidates = np.array([row, [0.1, *row[1:]]], np.float32)
        >>> found = decode_candidates(candidates, Geometry.fit(480, 640, 640, 640), RequestParameters())
        >>> found.boxes.tolist(), found.class_ids.tolist()
        ([[270.0, 215.0, 370.0, 265.0]], [0])
    """
    above = int(np.count_nonzero(candidates[:, SCORE_COLUMN] >= parameters.confidence))
    rows = candidates[:above]
    if parameters.classes is not None:
        rows = rows[np.isin(rows[:, CLASS_COLUMN], list(parameters.classes))]
    center, half = rows[:, BOX_COLUMNS][:, :2], rows[:, BOX_COLUMNS][:, 2:] / 2
    corners = np.concatenate([center - half, center + half], axis=1)
    boxes = geometry.to_image(corners)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not inside.all():
        rows, corners, boxes = rows[inside], corners[inside], boxes[inside]
    class_ids = rows[:, CLASS_COLUMN].astype(np.int32)
    kept = nms(corners, class_ids, parameters.iou, parameters.max_detections)
    return Detections(
        boxes=boxes[kept],
        scores=rows[kept, SCORE_COLUMN],
        class_ids=class_ids[kept],
        coefficients=rows[kept, FIRST_COEFFICIENT_COLUMN:],
    )
