"""Which images the GPU's decode engines take."""

from __future__ import annotations

from typing import Final

from pipeline.image_structure import ImageHeader

_END: Final = b"\xff\xd9"
_BASELINE: Final = 0xC0
_APP14: Final = 0xEE
_ADOBE_YCC: Final = 1  # the transform of Adobe's segment: Y'CbCr
_SAMPLINGS: Final = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11))  # 4:4:4, 4:2:2, 4:2:0
_COMPONENTS: Final = (1, 2, 3)


def engine_takes(data: bytes, header: ImageHeader) -> bool:
    """Whether the decode engines take an image; the CPU decodes the others.

    The engines take baseline JPEGs of one scan, in gray or Y'CbCr, that have an end. For the others OpenCV's answer is
    the measure, so nothing is tried whose colors decoders read in different ways.

    Args:
        data: an encoded image that :func:`pipeline.images.check_header` has passed.
        header: of it.
    """
    if header.format != "JPEG" or data[header.frame + 1] != _BASELINE or not data.endswith(_END):
        return False
    count = data[header.frame + 9]
    components = [data[place : place + 2] for place in range(header.frame + 10, header.frame + 10 + 3 * count, 3)]
    if data[header.first_scan + 4] != count:
        return False
    if count == len(_COMPONENTS):
        if tuple(one[0] for one in components) != _COMPONENTS or not _is_ycc(data, header.first_scan):
            return False
        if tuple(one[1] for one in components) not in _SAMPLINGS:
            return False
    elif count != 1:
        return False
    return True


def _is_ycc(data: bytes, first_scan: int) -> bool:
    """Whether three components are Y'CbCr: they are unless Adobe's segment says otherwise.

    False too where something lies between the segments, and a decoder may read them in another way.
    """
    position = 2
    while position < first_scan:
        if data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            return False
        if data[position + 1] == _APP14 and data[position + 4 : position + 9] == b"Adobe":
            return data[position + 15] == _ADOBE_YCC
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position == first_scan
