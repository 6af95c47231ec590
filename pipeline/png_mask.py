"""One-bit PNG files of masks, from the places where the mask begins and ends in each row.

PNG's filter *Sub* stores each byte's difference from the one to its left, so a row of a mask is 0 but for the bytes
where the mask begins or ends. Only the rows that the mask reaches are compressed; the blank ones above and below are
joined from precompressed pieces (PNG specification, 9 and 10; RFC 1950, 1951).
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_SUB: Final = 1
_ZLIB_HEADER: Final = b"\x78\x01"
_LAST_BLOCK: Final = b"\x03\x00"  # an empty one
_ADLER: Final = 65521
_LEVEL: Final = 1


def row_bytes(width: int) -> int:
    """Bytes of a row of ``width`` pixels of one bit, with the filter's own.

    Example:
        >>> row_bytes(640)
        81
    """
    return (width + 7) // 8 + 1


def write_png(
    x: NDArray[np.int64],
    top: NDArray[np.int64],
    bottom: NDArray[np.int64],
    begins: NDArray[np.bool_],
    height: int,
    width: int,
) -> bytes:
    """A mask as a grayscale PNG of one bit.

    Args:
        x: int64 [v], columns in [0, width] at which the mask begins or ends ...
        top: int64 [v], ... from this row on ...
        bottom: int64 [v], ... to the one before this; above ``top``.
        begins: bool [v], whether the mask begins there.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Example:
        >>> import cv2
        >>> x, top, bottom = np.array([[1, 3], [0, 0], [2, 2]])  # columns 1 and 2 of two rows
        >>> png = write_png(x, top, bottom, np.array([True, False]), height=3, width=4)
        >>> (cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) > 0).astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    first, last = (int(top.min()), int(bottom.max())) if len(x) else (0, 0)
    line = row_bytes(width)
    filtered = np.zeros((last - first) * line, np.uint8)
    filtered[::line] = _SUB
    counts = bottom - top
    row = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts - (top - first), counts)
    sign = np.where(begins, 1, -1)
    partly = 0xFF >> (x & 7)
    # The byte that holds x changes by the bits from x on, and the next one by the rest, as all behind are full.
    for place, value in ((x >> 3, sign * partly), ((x >> 3) + 1, sign * (0xFF - partly))):
        inside = np.repeat(place < line - 1, counts)
        at = row * line + np.repeat(place + 1, counts)
        np.add.at(filtered, at[inside], np.repeat(value.astype(np.uint8), counts)[inside])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = _zlib_stream(first * line, filtered.tobytes(), (height - last) * line)
    return b"".join((_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", data), *_chunk(b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _zlib_stream(zeros_before: int, data: bytes, zeros_behind: int) -> bytes:
    """A zlib stream of zeros, ``data``, and zeros."""
    checksum = zlib.adler32(data, (zeros_before % _ADLER) << 16 | 1)
    low, high = checksum & 0xFFFF, checksum >> 16
    high = (high + zeros_behind * low) % _ADLER
    parts = [_ZLIB_HEADER, _zeros(zeros_before), _piece(data), _zeros(zeros_behind), _LAST_BLOCK]
    return b"".join(parts) + struct.pack(">HH", high, low)


def _zeros(count: int) -> bytes:
    return b"".join(_power_of_zeros(bit) for bit in range(count.bit_length()) if count >> bit & 1)


@functools.cache
def _power_of_zeros(exponent: int) -> bytes:
    return _piece(bytes(1 << exponent))


def _piece(data: bytes) -> bytes:
    """Deflated, ending on a whole byte, without references to earlier data."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
