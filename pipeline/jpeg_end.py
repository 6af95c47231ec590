"""JPEGs without an end-of-image marker: whole pictures are closed, truncated ones refused.

Phones and cameras write JPEGs whose end marker is missing, or stands only behind a video, further pictures or a
trailer. Whether all rows are there cannot be seen from outside; libjpeg fills what is missing and says nothing.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

END_OF_IMAGE: Final = b"\xff\xd9"

MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker, but for restarts; stuffed bytes and fill bytes are none."""

_START_OF_SCAN: Final = 0xDA
# What may stand between scans: tables, restart interval, number of lines, application data, comments.
_SEGMENTS: Final = frozenset({0xC4, 0xCC, _START_OF_SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_MOST_SEGMENTS: Final = 10_000
_SEVERAL_PICTURES: Final = b"MPF\0"  # CIPA DC-007: further pictures follow the first one
_COEFFICIENTS: Final = 64
_RESTART: Final = 0xD0
_SEQUENTIAL: Final = (0xC0, 0xC1)
_LARGE_PIXELS: Final = 4_000_000
_USUAL_FILL_BYTES: Final = 16  # zeros at the end up to here may belong to the picture

_NOISES: Final = tuple(
    b"".join(hashlib.sha256(bytes([index, seed])).digest() for index in range(8)).replace(b"\xff", b"\x5a")
    for seed in range(2)
)


def closed_jpeg(data: bytes, frame: int, first_scan: int) -> bytes | None:
    """A JPEG up to its end marker, which is added where the picture is whole without one.

    Args:
        data: the JPEG.
        frame: where its frame header (SOF) begins.
        first_scan: where its first scan begins.

    Returns:
        Bytes of one whole picture; None if rows are missing.
    """
    if data.endswith(END_OF_IMAGE) and data.find(_SEVERAL_PICTURES, 0, first_scan) < 0:
        return data
    end, closed = _picture_end(data, first_scan)
    if closed:
        return data[:end]
    picture = _without_fill(data[:end])
    return picture + END_OF_IMAGE if _has_all_scans(picture, frame) and _has_all_rows(picture, frame) else None


def _picture_end(data: bytes, position: int) -> tuple[int, bool]:
    """Where a picture ends, behind its end marker, and whether there is one."""
    for _ in range(_MOST_SEGMENTS):
        found = MARKER.search(data, position)
        if found is None:
            return len(data), False
        marker = data[found.start() + 1]
        if marker == END_OF_IMAGE[1]:
            return found.end(), True
        if marker not in _SEGMENTS:  # another picture, or what is none
            return found.start(), False
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return len(data), False


def _without_fill(picture: bytes) -> bytes:
    """Without the zeros with which a card or a copy fills up what was never written, and half an end marker."""
    kept = picture.rstrip(b"\0")
    if len(picture) - len(kept) > _USUAL_FILL_BYTES:
        picture = kept + b"\0" if kept.endswith(b"\xff") else kept
    return picture.rstrip(b"\xff")


def _has_all_scans(picture: bytes, frame: int) -> bool:
    """Whether every coefficient of every component is there to its last bit (ITU-T T.81, G.1.1.1)."""
    components = [picture[frame + 10 + 3 * index] for index in range(picture[frame + 9])]
    missing_bits = {component: [1] * _COEFFICIENTS for component in components}
    position = frame
    for _ in range(_MOST_SEGMENTS):
        found = MARKER.search(picture, position)
        if found is None:
            break
        body = found.end() + 2
        if picture[found.start() + 1] == _START_OF_SCAN:
            count = picture[body] if body < len(picture) else 0
            if body + 2 * count + 4 > len(picture):
                break
            first, last, precision = picture[body + 1 + 2 * count : body + 4 + 2 * count]
            for index in range(count):
                missing = missing_bits.get(picture[body + 1 + 2 * index], [])
                missing[first : last + 1] = [precision & 15] * (min(last, len(missing) - 1) + 1 - first)
        position = found.end() + int.from_bytes(picture[found.end() : found.end() + 2], "big")
    return not any(bits for missing in missing_bits.values() for bits in missing)


def _has_all_rows(picture: bytes, frame: int) -> bool:
    """Whether a decoder takes nothing of what follows; it would show in the pixels, differently for each noise."""
    height, width = (int.from_bytes(picture[place : place + 2], "big") for place in (frame + 5, frame + 7))
    # Most pictures show it at an eighth of their size too, but for the last block, and in a third of the time.
    reduced = picture[frame + 1] in _SEQUENTIAL and height * width > _LARGE_PIXELS
    flags = (cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    first, second = (_decoded(picture + _more_rows(picture, noise) + END_OF_IMAGE, flags) for noise in _NOISES)
    return first is not None and second is not None and np.array_equal(first, second)


def _more_rows(picture: bytes, noise: bytes) -> bytes:
    """What a decoder takes for the rows that are missing: noise, then noise behind each restart marker to come."""
    scan = picture.rfind(bytes([0xFF, _START_OF_SCAN]))
    last = max(range(8), key=lambda number: picture.rfind(bytes([0xFF, _RESTART + number]), scan))
    expected = (last + 1) % 8 if picture.rfind(bytes([0xFF, _RESTART + last]), scan) >= 0 else 0
    return noise + b"".join(bytes([0xFF, _RESTART + (expected + index) % 8]) + noise for index in range(8))


def _decoded(data: bytes, flags: int) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)
