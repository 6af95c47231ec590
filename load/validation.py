"""Checks of answers: a fast reply with a wrong result is a failure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from load.payloads import Payload
from pipeline import rle
from pipeline.mask_formats import decode_mask
from pipeline.result import Segmentation

_BORDER_PIXELS: Final = 0.01
"""How far a box may leave the image, by rounding in FP32."""


def fault_of(result: Segmentation, payload: Payload, tolerance: float) -> str | None:
    """The fault of the answer for one image; None if it is right.

    Args:
        result: the answer.
        payload: the image that was sent.
        tolerance: share of the expected detections by which the answer may differ, rounded down.
    """
    faults = (_size_fault, _box_fault, _score_fault, _mask_fault)
    found = next((fault for check in faults if (fault := check(result, payload))), None)
    found = found or _count_fault(len(result), payload.expected, tolerance)
    return f"{payload.name}: {found}" if found else None


def _size_fault(result: Segmentation, payload: Payload) -> str | None:
    if result.image_size == payload.image_size:
        return None
    return f"image_size is {result.image_size}; the image that was sent has {payload.image_size}"


def _box_fault(result: Segmentation, payload: Payload) -> str | None:
    height, width = payload.image_size
    boxes = result.boxes
    x1, y1, x2, y2 = boxes.T if len(boxes) else np.zeros((4, 0), np.float32)
    edge = _BORDER_PIXELS
    inside = (x1 >= -edge) & (y1 >= -edge) & (x2 <= width + edge) & (y2 <= height + edge)
    good = np.isfinite(boxes).all(axis=1) & inside & (x2 > x1) & (y2 > y1)
    if good.all():
        return None
    return f"box {np.round(boxes[~good][0], 2).tolist()} does not lie inside the image of {width} x {height} pixels"


def _score_fault(result: Segmentation, payload: Payload) -> str | None:
    del payload
    scores = result.scores
    if not np.isfinite(scores).all() or (scores < 0).any() or (scores > 1).any():
        return "a score is not in [0, 1]"
    if (np.diff(scores) > 0).any():
        return "the scores do not fall"
    return None


def _mask_fault(result: Segmentation, payload: Payload) -> str | None:
    height, width = payload.image_size
    for number, encoded in enumerate(result.encoded_masks):
        try:
            if result.mask_format == "rle":
                # What decoding checks, without painting the whole image: the generator must stay cheap.
                runs = rle.decompress(encoded)
                if int(runs.sum()) != height * width or (runs < 0).any():
                    return f"mask {number} is not one of {width} x {height} pixels"
                if not runs[1::2].any():
                    return f"mask {number} is empty"
            elif result.mask_format != "none" and not decode_mask(encoded, result.mask_format, height, width).any():
                return f"mask {number} is empty"
        except ValueError as error:
            return f"mask {number} does not decode: {error}"
    return None


def _count_fault(found: int, expected: int | None, tolerance: float) -> str | None:
    if expected is None or abs(found - expected) <= math.floor(tolerance * expected):
        return None
    return f"{found} detections; expected {expected}"
