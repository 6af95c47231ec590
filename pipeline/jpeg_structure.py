"""Segments and scans of JPEGs, and JPEGs without an end marker: whole pictures are closed, truncated ones refused.

Phones and cameras write JPEGs whose end marker is missing, or stands only behind a video, further pictures or a
trailer. Nothing in the file says whether all rows are there, and libjpeg fills in what is missing without a word.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_SEGMENTS: Final = 10_000  # that are read; a color profile has up to 255
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
_END: Final = bytes([0xFF, END_OF_IMAGE])

_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # but for restarts, stuffed bytes and fill bytes
_START_OF_IMAGE: Final = 0xD8
# What may stand between scans: tables, restart interval, number of lines, application data, comments.
_BETWEEN_SCANS: Final = frozenset({0xC4, 0xCC, START_OF_SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_SEVERAL_PICTURES: Final = b"MPF\0"  # CIPA DC-007: further pictures follow the first one
_COEFFICIENTS: Final = 64
_RESTART: Final = 0xD0
_SEQUENTIAL: Final = (0xC0, 0xC1)
_PROGRESSIVE: Final = (0xC2, 0xCA)
_LARGE_PIXELS: Final = 4_000_000
_USUAL_FILL_BYTES: Final = 16  # zeros at the end up to here may belong to the picture

_NOISES: Final = tuple(
    b"".join(hashlib.sha256(bytes([index, seed])).digest() for index in range(8)).replace(b"\xff", b"\x5a")
    for seed in range(2)
)


def segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG from ``position`` on, at most :data:`MOST_SEGMENTS` (ITU-T T.81, annex B).

    Yields:
        Marker code, where the marker begins, and where the segment's length (2 bytes) and body begin.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> next(segments(jpeg, 2))  # APP0
        (224, 2, 4)
    """
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            return
        marker, position = data[found.start() + 1], found.end()
        yield marker, found.start(), position
        if marker == _START_OF_IMAGE:  # of another picture
            return
        position += int.from_bytes(data[position : position + 2], "big")


def jpeg_scans(data: bytes, first_scan: int, most: int) -> tuple[int, int | None]:
    """Count the scans of a JPEG.

    Args:
        data: the JPEG.
        first_scan: where its first scan begins.
        most: where to stop counting.

    Returns:
        How many there are, ``most + 1`` where there are more or too many segments between them; and where the picture
        ends, behind its end marker, None if no such marker was seen.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> scans, end = jpeg_scans(jpeg + b"trailer", jpeg.find(bytes([0xFF, 0xDA])), most=10)
        >>> scans, end == len(jpeg)
        (1, True)
    """
    scans = count = 0
    for marker, _, end in segments(data, first_scan):
        count += 1
        if marker == END_OF_IMAGE:
            return scans, end
        scans += marker == START_OF_SCAN
        if scans > most:
            return scans, None
    return (most + 1 if count == MOST_SEGMENTS else scans), None


def is_progressive(data: bytes, frame: int) -> bool:
    """Whether a JPEG is progressive, by its frame header (ITU-T T.81, table B.1).

    Example:
        >>> progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
        >>> jpeg = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8), progressive)[1].tobytes()
        >>> is_progressive(jpeg, jpeg.find(bytes([0xFF, 0xC2])))
        True
    """
    return data[frame + 1] in _PROGRESSIVE


def closed_jpeg(data: bytes, frame: int, first_scan: int) -> bytes | None:
    """A JPEG up to its end marker, which is added where the picture is whole without one.

    Args:
        data: the JPEG.
        frame: where its frame header (SOF) begins.
        first_scan: where its first scan begins.

    Returns:
        Bytes of one whole picture; None if rows are missing.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
        >>> frame, first_scan = jpeg.find(bytes([0xFF, 0xC0])), jpeg.find(bytes([0xFF, 0xDA]))
        >>> closed_jpeg(jpeg[:-2], frame, first_scan) == jpeg
        True
    """
    if data.endswith(_END) and data.find(_SEVERAL_PICTURES, 0, first_scan) < 0:
        return data
    end, closed = _picture_end(data, first_scan)
    if closed:
        return data[:end]
    picture = _without_fill(data[:end])
    return picture + _END if _has_all_scans(picture, frame) and _has_all_rows(picture, frame) else None


def _picture_end(data: bytes, first_scan: int) -> tuple[int, bool]:
    """Where a picture ends, behind its end marker, and whether there is one."""
    for marker, start, end in segments(data, first_scan):
        if marker == END_OF_IMAGE:
            return end, True
        if marker not in _BETWEEN_SCANS:  # another picture, or what is none
            return start, False
    return len(data), False


def _without_fill(picture: bytes) -> bytes:
    """Without the zeros that a memory card or a copy leaves where nothing was written, and half an end marker."""
    kept = picture.rstrip(b"\0")
    if len(picture) - len(kept) > _USUAL_FILL_BYTES:
        picture = kept + b"\0" if kept.endswith(b"\xff") else kept
    return picture.rstrip(b"\xff")


def _has_all_scans(picture: bytes, frame: int) -> bool:
    """Whether every coefficient of every component is there to its last bit (ITU-T T.81, G.1.1.1)."""
    components = [picture[frame + 10 + 3 * index] for index in range(picture[frame + 9])]
    missing_bits = {component: [1] * _COEFFICIENTS for component in components}
    for marker, _, body in segments(picture, frame):
        if marker != START_OF_SCAN:
            continue
        count = picture[body + 2] if body + 2 < len(picture) else 0
        tail = body + 3 + 2 * count
        if tail + 3 > len(picture):
            break
        first, last, precision = picture[tail : tail + 3]
        for component in picture[body + 3 : tail : 2]:
            missing = missing_bits.get(component, [])
            missing[first : last + 1] = [precision & 15] * (min(last, len(missing) - 1) + 1 - first)
    return not any(bits for missing in missing_bits.values() for bits in missing)


def _has_all_rows(picture: bytes, frame: int) -> bool:
    """Whether a decoder ignores noise appended to the data; if it reads some, the pixels differ from noise to noise."""
    height, width = (int.from_bytes(picture[place : place + 2], "big") for place in (frame + 5, frame + 7))
    # At an eighth of the size it shows too, except in the last block, and in a third of the time.
    reduced = picture[frame + 1] in _SEQUENTIAL and height * width > _LARGE_PIXELS
    flags = (cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    first, second = (_decoded(picture + _more_rows(picture, noise) + _END, flags) for noise in _NOISES)
    return first is not None and second is not None and np.array_equal(first, second)


def _more_rows(picture: bytes, noise: bytes) -> bytes:
    """What a decoder takes for the rows that are missing: noise, then noise behind each restart marker to come."""
    scan = picture.rfind(bytes([0xFF, START_OF_SCAN]))
    last = max(range(8), key=lambda number: picture.rfind(bytes([0xFF, _RESTART + number]), scan))
    expected = (last + 1) % 8 if picture.rfind(bytes([0xFF, _RESTART + last]), scan) >= 0 else 0
    return noise + b"".join(bytes([0xFF, _RESTART + (expected + index) % 8]) + noise for index in range(8))


def _decoded(data: bytes, flags: int) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)
