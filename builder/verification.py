"""Compares a network with the export's file, on images that were not used for calibration.

Every network runs through ``pipeline``, the code that serves: what is compared is what callers get. The reference is
the unchanged file, decoded by independent code (:mod:`builder.source`).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from base.parallel import in_order
from builder.errors import CalibrationError
from builder.settings import Gate, Verification
from builder.source import Placement, SourceNetwork
from builder.source_check import Differences
from pipeline.errors import ImageError
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from pipeline.postprocess import ImageSegmentation, postprocess
from pipeline.preprocess import preprocess
from repository.network import Network

MATCH_IOU: Final = 0.5
"""Box IoU from which a detection matches one of the reference."""

ADVISED_IMAGES: Final = 20
ADVISED_INSTANCES: Final = 50
"""Below these, a comparison is called weak evidence: one detection in 50 already moves F1 by 0.01."""

LOST_INSTANCES: Final = 3
LOST_SHARE: Final = 0.05
"""A class that is too small for a class gate must not lose all its instances if it has this many."""

_SHOWN_FAILURES: Final = 4

_MAP_CONFIDENCE: Final = 0.001
"""Least score that COCO's precision-recall curves are drawn from (as ultralytics validates)."""
_MAP_DETECTIONS: Final = 100


@dataclass(frozen=True)
class ClassAgreement:
    """How the detections of one class differ from the reference's.

    Attributes:
        class_id: index of the class.
        name: of the class.
        reference_detections: of the reference, on all images.
        detections: of the network.
        matched: pairs with a box IoU of 0.5 or more.
        mask_iou: mean mask IoU of the pairs, in [0, 1]; 0 without pairs.
    """

    class_id: int
    name: str
    reference_detections: int
    detections: int
    matched: int
    mask_iou: float

    @property
    def f1(self) -> float:
        """2 matched / (detections + reference_detections), in [0, 1]."""
        return _f1(self.matched, self.reference_detections + self.detections)

    @property
    def instances(self) -> int:
        """What the class is judged by: the detections of the side that has more, so that invented ones count too."""
        return max(self.reference_detections, self.detections)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "f1": round(self.f1, 6), "mask_iou": round(self.mask_iou, 6)}


@dataclass(frozen=True)
class Shortfall:
    """One condition of a gate that is not met.

    Attributes:
        text: what was reached and what is needed, for people.
        missing: how much is missing, in [0, 1].
    """

    text: str
    missing: float


