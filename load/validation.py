"""Checks of answers: a fast reply with a wrong result is a failure."""

from __future__ import annotations

import math

from load.payloads import Payload
from pipeline import rle
from pipeline.mask_formats import decode_mask
from pipeline.result import Segmentation


def fault_of(result: Segmentation, payload: Payload, tolerance: float) -> str | None:
    """What is wrong with the answer for one image, beside what the client refuses to read; None if it is right.

    Args:
        result: the answer, as :meth:`client.request.Request.parse` checked it.
        payload: the image that was sent.
        tolerance: share of the expected detections by which the answer may differ, rounded down.
    """
    for number, encoded in enumerate(result.encoded_masks):
        try:
            if _is_empty(encoded, result):
                return f"{payload.name}: mask {number} is empty"
        except ValueError as error:
            return f"{payload.name}: mask {number} does not decode: {error}"
    expected = payload.expected
    if expected is not None and abs(len(result) - expected) > math.floor(tolerance * expected):
        return f"{payload.name}: {len(result)} detections; expected {expected}"
    return None


def _is_empty(encoded: bytes, result: Segmentation) -> bool:
    if result.mask_format == "rle":
        return rle.area(encoded) == 0  # without painting the whole image: the generator must stay cheap
    return result.mask_format != "none" and not decode_mask(encoded, result.mask_format, *result.image_size).any()
