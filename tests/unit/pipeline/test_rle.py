"""COCO run-length encoding against pycocotools, the reference implementation."""

import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline import rle
from pipeline.masks import MaskRuns


def reference(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@pytest.mark.parametrize("seed", range(40))
def test_equals_pycocotools(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    mask = rng.random((height, width)) < rng.choice([0.0, 0.05, 0.5, 0.95, 1.0])
    encoded = rle.encode(mask)
    assert encoded == reference(mask)
    assert rle.area(encoded) == mask.sum()
    np.testing.assert_array_equal(rle.decode(encoded, height, width), mask)


def test_many_at_once_equal_one_by_one():
    rng = np.random.default_rng(1)
    masks = [rng.random((30, 40)) < share for share in (0.0, 0.1, 0.5, 0.9, 1.0, 0.3)]
    assert rle.encode_all([MaskRuns.from_image(mask) for mask in masks]) == [reference(mask) for mask in masks]
    assert rle.encode_all([]) == []


def test_long_runs():
    mask = np.zeros((3000, 4000), bool)
    mask[1:2999, 3:3990] = True
    encoded = rle.encode(mask)
    assert encoded == reference(mask)
    np.testing.assert_array_equal(rle.decode(encoded, 3000, 4000), mask)


@pytest.mark.parametrize("counts", [b"\x01", b"zzzz", b"5", b""])
def test_bad_counts_are_refused(counts):
    with pytest.raises(ValueError, match="run"):
        rle.decode(counts, 4, 4)
