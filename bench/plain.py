"""Pre- and postprocessing as in most examples: FP32 planes in, whole outputs out, masks upsampled whole."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from bench.synthetic import INPUT_SIZE
from pipeline.images import decode_image
from pipeline.letterbox import Geometry, letterbox
from pipeline.parameters import RequestParameters
from pipeline.postprocess import ImageSegmentation

_DEFAULTS: Final = RequestParameters()
_STRIDE: Final = 4  # network pixels per cell of the prototypes


def to_planes(data: bytes) -> tuple[NDArray[np.float32], Geometry]:
    """Decode, letterbox and scale one image to float32 [3, 640, 640] in [0, 1]."""
    pixels = np.empty((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    geometry = letterbox(decode_image(data), pixels)
    planes = pixels.transpose(2, 0, 1).astype(np.float32)
    planes /= 255
    return planes, geometry


def finish(detections: NDArray[np.float32], prototypes: NDArray[np.float32], geometry: Geometry) -> ImageSegmentation:
    """Whole outputs of the network to instances of one class, their masks as COCO compressed ``counts``.

    Args:
        detections: float32 [5 + C, anchors] of cx, cy, w, h in network pixels, score, coefficients.
        prototypes: float32 [C, proto_height, proto_width].
        geometry: where the image lies in the network's input.
    """
    rows = detections.T[detections[4] >= _DEFAULTS.confidence]
    corner = rows[:, :4].copy()
    corner[:, :2] -= rows[:, 2:4] / 2
    kept = cv2.dnn.NMSBoxes(corner.tolist(), rows[:, 4].tolist(), _DEFAULTS.confidence, _DEFAULTS.iou)
    rows = rows[np.asarray(kept, np.intp).reshape(-1)]
    half = rows[:, 2:4] / 2
    boxes = geometry.to_image(np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1))
    masks = [encode(mask) for mask in whole_masks(prototypes, rows[:, 5:], boxes, geometry)]
    class_ids = np.zeros(len(rows), np.int32)
    return ImageSegmentation(boxes, rows[:, 4], class_ids, masks, geometry.height, geometry.width)


def whole_masks(
    prototypes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    geometry: Geometry,
) -> NDArray[np.bool_]:
    """Masks by upsampling every plane of logits to the network's input, then to the whole image.

    Args:
        prototypes: float32 [C, proto_height, proto_width].
        coefficients: float32 [n, C].
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image.
        geometry: where the image lies in the network's input.

    Returns:
        bool [n, height, width]; a pixel is set when its center lies in the box and its logit is above 0.
    """
    logits = (coefficients @ prototypes.reshape(len(prototypes), -1)).reshape(-1, *prototypes.shape[1:])
    masks = np.zeros((len(logits), geometry.height, geometry.width), bool)
    rows = slice(geometry.pad_top, geometry.pad_top + geometry.resized_height)
    columns = slice(geometry.pad_left, geometry.pad_left + geometry.resized_width)
    for mask, plane, box in zip(masks, logits, boxes, strict=True):
        network = cv2.resize(plane, None, fx=_STRIDE, fy=_STRIDE, interpolation=cv2.INTER_LINEAR)
        whole = cv2.resize(network[rows, columns], (geometry.width, geometry.height), interpolation=cv2.INTER_LINEAR)
        np.greater(whole, 0, out=mask)
        _clear_outside(mask, box)
    return masks


def exact_masks(
    prototypes: NDArray[np.generic],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    geometry: Geometry,
) -> NDArray[np.bool_]:
    """The definition in float64: logits interpolated bilinearly at every pixel's center, cut at 0 and at the box.

    Args and result are those of :func:`whole_masks`.
    """
    logits = np.tensordot(coefficients.astype(np.float64), prototypes.astype(np.float64), 1)
    y, y_part = _positions(geometry.height, geometry.scale_y, geometry.pad_top, logits.shape[1])
    x, x_part = _positions(geometry.width, geometry.scale_x, geometry.pad_left, logits.shape[2])
    masks = np.zeros((len(logits), geometry.height, geometry.width), bool)
    for mask, plane, box in zip(masks, logits, boxes, strict=True):
        bands = plane[y] * (1 - y_part)[:, None] + plane[y + 1] * y_part[:, None]
        np.greater(bands[:, x] * (1 - x_part) + bands[:, x + 1] * x_part, 0, out=mask)
        _clear_outside(mask, box)
    return masks


def _positions(pixels: int, factor: float, pad: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    position = np.clip(((np.arange(pixels) + 0.5) * factor + pad) / _STRIDE - 0.5, 0, cells - 1)
    low = np.minimum(position.astype(np.intp), cells - 2)
    return low, position - low


def _clear_outside(mask: NDArray[np.bool_], box: NDArray[np.float32]) -> None:
    """Clear the pixels whose centers lie outside of the box."""
    left, top, right, bottom = np.ceil(box.astype(np.float64) - 0.5).astype(int).tolist()
    mask[: max(top, 0)] = False
    mask[max(bottom, 0) :] = False
    mask[:, : max(left, 0)] = False
    mask[:, max(right, 0) :] = False


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """COCO compressed ``counts`` of a mask [height, width] of 0 and 1, by pycocotools."""
    return bytes(coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"])