@dataclass(frozen=True)
class Agreement:
    """How one network's detections differ from the reference's.

    Attributes:
        images: number of images.
        reference_detections: of the reference, on all of them.
        detections: of the network.
        matched: pairs of one class with a box IoU of 0.5 or more.
        f1: 2 matched / (detections + reference_detections), in [0, 1].
        mask_iou: mean mask IoU of the pairs, in [0, 1].
        score_difference: mean absolute difference of the pairs' scores.
        map50_95: mask mAP at IoU 0.50 to 0.95 against the annotations; None without.
        map50: likewise at IoU 0.50.
        classes: the same per class, for the classes that either side detects, by rising index.
    """

    images: int
    reference_detections: int
    detections: int
    matched: int
    f1: float
    mask_iou: float
    score_difference: float
    map50_95: float | None = None
    map50: float | None = None
    classes: tuple[ClassAgreement, ...] = ()

    def shortfalls(self, gate: Gate) -> list[Shortfall]:
        """What of the gate is not reached; empty if it is passed.

        The network as a whole is gated, every class with enough instances, and of the other classes those that the
        network loses altogether.
        """
        if not self.reference_detections:
            return [
                Shortfall("the fp32 reference finds nothing on the verification images, so nothing can be compared", 1)
            ]
        found = []
        if self.f1 < gate.f1:
            found.append(Shortfall(f"F1 {self.f1:.4f} < {gate.f1}", gate.f1 - self.f1))
        if self.mask_iou < gate.mask_iou:
            found.append(Shortfall(f"mask IoU {self.mask_iou:.4f} < {gate.mask_iou}", gate.mask_iou - self.mask_iou))
        by_class = [shortfall for one in self.classes for shortfall in self._of_class(one, gate)]
        return found + sorted(by_class, key=lambda shortfall: -shortfall.missing)

    def _of_class(self, one: ClassAgreement, gate: Gate) -> Iterator[Shortfall]:
        matched = f"{one.matched} of {one.reference_detections} found, {one.detections - one.matched} surplus"
        if one.instances < gate.class_instances:
            if not one.matched and gate.class_f1 and self._is_considerable(one):
                yield Shortfall(f"class {one.name!r} is lost: none of {one.reference_detections} found", gate.class_f1)
            return
        if one.f1 < gate.class_f1:
            text = f"class {one.name!r}: F1 {one.f1:.4f} < {gate.class_f1} ({matched})"
            yield Shortfall(text, gate.class_f1 - one.f1)
        if one.matched and one.mask_iou < gate.class_mask_iou:
            text = f"class {one.name!r}: mask IoU {one.mask_iou:.4f} < {gate.class_mask_iou}"
            yield Shortfall(text, gate.class_mask_iou - one.mask_iou)

    def _is_considerable(self, one: ClassAgreement) -> bool:
        """Whether a class of few instances is more than chance: 3 of them, or 5 % of all."""
        count = one.reference_detections
        return count >= LOST_INSTANCES or count >= max(1.0, LOST_SHARE * self.reference_detections)

    def failures(self, gate: Gate) -> list[str]:
        """What of the gate is not reached, in words; empty if it is passed."""
        found = [shortfall.text for shortfall in self.shortfalls(gate)]
        more = len(found) - _SHOWN_FAILURES
        return found if more <= 1 else [*found[:_SHOWN_FAILURES], f"{more} more conditions of single classes"]

    def missing(self, gate: Gate) -> float:
        """How far the gate is missed, over all its conditions; 0 if it is passed."""
        return sum(shortfall.missing for shortfall in self.shortfalls(gate))

    def summary(self) -> str:
        """One line for people."""
        line = f"F1 {self.f1:.4f}, mask IoU {self.mask_iou:.4f}, score difference {self.score_difference:.4f}"
        worst = min(self.classes, key=lambda one: one.f1, default=None)
        if worst is not None and len(self.classes) > 1:
            line += f", worst of {len(self.classes)} classes {worst.name!r} with F1 {worst.f1:.4f}"
        return line if self.map50_95 is None else f"{line}, mask mAP50-95 {self.map50_95:.4f}"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        plain = {key: value for key, value in asdict(self).items() if key != "classes"}
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in plain.items()}


def segment_set(
    network: Network,
    paths: Sequence[Path],
    input_size: tuple[int, int],
    settings: Verification,
    on_image: Callable[[], None],
    low_scores: bool = False,
    *,
    stretch: bool = False,
    threads: int = 1,
) -> list[ImageSegmentation]:
    """Run a network over images, through the code that serves; masks are COCO compressed.

    Args:
        network: what to run; with several threads, one that any of them may call.
        paths: the images.
        input_size: height and width of the network's input.
        settings: thresholds.
        on_image: called once per image, for progress.
        low_scores: keep detections down to the score that mAP needs.
        stretch: whether images fill the input.
        threads: images at a time.

    Raises:
        CalibrationError: an image cannot be read; names it.
    """
    confidence = _least_score(settings, low_scores)
    parameters = RequestParameters(confidence=confidence, iou=settings.iou, max_detections=_MAP_DETECTIONS)

    def segment(path: Path) -> ImageSegmentation:
        image, geometry = _letterboxed(path, input_size, stretch=stretch)
        candidates, prototypes = network(image[None])
        return postprocess(candidates[0], prototypes[0], geometry, parameters)

    found = []
    for one in in_order(segment, paths, threads):
        found.append(one)
        on_image()
    return found


def segment_source(
    source: SourceNetwork,
    paths: Sequence[Path],
    input_size: tuple[int, int],
    settings: Verification,
    top_k: int,
    on_image: Callable[[], None],
    low_scores: bool = False,
    *,
    stretch: bool = False,
    threads: int = 1,
) -> tuple[list[ImageSegmentation], int]:
    """Run the export's own file over images, decoded by independent code; otherwise like :func:`segment_set`.

    Args:
        source: the file.
        paths: the images.
        input_size: height and width of the network's input.
        settings: thresholds.
        top_k: anchors that are decoded per image, the best first: as many as the served network gives.
        on_image: called once per image, for progress.
        low_scores: keep detections down to the score that mAP needs.
        stretch: whether images fill the input.
        threads: images at a time.

    Returns:
        The detections; and how many images have more anchors above the threshold than ``top_k``.
    """
    confidence = _least_score(settings, low_scores)

    def segment(path: Path) -> tuple[ImageSegmentation, bool]:
        image, geometry = _letterboxed(path, input_size, stretch=stretch)
        size, scale = (geometry.height, geometry.width), (geometry.scale_x, geometry.scale_y)
        placement = Placement(*size, *scale, geometry.pad_left, geometry.pad_top)
        result = source.segment(image, placement, (confidence, settings.iou, _MAP_DETECTIONS, top_k))
        boxes, scores = result.boxes.astype(np.float32), result.scores.astype(np.float32)
        instances = boxes, scores, result.class_ids.astype(np.int32), result.masks
        return ImageSegmentation(*instances, *size), 0 < settings.confidence <= result.left_out

    found = []
    cut = 0
    for one, is_cut in in_order(segment, paths, threads):
        found.append(one)
        cut += is_cut
        on_image()
    return found, cut


