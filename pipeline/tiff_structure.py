"""Directories of TIFF files and EXIF blocks, and which kinds of TIFF can be decoded here."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pipeline.errors import ImageError

ORIENTATION: Final = 0x0112
"""EXIF and TIFF tag of the orientation, 1 to 8 (CIPA DC-008)."""

TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF file, or an EXIF block, begins: byte order, and 42 or 43 (BigTIFF)."""

CUT_OFF: Final = (struct.error, IndexError, OverflowError)
"""What reading past the end of the data raises."""

Tags: TypeAlias = "Mapping[int, tuple[int, ...]]"

_MOST_ENTRIES: Final = 4096  # of a TIFF directory; libtiff's own bound
_MOST_VALUES: Final = 8  # that are read of one entry: as many as a picture has samples a pixel
_NUMBERS: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}  # whole numbers, by TIFF's type
_BYTES: Final = {3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8, 17: 8, 18: 8}  # others: 1

_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339
_EXTRA_SAMPLES: Final = 338
_MULTIPLIED_ALPHA, _UNMULTIPLIED_ALPHA = 1, 2
_JPEG: Final = 7
_FAX: Final = (2, 3, 4)
_COMPRESSIONS: Final = (1, *_FAX, 5, _JPEG, 8, 32773, 32946)  # none, CCITT, LZW, JPEG, Deflate, PackBits
_COMPRESSION_NAMES: Final = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of a DNG",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_SAMPLE_FORMATS: Final = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_UNSIGNED: Final = (1, 4)  # 4: undefined
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRIC_NAMES: Final = {
    _RGB: "RGB",
    _PALETTE: "palette",
    4: "transparency mask",
    _CMYK: "CMYK",
    _YCBCR: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "sensor data (CFA, as in DNG)",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear sensor data (as in DNG)",
}
# Samples a pixel by photometric interpretation, alpha among them, for each number of bits that OpenCV 4.11 decodes.
_GRAY: Final[dict[int, tuple[int, ...]]] = {_WHITE_IS_ZERO: (1, 2), _BLACK_IS_ZERO: (1, 2)}
_WIDE: Final[dict[int, tuple[int, ...]]] = {**_GRAY, _RGB: (3, 4)}
_DECODED: Final[dict[int, dict[int, tuple[int, ...]]]] = {
    1: {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,), _PALETTE: (1,)},
    4: {_PALETTE: (1,)},
    8: {**_WIDE, _PALETTE: (1,), _CMYK: (4,), _YCBCR: (3,)},
    10: {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,)},
    12: {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,)},
    14: {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,)},
    16: _WIDE,
}


@dataclass(frozen=True)
class Entry:
    """An entry of a directory that holds whole numbers.

    Attributes:
        tag: what they mean.
        numbers: the first of them, 1 to 8.
        count: how many there are.
        place: of a single number, its offset in the file.
        layout: of a single number, its :mod:`struct` format.
    """

    tag: int
    numbers: tuple[int, ...]
    count: int
    place: int
    layout: str


