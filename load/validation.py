"""Checks of answers: a fast reply with a wrong result is a failure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from load.payloads import Payload
from pipeline import rle
from pipeline.mask_formats import decode_mask
from pipeline.result import Segmentation

_BORDER_PIXELS: Final = 0.01
"""How far a box may leave the image, by rounding in FP32."""


def fault_of(result: Segmentation, payload: Payload, tolerance: float) -> str | None:
    """The first fault of the answer for one image; None if it is right.

    Args:
        result: the answer.
        payload: the image that was sent.
        tolerance: share of the expected detections by which the answer may differ, rounded down.
    """
    return next((f"{payload.name}: {fault}" for fault in _faults(result, payload, tolerance)), None)


def _faults(result: Segmentation, payload: Payload, tolerance: float) -> Iterator[str]:
    height, width = payload.image_size
    if result.image_size != payload.image_size:
        yield f"image_size is {result.image_size}; the image that was sent has {payload.image_size}"
    x1, y1, x2, y2 = result.boxes.reshape(-1, 4).T
    inside = (np.minimum(x1, y1) >= -_BORDER_PIXELS) & (x2 <= width + _BORDER_PIXELS) & (y2 <= height + _BORDER_PIXELS)
    good = inside & (x2 > x1) & (y2 > y1)  # false for NaN
    if not good.all():
        box = np.round(result.boxes[~good][0], 2).tolist()
        yield f"box {box} does not lie inside the image of {width} x {height} pixels"
    if not ((result.scores >= 0) & (result.scores <= 1)).all():
        yield "a score is not in [0, 1]"
    if (np.diff(result.scores) > 0).any():
        yield "the scores do not fall"
    for number, encoded in enumerate(result.encoded_masks):
        if fault := _mask_fault(encoded, result.mask_format, height, width):
            yield f"mask {number} {fault}"
    expected = payload.expected
    if expected is not None and abs(len(result) - expected) > math.floor(tolerance * expected):
        yield f"{len(result)} detections; expected {expected}"


def _mask_fault(encoded: bytes, mask_format: str, height: int, width: int) -> str | None:
    try:
        if mask_format == "rle":
            # The checks of decoding, without painting the whole image: the generator must stay cheap.
            runs = rle.decompress(encoded)
            if int(runs.sum()) != height * width or (runs < 0).any():
                return f"is not one of {width} x {height} pixels"
            return None if runs[1::2].any() else "is empty"
        if mask_format != "none" and not decode_mask(encoded, mask_format, height, width).any():
            return "is empty"
    except ValueError as error:
        return f"does not decode: {error}"
    return None
