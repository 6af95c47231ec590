"""Encoded images to pixels, with every bound checked before a pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.image_structure import ImageHeader, check_jpeg, check_png, plain_png, read_header

_QUARTER_TURNS: Final = (5, 6, 7, 8)
_USUAL_SCANS: Final = 20  # of a progressive JPEG: libjpeg writes 10, optimisers up to 20


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on one encoded image.

    Attributes:
        max_pixels: most pixels (width times height) that are decoded. OpenCV's own bound, 2**30, holds besides.
        max_bytes: most bytes of the encoded image.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 64 * 1024 * 1024


def check_image(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Check an encoded image against the limits, and that it was not cut off, before it is decoded.

    Raises:
        ImageError: empty, too large, of no accepted format, truncated, or made to keep a decoder busy.
    """
    if len(data) > limits.max_bytes:
        fault = f"the image has {len(data)} bytes; allowed: {limits.max_bytes}. Send a smaller file"
        raise ImageError(fault, "too_large")
    header = read_header(data)
    if header.width < 1 or header.height < 1:
        raise ImageError(f"the {header.format} is {header.width}x{header.height} pixels: its header is damaged")
    if header.width * header.height > limits.max_pixels:
        raise ImageError(
            f"the image is {header.width}x{header.height} pixels, {header.width * header.height} in all; "
            f"allowed: {limits.max_pixels}. Send a smaller image",
            "too_large",
        )
    if header.tile_pixels > limits.max_pixels:
        fault = f"the TIFF has tiles of {header.tile_pixels} pixels; allowed: {limits.max_pixels}. Encode it again"
        raise ImageError(fault, "too_large")
    if header.format == "JPEG":
        check_jpeg(data, header, _USUAL_SCANS * limits.max_pixels)
    if header.format == "PNG":
        check_png(data)
    return header


def decode_image(data: bytes, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Decode one encoded image; EXIF orientation is applied, alpha dropped, 16 bits reduced to 8.

    Args:
        data: bytes of a JPEG, PNG, WebP, BMP or TIFF file (first frame or page).
        limits: bounds; the defaults of :class:`ImageLimits` if None.

    Returns:
        uint8 [height, width, 3], RGB, in [0, 255].

    Raises:
        ImageError: the message names the fault and the remedy.
    """
    header = check_image(data, limits or ImageLimits())
    return _decode(data, header, cv2.IMREAD_COLOR_RGB)


def decode_for(
    data: bytes, input_height: int, input_width: int, limits: ImageLimits | None = None
) -> tuple[NDArray[np.uint8], int, int]:
    """Decode one encoded image for a network's input, a large JPEG at a fraction of its size.

    A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, averaged over pixel areas, in a third of the time
    (libjpeg's scaled inverse transform). That is done as far as the result is no smaller than the letterboxed image.

    Args:
        data: see :func:`decode_image`.
        input_height: of the network's input, in pixels.
        input_width: likewise.
        limits: see :func:`decode_image`.

    Returns:
        uint8 [h, w, 3], RGB, upright; and the image's own height and width. Where it was reduced by k, ``h`` is its
        height divided by k, rounded up, so that it is stretched by less than one pixel of the network's input.

    Raises:
        ImageError: see :func:`decode_image`.
    """
    header = check_image(data, limits or ImageLimits())
    reduction = _jpeg_reduction(header, input_height, input_width) if header.format == "JPEG" else 1
    if reduction > 1:
        turned = header.orientation in _QUARTER_TURNS
        height, width = (header.width, header.height) if turned else (header.height, header.width)
        image = _decode(data, header, _REDUCED[reduction])
        if image.shape[:2] == (-(-height // reduction), -(-width // reduction)):
            return image, height, width
        # OpenCV reads the orientation differently: take the image as OpenCV has it.
    image = _decode(data, header, cv2.IMREAD_COLOR_RGB)
    return image, image.shape[0], image.shape[1]


_REDUCED: Final = {
    factor: cv2.IMREAD_COLOR_RGB | flag
    for factor, flag in (
        (2, cv2.IMREAD_REDUCED_COLOR_2),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (8, cv2.IMREAD_REDUCED_COLOR_8),
    )
}


def _jpeg_reduction(header: ImageHeader, input_height: int, input_width: int) -> int:
    """The largest of 1, 2, 4 and 8 that leaves the image no smaller than the letterboxed one, however it is turned."""
    long, short = max(header.width, header.height), min(header.width, header.height)
    shrink = max(long / max(input_height, input_width), short / min(input_height, input_width))
    return max((factor for factor in _REDUCED if factor <= shrink), default=1)


def _decode(data: bytes, header: ImageHeader, flags: int) -> NDArray[np.uint8]:
    if header.format == "PNG":
        data = plain_png(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"the {header.format} could not be decoded: {error.err or error}") from None
    if image is None:
        raise ImageError(
            f"the {header.format} of {header.width}x{header.height} pixels could not be decoded: "
            "its data is damaged or truncated. Send the whole file"
        )
    pixels = np.asarray(image, np.uint8)
    # OpenCV applies the orientation of JPEG, PNG and TIFF itself, but not that of WebP.
    return _orient(pixels, header.orientation) if header.format == "WEBP" else pixels


def _orient(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and flip an image upright by its EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation in _QUARTER_TURNS:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