def directory(data: bytes) -> Iterator[Entry]:
    """Entries of the first directory that hold whole numbers (TIFF 6.0, section 2; BigTIFF).

    Raises:
        ImageError: there are too many entries, or they claim to hold more than the file: libtiff copies what each
            points to, even if all point to the same megabytes.
        struct.error, OverflowError: it is cut off, or not in the file at all.

    Example:
        >>> block = b"II" + struct.pack("<HIHHHII", 42, 8, 1, ORIENTATION, 3, 1, 6)
        >>> [(entry.tag == ORIENTATION, entry.numbers) for entry in directory(block)]
        [(True, (6,))]
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or data[:4] not in TIFF_STARTS:
        return
    big = 43 in data[2:4]
    offset = f"{order}Q" if big else f"{order}I"
    position = struct.unpack_from(offset, data, 8 if big else 4)[0]
    count = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, position)[0]
    if count > _MOST_ENTRIES:
        raise ImageError(f"a directory of {count} entries; allowed: {_MOST_ENTRIES}. Encode the image again")
    position += 8 if big else 2
    head, size, inline = (f"{order}HHQ", 20, 8) if big else (f"{order}HHI", 12, 4)
    held = 0
    for entry in range(position, position + count * size, size):
        tag, kind, values = struct.unpack_from(head, data, entry)
        held += values * _BYTES.get(kind, 1)
        if held > len(data) + count * 8:
            raise ImageError(f"a directory whose entries hold more than the {len(data)} bytes that are there")
        if kind not in _NUMBERS or values < 1:
            continue
        place = entry + size - inline
        if values * _BYTES.get(kind, 1) > inline:
            place = struct.unpack_from(offset, data, place)[0]
        try:
            numbers = struct.unpack_from(f"{order}{min(values, _MOST_VALUES)}{_NUMBERS[kind]}", data, place)
        except CUT_OFF:
            continue  # a decoder reports it
        yield Entry(tag, numbers, values, place, order + _NUMBERS[kind])


def exif_orientation(block: bytes) -> int:
    """EXIF orientation, 1 to 8, out of an EXIF block or a TIFF; 0 where it has none or is broken.

    Example:
        >>> exif_orientation(b"II" + struct.pack("<HIHHHII", 42, 8, 1, ORIENTATION, 3, 1, 6))
        6
    """
    try:
        stated = next((entry.numbers[0] for entry in directory(block) if _is_orientation(entry)), 0)
    except (*CUT_OFF, ImageError):
        return 0
    return stated if 1 <= stated <= 8 else 0


def as_stored(data: bytes) -> bytes:
    """A TIFF whose pixels a decoder gives as they are stored: neither turned nor multiplied by alpha.

    OpenCV half turns some of the orientations, and libtiff blackens what alpha hides if it is not multiplied already.

    Example:
        >>> tiff = b"II" + struct.pack("<HIHHHII", 42, 8, 1, ORIENTATION, 3, 1, 6)
        >>> exif_orientation(as_stored(tiff))
        1
    """
    changes = []
    for entry in directory(data):
        if _is_orientation(entry):
            changes.append((entry, 1))
        elif entry.tag == _EXTRA_SAMPLES and entry.count == 1 and entry.numbers[0] == _UNMULTIPLIED_ALPHA:
            changes.append((entry, _MULTIPLIED_ALPHA))
    if all(entry.numbers[0] == value for entry, value in changes):
        return data
    stored = bytearray(data)
    for entry, value in changes:
        struct.pack_into(entry.layout, stored, entry.place, value)
    return bytes(stored)


def _is_orientation(entry: Entry) -> bool:
    return entry.tag == ORIENTATION and entry.count == 1


def bits_per_sample(tags: Tags) -> int:
    """Bits of a sample, the widest one."""
    return max(tags.get(_BITS, (1,)))


def is_white_zero(tags: Tags) -> bool:
    """Whether larger numbers are darker."""
    return _first(tags, _PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO


def is_planar(tags: Tags) -> bool:
    """Whether each color is stored separately."""
    return _first(tags, _PLANAR, 1) == 2 and _first(tags, _SAMPLES, 1) > 1


def unsupported(tags: Tags) -> str:
    """What about a TIFF cannot be decoded here, in words; empty if all of it can.

    OpenCV 4.11 refuses some of these kinds and decodes others wrongly: signed samples to black, JPEG 2000 to noise.

    Args:
        tags: whole numbers of its first directory.

    Example:
        >>> unsupported({_BITS: (1,), _COMPRESSION: (50001,)})
        'WebP compression'
    """
    compression = _first(tags, _COMPRESSION, 1)
    photometric, samples = _first(tags, _PHOTOMETRIC, _BLACK_IS_ZERO), _first(tags, _SAMPLES, 1)
    widths, bits = tags.get(_BITS, (1,)), bits_per_sample(tags)
    if compression not in _COMPRESSIONS:
        return f"{_COMPRESSION_NAMES.get(compression, f'number {compression}')} compression"
    for number in tags.get(_SAMPLE_FORMAT, (1,)):
        if number not in _UNSIGNED:
            return f"{bits}-bit {_SAMPLE_FORMATS.get(number, f'(format {number})')} samples"
    if len(set(widths)) > 1:
        return f"samples of different widths ({', '.join(map(str, widths))} bits)"
    kinds = _DECODED.get(bits)
    color = _PHOTOMETRIC_NAMES.get(photometric, "gray" if photometric in _GRAY else f"photometric {photometric}")
    if kinds is None or (compression == _JPEG and bits != 8) or (compression in _FAX and bits != 1):
        return f"{bits}-bit samples"
    if samples not in kinds.get(photometric, ()):
        return f"{bits}-bit {color} of {samples} samples a pixel"
    return ""


def _first(tags: Tags, tag: int, default: int) -> int:
    return tags.get(tag, (default,))[0]
