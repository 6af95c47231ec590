"""Pre- and postprocessing as most examples have it: FP32 planes in, whole outputs out, masks upsampled whole."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.images import decode_image
from pipeline.letterbox import Geometry, letterbox


@dataclass(frozen=True)
class PlainResult:
    """Instances of one image, best first.

    Attributes:
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image.
        scores: float32 [n].
        class_ids: int32 [n].
        masks: n COCO compressed ``counts``.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    masks: list[bytes]


def to_planes(data: bytes, height: int, width: int) -> tuple[NDArray[np.float32], Geometry]:
    """Decode, letterbox and scale one image to float32 [3, height, width] in [0, 1]."""
    pixels = np.empty((height, width, 3), np.uint8)
    geometry = letterbox(decode_image(data), pixels)
    planes = pixels.transpose(2, 0, 1).astype(np.float32)
    planes /= 255
    return planes, geometry


def finish(
    detections: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    geometry: Geometry,
    confidence: float = 0.25,
    iou: float = 0.45,
    num_classes: int = 1,
) -> PlainResult:
    """Whole outputs of the network to instances.

    Args:
        detections: float32 [4 + classes + C, anchors] of cx, cy, w, h in network pixels, class scores, coefficients.
        prototypes: float32 [C, proto_height, proto_width].
        geometry: where the image lies in the network's input.
        confidence: least score.
        iou: overlap above which the worse box of a class is dropped.
        num_classes: class rows in ``detections``.
    """
    class_scores = detections[4 : 4 + num_classes].T
    best = class_scores.max(1)
    chosen = np.flatnonzero(best >= confidence)
    rows = detections.T[chosen]
    scores, class_ids = best[chosen], class_scores[chosen].argmax(1)
    kept = _suppress(rows[:, :4], scores, class_ids, confidence, iou)
    half = rows[kept, 2:4] / 2
    boxes = geometry.to_image(np.concatenate([rows[kept, :2] - half, rows[kept, :2] + half], axis=1))
    masks = whole_masks(prototypes, rows[kept, 4 + num_classes :], boxes, geometry)
    return PlainResult(boxes, scores[kept], class_ids[kept].astype(np.int32), encode_whole(masks))


def whole_masks(
    prototypes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    geometry: Geometry,
    stride: int = 4,
) -> NDArray[np.bool_]:
    """Masks by upsampling every plane of logits to the network's input, then to the whole image.

    Args:
        prototypes: float32 [C, proto_height, proto_width].
        coefficients: float32 [n, C].
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image.
        geometry: where the image lies in the network's input.
        stride: network pixels per prototype cell.

    Returns:
        bool [n, height, width]; a pixel is set when its center lies in the box and its logit is above 0.
    """
    logits = (coefficients @ prototypes.reshape(len(prototypes), -1)).reshape(-1, *prototypes.shape[1:])
    masks = np.zeros((len(logits), geometry.height, geometry.width), bool)
    rows = slice(geometry.pad_top, geometry.pad_top + geometry.resized_height)
    columns = slice(geometry.pad_left, geometry.pad_left + geometry.resized_width)
    for mask, plane, box in zip(masks, logits, boxes, strict=True):
        network = cv2.resize(plane, None, fx=stride, fy=stride, interpolation=cv2.INTER_LINEAR)
        whole = cv2.resize(network[rows, columns], (geometry.width, geometry.height), interpolation=cv2.INTER_LINEAR)
        np.greater(whole, 0, out=mask)
        _clear_outside(mask, box)
    return masks


def exact_masks(
    prototypes: NDArray[np.generic],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    geometry: Geometry,
    stride: float = 4.0,
) -> NDArray[np.bool_]:
    """The definition in float64: logits interpolated bilinearly at every pixel's center, cut at 0 and at the box.

    Args and result are those of :func:`whole_masks`.
    """
    logits = np.tensordot(coefficients.astype(np.float64), prototypes.astype(np.float64), 1)
    y, y_part = _positions(geometry.height, geometry.scale_y, geometry.pad_top, stride, logits.shape[1])
    x, x_part = _positions(geometry.width, geometry.scale_x, geometry.pad_left, stride, logits.shape[2])
    masks = np.zeros((len(logits), geometry.height, geometry.width), bool)
    for mask, plane, box in zip(masks, logits, boxes, strict=True):
        bands = plane[y] * (1 - y_part)[:, None] + plane[y + 1] * y_part[:, None]
        np.greater(bands[:, x] * (1 - x_part) + bands[:, x + 1] * x_part, 0, out=mask)
        _clear_outside(mask, box)
    return masks


def _positions(
    pixels: int, factor: float, pad: int, stride: float, cells: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    position = np.clip(((np.arange(pixels) + 0.5) * factor + pad) / stride - 0.5, 0, cells - 1)
    low = np.minimum(position.astype(np.intp), cells - 2)
    return low, position - low


def _clear_outside(mask: NDArray[np.bool_], box: NDArray[np.float32]) -> None:
    """Clear the pixels whose centers lie outside of the box."""
    left, top, right, bottom = np.ceil(box.astype(np.float64) - 0.5).astype(int).tolist()
    mask[: max(top, 0)] = False
    mask[max(bottom, 0) :] = False
    mask[:, : max(left, 0)] = False
    mask[:, max(right, 0) :] = False


def encode_whole(masks: NDArray[np.bool_]) -> list[bytes]:
    """COCO compressed ``counts`` of bool [n, height, width], by pycocotools."""
    return [bytes(coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]) for mask in masks]


def _suppress(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.intp],
    confidence: float,
    iou: float,
) -> NDArray[np.intp]:
    """Indices kept by OpenCV's suppression per class, best first; boxes are cx, cy, w, h."""
    corner = boxes.copy()
    corner[:, :2] -= boxes[:, 2:] / 2
    kept = cv2.dnn.NMSBoxesBatched(
        corner.tolist(), scores.tolist(), class_ids.tolist(), confidence, iou
    )  # fmt: skip
    return np.asarray(kept, np.intp).reshape(-1)
