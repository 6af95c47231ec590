"""Encoded masks, read by other tools: OpenCV and Pillow for PNG, COCO's own for polygons, the shoelace formula."""

import base64
import io
import json
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from pipeline.contract import MASK_FORMATS
from pipeline.mask_formats import decode_mask, encode_masks
from pipeline.masks import MaskRuns

WITH_BYTES = [name for name in MASK_FORMATS if name != "none"]


def random_masks():
    """Noise, blobs with holes and tiny parts, in sizes from one pixel on; whole and nearly whole ones too."""
    rng = np.random.default_rng(0)
    for number in range(160):
        height, width = (int(side) for side in rng.integers(1, 70, 2))
        field = rng.standard_normal((height, width)).astype(np.float32)
        blur = (0, 0.6, 1.5, 3)[number % 4]
        field = cv2.GaussianBlur(field, (0, 0), blur) if blur else field
        yield field > np.quantile(field, rng.uniform(0, 0.95))
    yield np.ones((17, 9), bool)
    yield np.ones((1, 1), bool)
    rings = np.zeros((60, 60), np.uint8)
    for radius in range(28, 0, -3):
        cv2.circle(rings, (30, 30), radius, (radius % 2,), -1)
    yield rings.astype(bool)
    yield ~rings.astype(bool)


MASKS = list(random_masks())


def encoded(mask, mask_format):
    return encode_masks([MaskRuns.from_image(mask)], mask_format)[0]


def area(polygon):
    x, y = np.array(polygon, float).reshape(-1, 2).T
    return abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def test_polygons_give_the_mask_back_by_coco():
    for mask in MASKS:
        polygons = json.loads(encoded(mask, "polygon"))
        if not mask.any():
            assert polygons == []
            continue
        parts = coco.frPyObjects([[float(value) for value in polygon] for polygon in polygons], *mask.shape)
        np.testing.assert_array_equal(coco.decode(coco.merge(parts)).astype(bool), mask)


def test_polygons_have_the_masks_area_and_one_part_each():
    for mask in MASKS:
        polygons = json.loads(encoded(mask, "polygon"))
        assert all(len(polygon) >= 8 for polygon in polygons)
        assert sum(map(area, polygons)) == mask.sum()
        parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
        assert len(polygons) == parts


def test_polygon_of_one_pixel_and_of_a_ring():
    mask = np.zeros((5, 6), bool)
    mask[0, 0] = True
    assert sorted(zip(*[iter(json.loads(encoded(mask, "polygon"))[0])] * 2, strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    mask[:] = True
    mask[2, 2:4] = False
    (ring,) = json.loads(encoded(mask, "polygon"))
    assert area(ring) == 28


def test_png_is_read_by_opencv_and_pillow():
    for mask in MASKS:
        png = encoded(mask, "png")
        by_opencv = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(by_opencv > 0, mask)
        with Image.open(io.BytesIO(png)) as image:
            image.verify()
        with Image.open(io.BytesIO(png)) as image:
            assert (image.mode, image.size) == ("1", mask.shape[::-1])
            np.testing.assert_array_equal(np.array(image), mask)
        assert base64.b64decode(encoded(mask, "png_base64"), validate=True) == png


def test_png_of_a_large_image():
    mask = np.zeros((3000, 4081), np.uint8)
    cv2.circle(mask, (2000, 1500), 877, (1,), -1)
    png = encoded(mask, "png")
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png)), np.uint8), mask)
    assert len(png) < 100_000


@pytest.mark.parametrize("mask_format", WITH_BYTES)
def test_formats_round_trip(mask_format):
    encoded_masks = encode_masks([MaskRuns.from_image(mask) for mask in MASKS[:1] * 3], mask_format)
    assert len(set(encoded_masks)) == 1
    for mask in MASKS:
        np.testing.assert_array_equal(decode_mask(encoded(mask, mask_format), mask_format, *mask.shape), mask)


@pytest.mark.parametrize("mask_format", WITH_BYTES)
def test_masks_of_one_image_do_not_mix(mask_format):
    rng = np.random.default_rng(5)
    masks = [cv2.GaussianBlur(rng.standard_normal((50, 80)), (0, 0), 2) > level for level in (9, 0, 0.1, 9, -9, 0.05)]
    found = encode_masks([MaskRuns.from_image(mask) for mask in masks], mask_format)
    for mask, one in zip(masks, found, strict=True):
        np.testing.assert_array_equal(decode_mask(one, mask_format, 50, 80), mask)


@pytest.mark.parametrize("mask_format", WITH_BYTES)
def test_an_empty_mask_in_every_format(mask_format):
    empty = np.zeros((9, 12), bool)
    assert not decode_mask(encoded(empty, mask_format), mask_format, 9, 12).any()


@pytest.mark.parametrize("mask_format", ["png", "polygon"])
def test_no_whole_image_per_mask(mask_format):
    rows = np.arange(100, 130, dtype=np.int64)
    runs = MaskRuns(rows * 6000 + 2000, rows * 6000 + 2400, 6000, 8000)
    encode_masks([runs], mask_format)  # what is kept for the next time is made
    tracemalloc.start()
    try:
        encode_masks([runs] * 20, mask_format)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6000 * 8000 / 10


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"{}",
        b"7",
        b"[[0,0,1]]",
        b"[[0,0,3,3,0,3]]",
        b"[[0,0,0,900,900,900,900,0]]",
        b'[["a","b"]]',
        b"[[1e400,0]]",
    ],
)
def test_polygons_that_are_none_of_ours(wrong):
    with pytest.raises(ValueError, match="polygons"):
        decode_mask(wrong, "polygon", 9, 12)


def test_base64_that_is_none():
    with pytest.raises(ValueError, match="base64"):
        decode_mask(b"no base64!", "png_base64", 9, 12)


def test_no_masks_cannot_be_decoded():
    assert encode_masks([MaskRuns.from_image(np.ones((2, 2), bool))], "none") == [b""]
    with pytest.raises(ValueError, match="none"):
        decode_mask(b"", "none", 4, 4)
