"""Requests that are right in every part and hold more to decode than anybody sends at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from pipeline import contract
from tests.chaos.corpus_masks import large_picture, request_of
from tests.chaos.protocol import Malformed

KIND = "pictures without end"


def large_pictures() -> Iterator[Malformed]:
    """Pictures of 12 megapixels of the kinds that take longest to decode, alone and eight in one request."""
    picture = cv2.imdecode(np.frombuffer(large_picture(), np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    progressive = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 100])[1]
    kinds = {
        "PNG": cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
        "progressive JPEG": progressive.tobytes(),
        "progressive JPEG without end marker": progressive.tobytes()[:-2],
    }
    for name, data in kinds.items():
        for images in (1, contract.MAX_REQUEST_BATCH):
            yield holding(f"{images} x {name}", [data] * images)


def holding(name: str, images: Sequence[bytes]) -> Malformed:
    """A request of these images; one alone may come too late, several are refused for what they are."""
    return Malformed(KIND, name, grpc=request_of(images), valid=True, may_be_busy=len(images) == 1)
