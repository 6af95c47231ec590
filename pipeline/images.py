"""Encoded images to pixels, with every bound checked before a pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.image_structure import (
    ImageHeader,
    check_jpeg,
    check_png,
    jpeg_truncated,
    plain_png,
    read_header,
    still_webp,
)
from pipeline.jpeg_structure import closed_jpeg
from pipeline.tiff_structure import as_stored

_QUARTER_TURNS: Final = (5, 6, 7, 8)
_FLIPS: Final = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # OpenCV's codes: 1 left to right, 0 upside down, -1 both
_USUAL_SCANS: Final = 20  # of a progressive JPEG: libjpeg writes 10, optimizers up to 20


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on one encoded image.

    Attributes:
        max_pixels: most pixels (width times height) that are decoded: 67 million, enough for phones of 64 megapixels.
            OpenCV's bound of 2**30 applies too.
        max_bytes: most bytes of the encoded image.
    """

    max_pixels: int = 2**26
    max_bytes: int = 64 * 1024 * 1024


def check_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Check only format and size of an encoded image; errors as in :func:`check_image`."""
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
    return header


def check_image(data: bytes, limits: ImageLimits) -> tuple[bytes, ImageHeader]:
    """Check an encoded image against the limits, and that it is whole, before it is decoded.

    Returns:
        The image in a form that OpenCV decodes, and its header.

    Raises:
        ImageError: empty, too large, of no accepted format, truncated, or built to keep a decoder busy.

    Example:
        >>> data = cv2.imencode(".png", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> check_image(data, ImageLimits(max_pixels=1000))
        Traceback (most recent call last):
        pipeline.errors.ImageError: the image is 60x40 pixels, 2400 in all; allowed: 1000. Send a smaller image
    """
    header = check_header(data, limits)
    return check_body(data, header, limits), header


def check_body(data: bytes, header: ImageHeader, limits: ImageLimits) -> bytes:
    """Check what :func:`check_header` has left of :func:`check_image`, and return the image as OpenCV decodes it."""
    if header.format == "JPEG":
        check_jpeg(data, header, _USUAL_SCANS * limits.max_pixels)
        closed = closed_jpeg(data, header.frame, header.first_scan)
        if closed is None:
            raise jpeg_truncated(data)
        data = closed
    elif header.format == "PNG":
        check_png(data)
        data = plain_png(data)
    elif header.format == "WEBP":
        data = still_webp(data, header)
    elif header.format == "TIFF":
        data = as_stored(data)
    return data


def decode_image(data: bytes, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Decode one encoded image; EXIF orientation is applied, alpha dropped, 16 bits reduced to 8.

    Of 16 bits, the upper 8 of those that hold the picture are kept: see :func:`_to_eight_bits`.

    Args:
        data: bytes of a JPEG, PNG, WebP, BMP or TIFF file (first frame or page).
        limits: bounds; the defaults of :class:`ImageLimits` if None.

    Returns:
        uint8 [height, width, 3], RGB, in [0, 255].

    Raises:
        ImageError: the message names the fault and the remedy.

    Example:
        >>> image = decode_image(cv2.imencode(".png", np.zeros((40, 60), np.uint8))[1].tobytes())
        >>> image.shape, image.dtype
        ((40, 60, 3), dtype('uint8'))
    """
    return _decode(*check_image(data, limits or ImageLimits()))


def decode_for(
    data: bytes, input_height: int, input_width: int, limits: ImageLimits | None = None, *, stretch: bool = False
) -> tuple[NDArray[np.uint8], int, int]:
    """Decode one encoded image for a network's input, a large JPEG at a fraction of its size.

    libjpeg's scaled inverse transform decodes at 1/2, 1/4 or 1/8 of the size, averaged over pixel areas, in a third of
    the time. The reduced image is never smaller than what it fills of the input.

    Args:
        data: see :func:`decode_image`.
        input_height: of the network's input, in pixels.
        input_width: likewise.
        limits: see :func:`decode_image`.
        stretch: whether the image fills the input, whatever its aspect ratio.

    Returns:
        uint8 [h, w, 3], RGB, upright; and the original height and width. Reduced by k, ``h`` is the height over k,
        rounded up, so the image is stretched by less than one pixel of the network's input.

    Raises:
        ImageError: see :func:`decode_image`.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((1440, 1920, 3), np.uint8))[1].tobytes()
        >>> image, height, width = decode_for(jpeg, 640, 640)
        >>> image.shape, (height, width)
        ((720, 960, 3), (1440, 1920))
    """
    data, header = check_image(data, limits or ImageLimits())
    turned = header.orientation in _QUARTER_TURNS
    height, width = (header.width, header.height) if turned else (header.height, header.width)
    reduction = 1
    if header.format == "JPEG":
        choose = min if stretch else max
        shrink = choose(height / input_height, width / input_width)
        reduction = max((factor for factor in _REDUCED if factor <= shrink), default=1)
    if reduction > 1:
        image = _decode(data, header, _REDUCED[reduction])
        if image.shape[:2] == (-(-height // reduction), -(-width // reduction)):
            return image, height, width
        # A lossless JPEG is not reduced.
    image = _decode(data, header)
    return image, image.shape[0], image.shape[1]


# The flags called COLOR ask for BGR.
_REDUCED: Final = {
    factor: cv2.IMREAD_COLOR_RGB | flag
    for factor, flag in (
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    )
}


def _decode(data: bytes, header: ImageHeader, flags: int = cv2.IMREAD_COLOR_RGB) -> NDArray[np.uint8]:
    wide = header.bits > 8 and not header.planar  # OpenCV gets planar 16-bit samples right only as 8 bits
    if wide:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH  # as RGB, a 16-bit TIFF comes in the wrong order
    try:
        # OpenCV looks for EXIF in other places than the standard says, and ignores that of WebP.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"the {header.format} could not be decoded: {error.err or error}") from None
    if image is None:
        raise ImageError(
            f"the {header.format} of {header.width}x{header.height} pixels could not be decoded: "
            "its data is damaged or truncated. Send the whole file"
        )
    if wide:
        image = cv2.cvtColor(_to_eight_bits(image, header), cv2.COLOR_BGR2RGB)
    return _orient(np.asarray(image, np.uint8), header.orientation)


def _to_eight_bits(image: NDArray[Any], header: ImageHeader) -> NDArray[np.uint8]:
    """Reduce samples of up to 16 bits to 8.

    Cameras of 10, 12 and 14 bits write their numbers into 16-bit files unscaled; the upper 8 of 16 bits would be almost
    black. So the depth is the least of 8, 10, 12, 14 and 16 bits that holds the largest number in the picture, as a
    viewer sets its range. A file that uses all 16 bits keeps its upper 8.
    """
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    brightest = int(image.max(initial=0))
    held = next(bits for bits in (8, 10, 12, 14, 16) if brightest < 1 << bits) if header.bits == 16 else 16
    np.right_shift(image, held - 8, out=image)
    reduced = image.astype(np.uint8)
    return np.asarray(cv2.bitwise_not(reduced), np.uint8) if header.white_is_zero else reduced


def _orient(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and flip an image upright by its EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation in _QUARTER_TURNS:
        image = np.asarray(cv2.transpose(image), np.uint8)
    if orientation in _FLIPS:
        image = np.asarray(cv2.flip(image, _FLIPS[orientation]), np.uint8)
    return image
