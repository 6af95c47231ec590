"""Valid requests for more work than anybody needs: masks to encode, and images to decode."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from pipeline import contract
from tests.chaos.protocol import Malformed, infer_request

WIDTH, HEIGHT = 8160, 6000


@functools.cache
def large_image() -> bytes:
    """A JPEG of 49 megapixels in which the network finds something everywhere, if asked for confidence 0."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    pixels = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()


def endless_masks(large: bytes | None = None) -> Iterator[Malformed]:
    """A thousand detections at 49 megapixels in every format, and eight such images in one request."""
    large = large or large_image()
    eight = contract.MAX_REQUEST_BATCH
    for mask_format, images in [*((each, 1) for each in contract.MASK_FORMATS), ("rle", eight), ("png", eight)]:
        request = infer_request([large] * images)
        request.parameters["confidence"].double_param = 0.0
        request.parameters["iou"].double_param = 1.0
        request.parameters["max_detections"].int64_param = contract.DEFAULT_TOP_K
        request.parameters["mask_format"].string_param = mask_format
        yield Malformed(
            "masks without end",
            f"{images} x {mask_format}",
            message=request.SerializeToString(),
            valid=True,
            may_be_busy=True,
            mask_format=mask_format,
        )


def large_images() -> Iterator[Malformed]:
    """Images of 12 megapixels of the kinds that take longest to decode, one and eight in a request."""
    pixels = cv2.imdecode(np.frombuffer(large_image(), np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    assert pixels is not None
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 100]
    progressive = cv2.imencode(".jpg", pixels, options)[1].tobytes()
    kinds = {
        "PNG": cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
        "progressive JPEG": progressive,
        "progressive JPEG without end marker": progressive[:-2],
    }
    for name, data in kinds.items():
        for images in (1, contract.MAX_REQUEST_BATCH):
            yield holding(f"{images} x {name}", [data] * images)


def holding(name: str, images: Sequence[bytes]) -> Malformed:
    """A request of these images; one may be refused as too late, several are refused for their size."""
    message = infer_request(images).SerializeToString()
    return Malformed("images without end", name, message=message, valid=True, may_be_busy=len(images) == 1)
