"""Masks decoded on demand."""

import numpy as np
import pytest

from pipeline.result import Segmentation
from tests.unit.client.results import disc, empty_segmentation, segmentation_of


def test_masks_come_back():
    masks = [disc(40, 60, 20, 15, 9), disc(40, 60, 45, 25, 5)]
    result = segmentation_of(masks, class_ids=[3, 1])
    assert len(result) == 2
    assert np.array_equal(result.mask(1), masks[1])
    assert np.array_equal(result.masks, np.stack(masks))
    assert result.masks is result.masks
    assert [(found.class_id, int(found.mask().sum())) for found in result] == [
        (3, int(masks[0].sum())),
        (1, int(masks[1].sum())),
    ]


def test_none_found():
    result = empty_segmentation(40, 60)
    assert result.masks.shape == (0, 40, 60)
    assert list(result) == []
    with pytest.raises(IndexError):
        result.mask(0)


def test_no_masks_asked_for():
    result = segmentation_of([disc(10, 10, 5, 5, 3)])
    bare = Segmentation(result.boxes, result.scores, result.class_ids, (b"",), "none", result.image_size)
    with pytest.raises(ValueError, match="none"):
        bare.mask(0)