def _least_score(settings: Verification, low_scores: bool) -> float:
    return min(_MAP_CONFIDENCE, settings.confidence) if low_scores else settings.confidence


def letterboxed(
    paths: Sequence[Path], input_size: tuple[int, int], *, stretch: bool = False
) -> Iterator[tuple[NDArray[np.uint8], Geometry]]:
    """Each image as the network sees it, uint8 [H, W, 3] RGB, and where it lies in there.

    Raises:
        CalibrationError: an image cannot be read; names it.
    """
    for path in paths:
        yield _letterboxed(path, input_size, stretch=stretch)


def _letterboxed(path: Path, input_size: tuple[int, int], *, stretch: bool) -> tuple[NDArray[np.uint8], Geometry]:
    image = np.empty((*input_size, 3), np.uint8)
    try:
        return image, preprocess(path.read_bytes(), image, stretch=stretch)
    except (ImageError, OSError) as error:
        raise CalibrationError(f"verification image {path}: {error}; remove or replace it") from error


def compare(
    reference: Sequence[ImageSegmentation],
    found: Sequence[ImageSegmentation],
    confidence: float,
    class_names: Sequence[str] = (),
) -> Agreement:
    """Match detections image by image, best first, and count, over all classes and per class.

    Args:
        reference: of the fp32 network; may hold scores below ``confidence``, which do not count.
        found: of the network in question, on the same images in the same order.
        confidence: least score of a detection that counts.
        class_names: one per class; a class without a name is called ``class_<index>``.
    """
    left_counts: Counter[int] = Counter()
    right_counts: Counter[int] = Counter()
    ious: dict[int, list[float]] = defaultdict(list)
    differences: list[float] = []
    for expected, actual in zip(reference, found, strict=True):
        left_counts.update(expected.class_ids[expected.scores >= confidence].tolist())
        right_counts.update(actual.class_ids[actual.scores >= confidence].tolist())
        for one, other in _matches(expected, actual, confidence):
            iou = _mask_iou(expected.masks[one], actual.masks[other], [actual.height, actual.width])
            ious[int(expected.class_ids[one])].append(iou)
            differences.append(abs(float(expected.scores[one]) - float(actual.scores[other])))
    classes = tuple(
        ClassAgreement(
            class_id=index,
            name=class_names[index] if index < len(class_names) else f"class_{index}",
            reference_detections=left_counts[index],
            detections=right_counts[index],
            matched=len(ious[index]),
            mask_iou=float(np.mean(ious[index])) if ious[index] else 0.0,
        )
        for index in sorted(left_counts | right_counts)
    )
    every = [iou for of_class in ious.values() for iou in of_class]
    return Agreement(
        images=len(reference),
        reference_detections=left_counts.total(),
        detections=right_counts.total(),
        matched=len(every),
        f1=_f1(len(every), left_counts.total() + right_counts.total()),
        mask_iou=float(np.mean(every)) if every else 0.0,
        score_difference=float(np.mean(differences)) if differences else 0.0,
        classes=classes,
    )


def detection_differences(
    reference: Sequence[ImageSegmentation],
    found: Sequence[ImageSegmentation],
    input_size: tuple[int, int],
    confidence: float,
    *,
    stretch: bool = False,
) -> Differences:
    """How far boxes and scores of matched detections differ.

    Args:
        reference: of the export's file, image by image.
        found: of the network, on the same images.
        input_size: height and width of the network's input.
        confidence: least score of a detection that counts.
        stretch: whether images fill the input.
    """
    boxes, scores = [], []
    for expected, actual in zip(reference, found, strict=True):
        where = Geometry.fit(expected.height, expected.width, *input_size, stretch=stretch)
        scale = np.array([where.scale_x, where.scale_y] * 2)
        left, right = np.array(list(_matches(expected, actual, confidence)), int).reshape(-1, 2).T
        boxes.append((np.abs(expected.boxes[left].astype(np.float64) - actual.boxes[right]) * scale).max(axis=1))
        scores.append(np.abs(expected.scores[left].astype(np.float64) - actual.scores[right]))
    return Differences.of(len(reference), boxes, scores)


