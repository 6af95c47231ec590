"""Encoded images to pixels, with every bound checked before a pixel is decoded."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import ImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats accepted, by the names that Pillow gives them."""

_PNG_START: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEADER_BYTES: Final = 33  # signature, and the first chunk with its length, type and checksum
_EXIF_ORIENTATION: Final = 0x0112
_QUARTER_TURNS: Final = (5, 6, 7, 8)
_JPEG_START_OF_SCAN: Final = 0xDA
_JPEG_MARKERS_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})

# The limit here is ImageLimits; Pillow's own warning would repeat it on standard error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on one encoded image.

    Attributes:
        max_pixels: most pixels (width times height) that are decoded. OpenCV's own bound,
            2**30, and Pillow's, 178,956,970, hold besides.
        max_bytes: most bytes of the encoded image.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True)
class ImageHeader:
    """What an encoded image says of itself.

    Attributes:
        format: one of :data:`FORMATS`.
        width: pixels, before EXIF orientation.
        height: pixels, before EXIF orientation.
        orientation: EXIF orientation, 1 to 8, that remains to be applied after OpenCV has decoded the image.
    """

    format: str
    width: int
    height: int
    orientation: int = 1


def read_header(data: bytes) -> ImageHeader:
    """Read format and size of an encoded image without decoding it.

    Raises:
        ImageError: the bytes are of no accepted format, or the header is broken.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an encoded image", "empty")
    if data[:16] == _PNG_START and len(data) >= _PNG_HEADER_BYTES:
        # Read here: Pillow asks for more than the header, and a header alone is enough to refuse an image.
        return ImageHeader("PNG", *struct.unpack_from(">II", data, len(_PNG_START)))
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            name = "JPEG" if image.format == "MPO" else str(image.format)
            # OpenCV applies the orientation of JPEG, PNG and TIFF itself, but not that of WebP.
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if name == "WEBP" else 1
            return ImageHeader(name, image.width, image.height, orientation)
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large: {error} Send a smaller image", "too_large") from None
    except Exception as error:  # Pillow raises many types on broken headers
        accepted = ", ".join(FORMATS)
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ImageError(
            f"the bytes are not an image of an accepted format{detail}: {len(data)} bytes that start with "
            f"{data[:8]!r}; accepted: {accepted}",
            "format",
        ) from None


def check_image(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Check an encoded image against the limits, and that it was not cut off, before it is decoded.

    Raises:
        ImageError: empty, too large, of no accepted format, or truncated.
    """
    if len(data) > limits.max_bytes:
        fault = f"the image has {len(data)} bytes; allowed: {limits.max_bytes}. Send a smaller file"
        raise ImageError(fault, "too_large")
    header = read_header(data)
    if header.width * header.height > limits.max_pixels:
        raise ImageError(
            f"the image is {header.width}x{header.height} pixels, {header.width * header.height} in all; "
            f"allowed: {limits.max_pixels}. Send a smaller image",
            "too_large",
        )
    if header.format == "JPEG" and not _jpeg_is_complete(data):
        fault = f"the JPEG is truncated: no end-of-image marker in its {len(data)} bytes. Send the whole file"
        raise ImageError(fault, "truncated")
    if header.format == "PNG" and b"IEND" not in data[-64:] and data.rfind(b"IEND") < 0:
        fault = f"the PNG is truncated: no IEND chunk in its {len(data)} bytes. Send the whole file"
        raise ImageError(fault, "truncated")
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
        height, width = _upright_size(data, header)
        image = _decode(data, header, _REDUCED[reduction])
        if image.shape[:2] == (-(-height // reduction), -(-width // reduction)):
            return image, height, width
        # OpenCV and Pillow read the orientation differently: take the image as OpenCV has it.
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


def _upright_size(data: bytes, header: ImageHeader) -> tuple[int, int]:
    """Height and width of a JPEG after its EXIF orientation."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
    return (header.width, header.height) if turned else (header.height, header.width)


def _decode(data: bytes, header: ImageHeader, flags: int) -> NDArray[np.uint8]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"the {header.format} could not be decoded: {error.err or error}") from None
    if image is None:
        raise ImageError(
            f"the {header.format} of {header.width}x{header.height} pixels could not be decoded: "
            "its data is damaged or truncated. Send the whole file"
        )
    return _orient(np.asarray(image, np.uint8), header.orientation)


def _orient(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and flip an image upright by its EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation in _QUARTER_TURNS:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan (ITU-T T.81, annex B).

    OpenCV decodes a truncated JPEG without a word and fills the rest with grey. Markers before the scan are
    walked by their lengths, for an EXIF thumbnail has an end-of-image marker of its own.
    """
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return data.rfind(b"\xff\xd9") >= position
        marker = data[position + 1]
        if marker == _JPEG_START_OF_SCAN:
            return data.rfind(b"\xff\xd9", position) >= 0
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
