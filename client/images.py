"""What callers hand over as an image, to the bytes of an encoded image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from client.errors import RequestError

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8]"
"""A path, the bytes of an encoded image, or pixels: uint8 [height, width, 3] RGB, or [height, width] grey."""


def encoded_image(image: ImageInput) -> bytes:
    """The bytes that are sent for an image.

    A file is read and not decoded: the server honours its EXIF orientation. Pixels are sent as PNG, so that the
    server sees exactly them; :func:`encode_pixels` trades that for smaller requests.

    Raises:
        RequestError: the file cannot be read, or the value is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            return path.read_bytes()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from error
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    return encode_pixels(image)


def encode_pixels(pixels: NDArray[np.uint8], jpeg_quality: int | None = None) -> bytes:
    """Encode pixels as PNG, or as JPEG where a quality is given.

    Args:
        pixels: uint8 [height, width, 3] RGB, or [height, width] grey, in [0, 255].
        jpeg_quality: 1 to 100; None encodes a PNG, which keeps every pixel as it is.

    Raises:
        RequestError: another type or shape, or a quality out of range.
    """
    array: Any = pixels
    if not isinstance(array, np.ndarray):
        raise RequestError(
            f"an image of type {type(array).__name__}; allowed: a path, encoded bytes, or a NumPy array of pixels"
        )
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise RequestError(
            f"an array {array.dtype} {list(array.shape)}; allowed: uint8 [height, width, 3] RGB or [height, width] grey"
        )
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise RequestError(f"jpeg_quality is {jpeg_quality}; allowed: 1 to 100, or None for PNG")
    bgr = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    if jpeg_quality is None:
        suffix, flags = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]  # time is dearer than bytes here
    else:
        suffix, flags = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    try:
        done, encoded = cv2.imencode(suffix, bgr, flags)
    except cv2.error as error:
        raise RequestError(f"{image_name(pixels)} cannot be encoded as {suffix[1:]}: {error.err}") from error
    if not done:
        raise RequestError(f"{image_name(pixels)} cannot be encoded as {suffix[1:]}")
    return encoded.tobytes()


def image_name(image: Any) -> str:
    """What messages call an image."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, np.ndarray):
        return f"array of {'x'.join(map(str, image.shape))}"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"image of {len(image)} bytes"
    return f"object of type {type(image).__name__}"
