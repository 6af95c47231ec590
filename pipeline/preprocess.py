"""One encoded image to one slice of the network's input."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.image_structure import read_header
from pipeline.images import ImageLimits, decode_for
from pipeline.letterbox import Geometry, letterbox


def preprocess(data: bytes, out: NDArray[np.uint8], limits: ImageLimits | None = None) -> Geometry:
    """Decode ``data`` and letterbox it into ``out``.

    Args:
        data: an encoded image (see :func:`pipeline.images.decode_for`).
        out: uint8 [input_height, input_width, 3], overwritten whole with RGB pixels.
        limits: bounds on the image.

    Returns:
        Where the image lies in ``out``.

    Raises:
        ImageError: the bytes cannot be decoded within the limits.
    """
    input_height, input_width = out.shape[:2]
    image, height, width = decode_for(data, input_height, input_width, limits)
    return letterbox(image, out, Geometry.fit(height, width, input_height, input_width))


_SECONDS_PER_PIXEL: Final = {"JPEG": 10e-9, "PNG": 40e-9, "WEBP": 40e-9, "TIFF": 40e-9, "BMP": 10e-9}
"""Measured on one core of an AMD EPYC with photographs of 24 megapixels; a progressive JPEG takes up to 36e-9."""


def decode_seconds(data: bytes) -> float:
    """About how long one core decodes an image, in seconds; 0 for what is no image."""
    try:
        header = read_header(data)
    except ImageError:
        return 0.0
    return header.width * header.height * _SECONDS_PER_PIXEL[header.format]