def _f1(matched: int, total: int) -> float:
    """F1 of pairs among the detections of both sides; 1 where there are none."""
    return 2 * matched / total if total else 1.0


def sample_warnings(agreement: Agreement) -> list[str]:
    """What makes a comparison weak evidence, in words; empty if nothing does."""
    images, instances = agreement.images, agreement.reference_detections
    if not instances:
        return [
            f"the export finds nothing in the {images} verification image(s), so accuracy cannot be measured: give "
            "images that show what the model was trained on (--verify-images), or lower verification.confidence"
        ]
    if images >= ADVISED_IMAGES and instances >= ADVISED_INSTANCES:
        return []
    return [
        f"verified on {images} image(s) with {instances} instance(s), which says little about accuracy: "
        f"{ADVISED_IMAGES} images and {ADVISED_INSTANCES} instances are the least. Give more with --verify-images"
    ]


def _mask_iou(one: bytes, other: bytes, size: list[int]) -> float:
    """Intersection over union of two compressed masks; two empty ones are the same."""
    masks = [{"size": size, "counts": counts} for counts in (one, other)]
    if not coco_mask.area(masks).any():
        return 1.0
    return float(coco_mask.iou(masks[:1], masks[1:], [0])[0, 0])


def mask_map(found: Sequence[ImageSegmentation], paths: Sequence[Path], annotations: Path) -> tuple[float, float]:
    """Mask mAP by COCO's own evaluation.

    Args:
        found: detections down to low scores, one entry per path.
        paths: the images; the annotations name them by their file names.
        annotations: COCO instances file. Its categories, by rising id, are the network's classes.

    Returns:
        mAP at IoU 0.50 to 0.95, and at 0.50.

    Raises:
        CalibrationError: the file cannot be read, or lacks an image.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations))
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"{annotations}: not a COCO instances file ({error})") from error
    ids = {Path(image["file_name"]).name: image["id"] for image in truth.dataset["images"]}
    missing = [path.name for path in paths if path.name not in ids]
    if missing:
        raise CalibrationError(f"{annotations} lacks {len(missing)} of the images, {missing[0]} among them")
    categories = sorted(truth.getCatIds())
    results = [
        {**entry, "image_id": ids[path.name]}
        for path, image in zip(paths, found, strict=True)
        for entry in _coco_results(image, categories)
    ]
    if not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "segm")
        evaluation.params.imgIds = [ids[path.name] for path in paths]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def _coco_results(image: ImageSegmentation, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    for score, class_id, mask in zip(image.scores, image.class_ids, image.masks, strict=True):
        if class_id < len(categories):
            yield {
                "category_id": categories[class_id],
                "score": float(score),
                "segmentation": {"size": [image.height, image.width], "counts": mask.decode()},
            }


def _matches(expected: ImageSegmentation, actual: ImageSegmentation, confidence: float) -> Iterator[tuple[int, int]]:
    """Pairs of indices: each detection, best first, takes the free reference of its class that it overlaps most."""
    left, right = (int(np.count_nonzero(image.scores >= confidence)) for image in (expected, actual))
    if not left or not right:
        return
    overlaps = _box_ious(actual.boxes[:right], expected.boxes[:left])
    overlaps[actual.class_ids[:right, None] != expected.class_ids[None, :left]] = 0.0
    for other in range(right):
        one = int(np.argmax(overlaps[other]))
        if overlaps[other, one] >= MATCH_IOU:
            yield one, other
            overlaps[:, one] = 0.0


def _box_ious(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of every pair: float64 [n, m] of boxes [n, 4] and [m, 4], x1, y1, x2, y2."""
    one, other = (array.astype(np.float64) for array in (boxes[:, None], others[None]))
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    both = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(array[..., 2:] - array[..., :2], axis=-1) for array in (one, other)]
    result: NDArray[np.float64] = both / np.maximum(areas[0] + areas[1] - both, 1e-12)
    return result
