"""Which JPEGs go to the decode engines."""

import cv2
import pytest

from pipeline.image_structure import read_header
from pipeline.jpeg_structure import segments
from steps.gpu.jpeg import engine_takes
from tests.gpu.test_preprocess import jpeg, picture, png

IMAGE = picture(64, 80)
WHOLE = jpeg(IMAGE)
HEADER = read_header(WHOLE)


def taken(data):
    return engine_takes(data, read_header(data))


def with_segment(marker, body):
    return WHOLE[:2] + bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body + WHOLE[2:]


def changed(place, value):
    return WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]


def without_table(marker, number):
    """With the table's segment as one that decoders ignore."""
    place = next(start for table, start, body in segments(WHOLE, 2) if table == marker and WHOLE[body + 2] == number)
    return changed(place + 1, 0xE9)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        jpeg(IMAGE, 6),
        jpeg(cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)),
        jpeg(IMAGE, SAMPLING_FACTOR=cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
        jpeg(IMAGE, SAMPLING_FACTOR=cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01"),
    ],
)
def test_baseline_is_taken(data):
    assert taken(data)


def test_first_of_several_pictures_is_taken():
    assert taken(with_segment(0xE2, b"MPF\0" + bytes(20)) + WHOLE)


@pytest.mark.parametrize(
    "data",
    [
        png(IMAGE),
        jpeg(IMAGE, PROGRESSIVE=1),
        jpeg(IMAGE, SAMPLING_FACTOR=cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
        WHOLE[:-2],
        with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),  # RGB
        changed(HEADER.frame + 10, ord("R")),
        changed(HEADER.first_scan + 4, 1),
        WHOLE[:20] + b"\0" + WHOLE[20:],
        without_table(0xDB, 0),
        without_table(0xDB, 1),
        without_table(0xC4, 0x10),
        without_table(0xC4, 0x01),
    ],
    ids=[
        *("png", "progressive", "4:4:0", "no end", "Adobe RGB", "components R, 2, 3", "several scans", "stray byte"),
        *("no table for luma", "none for chroma", "no code for AC", "none for DC of chroma"),
    ],
)
def test_others_are_left_to_the_cpu(data):
    assert not taken(data)
