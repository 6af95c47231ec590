"""How long the images of a request take to decode, estimated from their headers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from pipeline.errors import ImageError
from pipeline.image_structure import ImageHeader, read_header
from pipeline.images import ImageLimits
from pipeline.jpeg_structure import is_progressive, jpeg_scans

REQUEST_DECODE_S: Final = 1.5
"""Most seconds, by estimate, that a server in its default configuration decodes for one request of several images."""

# Seconds per pixel of the picture and per byte of the file, measured on one core of an AMD EPYC at 12 megapixels, with
# photographs, noise and one color. A JPEG without end marker is decoded several times, to see whether it is whole.
_PIXEL_BYTE_S: Final = {
    "PNG": (16e-9, 25e-9),
    "WEBP": (10e-9, 40e-9),
    "TIFF": (5e-9, 14e-9),
    "BMP": (5e-9, 0.0),
}
_JPEG_PIXEL_S: Final = 1.5e-9
_JPEG_SCAN_PIXEL_S: Final = 0.5e-9
_JPEG_BYTE_S: Final = 12e-9
_PROGRESSIVE_BYTE_S: Final = 45e-9
_WITHOUT_END: Final = 4

_MOST_SCANS: Final = 10_000


def decode_seconds(data: bytes, limits: ImageLimits | None = None) -> float:
    """About how long one core decodes an image.

    Args:
        data: an encoded image.
        limits: see :func:`pipeline.images.decode_image`.

    Returns:
        Seconds; 0 for what is no image or above the limits, which is refused without decoding.

    Example:
        >>> import cv2, numpy as np
        >>> _, png = cv2.imencode(".png", np.zeros((1000, 1000, 3), np.uint8))
        >>> 0.01 < decode_seconds(png.tobytes()) < 0.1
        True
    """
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        return 0.0
    try:
        header = read_header(data)
    except ImageError:
        return 0.0
    pixels = max(header.width * header.height, header.tile_pixels)
    if pixels > limits.max_pixels:
        return 0.0
    if header.format == "JPEG":
        return _jpeg_seconds(data, header, pixels)
    return _seconds(header.format, pixels, len(data), header.bits)


def _seconds(image_format: str, pixels: int, size: int, bits: int) -> float:
    pixel_s, byte_s = _PIXEL_BYTE_S[image_format]
    return pixels * pixel_s * (2 if bits > 8 else 1) + size * byte_s


def _jpeg_seconds(data: bytes, header: ImageHeader, pixels: int) -> float:
    scans, end = jpeg_scans(data, header.first_scan, _MOST_SCANS)
    byte_s = _PROGRESSIVE_BYTE_S if is_progressive(data, header.frame) else _JPEG_BYTE_S
    once = pixels * (_JPEG_PIXEL_S + scans * _JPEG_SCAN_PIXEL_S) + ((end or len(data)) - header.first_scan) * byte_s
    return once if end else _WITHOUT_END * once


def check_decode_work(encoded: Sequence[bytes], allowed_s: float, limits: ImageLimits | None = None) -> float:
    """About how long one core decodes the images of a request, in seconds.

    Args:
        encoded: its images.
        allowed_s: most that several images may take. A single image is refused only above what the largest 16-bit PNG
            within the limits takes (3.8 s by default), which only a JPEG built for it does.
        limits: see :func:`decode_seconds`.

    Raises:
        ImageError: it is more; says how many images would be allowed.

    Example:
        >>> import cv2, numpy as np
        >>> _, png = cv2.imencode(".png", np.zeros((1000, 1000, 3), np.uint8))
        >>> check_decode_work([png.tobytes()] * 2, allowed_s=REQUEST_DECODE_S) < REQUEST_DECODE_S
        True
    """
    limits = limits or ImageLimits()
    seconds = [decode_seconds(data, limits) for data in encoded]
    total_s = sum(seconds)
    if len(encoded) == 1:
        allowed_s = max(allowed_s, _seconds("PNG", limits.max_pixels, limits.max_bytes, 16))
    if total_s <= allowed_s:
        return total_s
    slowest = encoded[seconds.index(max(seconds))]
    header = read_header(slowest)
    size = f"{header.width}x{header.height} pixels"
    if len(encoded) == 1:
        what = f"the {header.format} of {size}"
        remedies = ["send a smaller image"]
    else:
        what = f"the {len(encoded)} images of the request, the slowest a {header.format} of {size},"
        fitting = max(1, sum(ends <= allowed_s for ends in accumulate(seconds)))
        remedies = [f"send at most {fitting} of them a request", "send smaller images"]
    if header.format != "JPEG":
        remedies.append(f"send JPEG instead of {header.format}")
    elif is_progressive(slowest, header.frame):
        remedies.append("send baseline instead of progressive JPEG")
    raise ImageError(
        f"{what} would take about {total_s:.1f} s to decode; allowed: {allowed_s:.1f} s. "
        f"Remedies: {', '.join(remedies)}",
        "too_large",
    )
