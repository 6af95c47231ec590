"""From what callers give as an image to the bytes of an encoded image."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from client.errors import RequestError

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8]"
"""A path, the bytes of an encoded image, or pixels: uint8 [height, width, 3] RGB, or [height, width] gray."""

_CONVERTED_BRANDS: Final = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_CONVERTED_JPEG_QUALITY: Final = 95
_HEIC_REMEDY: Final = (
    "converting it here needs Pillow's plugin: `pip install pillow-heif` (the extra `heic`). Or send it as JPEG or PNG"
)


def encoded_image(image: ImageInput) -> bytes:
    """The bytes that are sent for an image.

    A file is not decoded: the server applies its EXIF orientation. HEIC and AVIF, which the server does not read, are
    converted to JPEG by Pillow. Pixels are sent losslessly as PNG; :func:`encode_pixels` can make smaller requests.

    Raises:
        RequestError: the file cannot be read, the value is no image, or it is HEIC or AVIF and Pillow cannot read it.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from error
        return _converted(data, str(path))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _converted(bytes(image), image_name(image))
    return encode_pixels(image)


def _converted(data: bytes, name: str) -> bytes:
    """HEIC and AVIF as JPEG, upright; everything else unchanged."""
    kind = _CONVERTED_BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if kind is None:
        return data
    from PIL import Image, ImageOps

    try:
        if kind == "HEIC":
            import pillow_heif

            pillow_heif.register_heif_opener()
        with Image.open(io.BytesIO(data)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        stream = io.BytesIO()
        upright.save(stream, "JPEG", quality=_CONVERTED_JPEG_QUALITY, subsampling=0)
    except ImportError as error:
        raise RequestError(f"{name}: {kind} is not supported by the server, and {_HEIC_REMEDY}") from error
    except Exception as error:  # third-party decoders, each with other errors
        raise RequestError(f"{name}: the {kind} cannot be converted: {error}. Send it as JPEG or PNG") from error
    return stream.getvalue()


def encode_pixels(pixels: NDArray[np.uint8], jpeg_quality: int | None = None) -> bytes:
    """Encode pixels as PNG, or as JPEG where a quality is given.

    Args:
        pixels: uint8 [height, width, 3] RGB, or [height, width] gray, in [0, 255].
        jpeg_quality: 1 to 100; None encodes a PNG, which is lossless.

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
            f"an array {array.dtype} {list(array.shape)}; allowed: uint8 [height, width, 3] RGB or [height, width] gray"
        )
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise RequestError(f"jpeg_quality is {jpeg_quality}; allowed: 1 to 100, or None for PNG")
    bgr = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    if jpeg_quality is None:
        suffix, flags = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]  # time matters more than bytes here
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
