"""Requests that are right in every part and ask for more masks than anybody needs."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from tritonclient.grpc import service_pb2

from pipeline import contract
from tests.chaos.protocol import MODEL, Malformed

KIND = "masks without end"
WIDTH, HEIGHT = 8160, 6000
_LOWEST = {"confidence": 0.0, "iou": 1.0}


@functools.cache
def large_picture() -> bytes:
    """A JPEG of 49 megapixels in which the network finds something everywhere, if asked for confidence 0."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    picture = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()


def endless_masks(large: bytes | None = None) -> Iterator[Malformed]:
    """A thousand detections at 49 megapixels in every format, and eight such images in one request.

    Args:
        large: the picture, encoded; :func:`large_picture` if None.
    """
    large = large or large_picture()
    for mask_format in contract.MASK_FORMATS:
        yield _asking(f"one picture as {mask_format}", [large], mask_format)
    for mask_format in ("rle", "png"):
        images = [large] * contract.MAX_REQUEST_BATCH
        yield _asking(f"{len(images)} pictures as {mask_format}", images, mask_format)


def _asking(name: str, images: list[bytes], mask_format: str) -> Malformed:
    request = request_of(images)
    for key, value in _LOWEST.items():
        request.parameters[key].double_param = value
    request.parameters["max_detections"].int64_param = contract.DEFAULT_TOP_K
    request.parameters["mask_format"].string_param = mask_format
    return Malformed(KIND, name, grpc=request, valid=True, may_be_busy=True, mask_format=mask_format)


def request_of(images: Sequence[bytes]) -> service_pb2.ModelInferRequest:
    """A gRPC request of encoded images, right in every part."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name=contract.IMAGE.name, datatype=contract.IMAGE.dtype, shape=[len(images), 1])
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(image)) + image for image in images))
    return request
