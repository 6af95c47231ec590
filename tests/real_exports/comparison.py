"""What ultralytics finds against what is served, instance by instance. Uses nothing of the project's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.real_exports.cases import CONFIDENCE, IOU

SCORE_MARGIN = 1e-4
IOU_MARGIN = 0.005
"""How near a score must be to the confidence, or an overlap to the allowed one, for only one side to have an instance.

Ultralytics moves boxes by 7680 pixels per class before it compares them: of class 79, that rounds to 1/16 pixel."""


@dataclass(frozen=True)
class Instances:
    """Instances of one picture."""

    boxes: NDArray[np.float32]  # float32 [n, 4] of x1, y1, x2, y2 in pixels
    scores: NDArray[np.float32]  # float32 [n]
    class_ids: NDArray[np.int32]  # int32 [n]
    masks: NDArray[np.bool_]  # bool [n, height, width]


@dataclass(frozen=True)
class Reference:
    """What ultralytics' ``predict(retina_masks=True)`` finds in one picture."""

    instances: Instances  # what suppression leaves, with its masks
    exact_masks: NDArray[np.bool_]  # bool [n, height, width], the same logits sampled bilinearly at the pixels' centers
    in_results: NDArray[np.bool_]  # bool [n], whether its results hold the instance: those of empty masks are left out


@dataclass(frozen=True)
class Difference:
    """How what is served differs from ultralytics."""

    reference: int  # instances in ultralytics' results
    missing: int  # those of them that are not served: none of the class, or none within a pixel
    extra: int  # instances served that ultralytics does not find
    # Further ones that only one side has, because a score lies on the confidence asked for, or an overlap on the one
    # allowed, within what scores and boxes may differ
    borderline: int
    served_empty: int  # instances served that ultralytics finds too, and leaves out because their masks are empty
    box_px: float  # largest difference of a box's side
    score: float  # largest difference of a score
    mask_iou: float  # mean IoU with ultralytics' masks
    exact_mask_iou: float  # mean IoU with the exact masks


def read_references(path: Path, pictures: list[str]) -> list[Reference]:
    """What ``tests.real_exports.generate`` wrote, for each picture."""
    references = []
    with np.load(path) as found:
        for picture in pictures:
            boxes, scores, class_ids = (found[f"{picture}/{name}"] for name in ("boxes", "scores", "class_ids"))
            masks, exact = (
                np.unpackbits(found[f"{picture}/{name}"], axis=-1).astype(bool) for name in ("masks", "exact_masks")
            )
            in_results = masks.any(axis=(1, 2))
            if int(in_results.sum()) != int(found[f"{picture}/results"]):
                raise ValueError(f"{path}: {picture}: the results are not the instances whose masks are not empty")
            references.append(Reference(Instances(boxes, scores, class_ids, masks), exact, in_results))
    return references


def compare(references: list[Reference], served: list[Instances]) -> Difference:
    """Match the instances of each picture and measure what is left between them."""
    boxes: list[float] = []
    scores, ious, exact_ious = [], [], []
    found = missing = extra = borderline = served_empty = 0
    for reference, other in zip(references, served, strict=True):
        instances = reference.instances
        pairs = _pairs(instances, other)
        found += int(reference.in_results.sum())
        lost, added, excused = _unmatched(reference, other, pairs)
        missing, extra, borderline = missing + lost, extra + added, borderline + excused
        served_empty += sum(not reference.in_results[one] for one, _ in pairs)
        for one, two in pairs:
            boxes.append(float(np.abs(instances.boxes[one] - other.boxes[two]).max()))
            scores.append(abs(float(instances.scores[one]) - float(other.scores[two])))
            ious.append(mask_iou(instances.masks[one], other.masks[two]))
            exact_ious.append(mask_iou(reference.exact_masks[one], other.masks[two]))
    return Difference(
        reference=found,
        missing=missing,
        extra=extra,
        borderline=borderline,
        served_empty=served_empty,
        box_px=max(boxes, default=0.0),
        score=max(scores, default=0.0),
        mask_iou=float(np.mean(ious)) if ious else 0.0,
        exact_mask_iou=float(np.mean(exact_ious)) if exact_ious else 0.0,
    )


def mask_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 if both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def _unmatched(reference: Reference, other: Instances, pairs: list[tuple[int, int]]) -> tuple[int, int, int]:
    """How many are left of the results, of the second, and how many more are borderline."""
    one = reference.instances
    boxes, scores, class_ids = (
        np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("boxes", "scores", "class_ids")
    )
    matched = {index for first, second in pairs for index in (first, len(one.scores) + second)}
    matched |= set(np.flatnonzero(~reference.in_results).tolist())
    left = [index for index in range(len(scores)) if index not in matched]
    excused: set[int] = set()
    for index in sorted(left, key=lambda index: -scores[index]):
        rivals = (class_ids == class_ids[index]) & (scores > scores[index] - SCORE_MARGIN)
        overlaps = _box_ious(boxes[index], boxes)
        doubtful = rivals & (np.abs(overlaps - IOU) < IOU_MARGIN)
        for rival in excused:  # what it suppresses is in doubt too
            doubtful[rival] |= rivals[rival] and overlaps[rival] > IOU
        doubtful[index] = scores[index] < CONFIDENCE + SCORE_MARGIN
        if doubtful.any():
            excused.add(index)
    lost = [index for index in left if index not in excused]
    return sum(index < len(one.scores) for index in lost), sum(index >= len(one.scores) for index in lost), len(excused)


def _box_ious(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    box, boxes = box.astype(np.float64), boxes.astype(np.float64)
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _pairs(one: Instances, other: Instances) -> list[tuple[int, int]]:
    """Each instance with the nearest one of its class that is still free, if its box lies within a pixel."""
    pairs = []
    free = np.ones(len(other.scores), bool)
    for index, (box, class_id) in enumerate(zip(one.boxes, one.class_ids, strict=True)):
        distance = np.abs(other.boxes - box).max(axis=1, initial=0)
        distance[~free | (other.class_ids != class_id)] = np.inf
        nearest = int(distance.argmin()) if len(distance) else -1
        if nearest >= 0 and distance[nearest] < 1:
            free[nearest] = False
            pairs.append((index, nearest))
    return pairs
