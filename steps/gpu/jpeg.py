"""Which images the GPU's decode engines take."""

from __future__ import annotations

from typing import Final

from pipeline.image_structure import ImageHeader

_END: Final = b"\xff\xd9"
_BASELINE: Final = 0xC0
_APP14: Final = 0xEE
_DQT: Final = 0xDB  # quantization tables
_DHT: Final = 0xC4  # Huffman tables; 0x10 is added to the numbers of those for AC coefficients
_ADOBE_YCC: Final = 1  # the transform of Adobe's segment: Y'CbCr
_SAMPLINGS: Final = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11))  # 4:4:4, 4:2:2, 4:2:0
_COMPONENTS: Final = (1, 2, 3)


def engine_takes(data: bytes, header: ImageHeader) -> bool:
    """Whether the decode engines take an image; the CPU decodes the others.

    The engines take baseline JPEGs of one scan, in gray or Y'CbCr, that have an end and all tables. For the others
    OpenCV's answer is the measure, so nothing is tried whose colors decoders read in different ways.

    Args:
        data: an encoded image that :func:`pipeline.images.check_header` has passed.
        header: of it.
    """
    if header.format != "JPEG" or data[header.frame + 1] != _BASELINE or not data.endswith(_END):
        return False
    count = data[header.frame + 9]
    components = [data[place : place + 3] for place in range(header.frame + 10, header.frame + 10 + 3 * count, 3)]
    scan = data[header.first_scan + 4 : header.first_scan + 5 + 2 * count]
    if scan[0] != count or count not in (1, len(_COMPONENTS)):
        return False
    if count == len(_COMPONENTS) and (
        tuple(one[0] for one in components) != _COMPONENTS or tuple(one[1] for one in components) not in _SAMPLINGS
    ):
        return False
    tables = _tables(data, header.first_scan)
    wanted = {(_DQT, one[2]) for one in components}
    for coders in scan[2::2]:
        wanted |= {(_DHT, coders >> 4), (_DHT, 0x10 | coders & 15)}
    return tables is not None and wanted <= tables


def _tables(data: bytes, first_scan: int) -> set[tuple[int, int]] | None:
    """Marker and number of each table that a JPEG holds; the engines decode without some that they would need.

    None where decoders may differ: something lies between the segments or behind a table, or Adobe's segment says that
    three components are not Y'CbCr.
    """
    tables = set()
    position = 2
    while position < first_scan:
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):
            return None
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        place = position + 4
        if marker == _APP14 and data[place : place + 5] == b"Adobe" and data[position + 15] != _ADOBE_YCC:
            return None
        while marker in (_DQT, _DHT) and place < end:
            kind = data[place]
            tables.add((marker, kind & 15 if marker == _DQT else kind))
            place += 1 + (64 << (kind >> 4) if marker == _DQT else 16 + sum(data[place + 1 : place + 17]))
        if place > end:
            return None
        position = end
    return tables if position == first_scan else None
