"""What ultralytics finds against what is served, instance by instance. Uses nothing of the project's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Instances:
    """Instances of one picture.

    Attributes:
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels.
        scores: float32 [n].
        class_ids: int32 [n].
        masks: bool [n, height, width].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Reference:
    """What ultralytics' ``predict(retina_masks=True)`` finds in one picture.

    Attributes:
        instances: what suppression leaves, with its masks.
        exact_masks: bool [n, height, width], the same logits sampled bilinearly at the pixels' centres.
        results: how many of them are in its results: those of empty masks are not.
    """

    instances: Instances
    exact_masks: NDArray[np.bool_]
    results: int


@dataclass(frozen=True)
class Difference:
    """How what is served differs from ultralytics.

    Attributes:
        reference: instances that ultralytics finds.
        missing: those of them that are not served: none of the class, or none within a pixel.
        extra: instances served that ultralytics does not find.
        left_out: instances that ultralytics finds, and leaves out of its results because their masks are empty.
        box_px: largest difference of a box's side.
        score: largest difference of a score.
        mask_iou: mean IoU with ultralytics' masks.
        exact_mask_iou: mean IoU with the exact masks.
    """

    reference: int
    missing: int
    extra: int
    left_out: int
    box_px: float
    score: float
    mask_iou: float
    exact_mask_iou: float


def read_references(path: Path, pictures: list[str]) -> list[Reference]:
    """What ``tests.real_exports.generate`` wrote, for each picture."""
    references = []
    with np.load(path) as found:
        for picture in pictures:
            entry = {name: found[f"{picture}/{name}"] for name in ("boxes", "scores", "class_ids", "results")}
            masks, exact = (
                np.unpackbits(found[f"{picture}/{name}"], axis=-1).astype(bool) for name in ("masks", "exact_masks")
            )
            instances = Instances(entry["boxes"], entry["scores"], entry["class_ids"], masks)
            references.append(Reference(instances, exact, int(entry["results"])))
    return references


def compare(references: list[Reference], served: list[Instances]) -> Difference:
    """Match the instances of each picture and measure what is left between them."""
    boxes, scores, ious, exact_ious = [], [], [], []
    found = extra = left_out = 0
    for reference, other in zip(references, served, strict=True):
        instances = reference.instances
        pairs = _pairs(instances, other)
        found += len(instances.scores)
        extra += len(other.scores) - len(pairs)
        left_out += len(instances.scores) - reference.results
        for one, two in pairs:
            boxes.append(float(np.abs(instances.boxes[one] - other.boxes[two]).max()))
            scores.append(abs(float(instances.scores[one]) - float(other.scores[two])))
            ious.append(mask_iou(instances.masks[one], other.masks[two]))
            exact_ious.append(mask_iou(reference.exact_masks[one], other.masks[two]))
    return Difference(
        reference=found,
        missing=found - len(boxes),
        extra=extra,
        left_out=left_out,
        box_px=max(boxes, default=0.0),
        score=max(scores, default=0.0),
        mask_iou=float(np.mean(ious)) if ious else 0.0,
        exact_mask_iou=float(np.mean(exact_ious)) if exact_ious else 0.0,
    )


def mask_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 if both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


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
