"""Masks computed inside boxes, against a dense computation in float64."""

import tracemalloc

import cv2
import numpy as np
import pytest

from pipeline.letterbox import Geometry
from pipeline.masks import MaskRuns, mask_boxes, mask_runs


def dense_mask(prototypes, coefficients, box, geometry, stride=4.0):
    """Bilinear interpolation of the logits at every pixel of the image, in float64, then the box."""
    logits = np.tensordot(coefficients.astype(np.float64), prototypes.astype(np.float64), 1)
    height, width = logits.shape

    def axis(size, factor, pad, cells):
        position = ((np.arange(size) + 0.5) * factor + pad) / stride - 0.5
        position = np.clip(position, 0, cells - 1)
        low = np.minimum(position.astype(int), cells - 2)
        return low, position - low

    y, fy = axis(geometry.height, geometry.scale_y, geometry.pad_top, height)
    x, fx = axis(geometry.width, geometry.scale_x, geometry.pad_left, width)
    rows = logits[y] * (1 - fy)[:, None] + logits[y + 1] * fy[:, None]
    values = rows[:, x] * (1 - fx) + rows[:, x + 1] * fx
    cx, cy = np.arange(geometry.width) + 0.5, np.arange(geometry.height) + 0.5
    inside = ((cx >= box[0]) & (cx < box[2]))[None] & ((cy >= box[1]) & (cy < box[3]))[:, None]
    return (values > 0) & inside


def smooth_prototypes(rng, channels, height, width):
    """Random fields whose features are some cells wide, as a network's are."""
    coarse = rng.standard_normal((channels, height // 8 + 2, width // 8 + 2))
    return np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, :height, :width].astype(np.float16)


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (300, 200), (91, 640), (640, 640)])
def test_equals_dense_computation(size):
    rng = np.random.default_rng(size[0])
    geometry = Geometry.fit(*size, 640, 640)
    prototypes = smooth_prototypes(rng, 32, 160, 160)
    coefficients = rng.standard_normal((6, 32)).astype(np.float32)
    corners = np.sort(rng.random((6, 2, 2)), axis=1) * [size[1], size[0]]
    boxes = corners.reshape(6, 4).astype(np.float32)
    for weights, box, mask in zip(
        coefficients, boxes, mask_runs(prototypes, coefficients, boxes, geometry), strict=True
    ):
        expected = dense_mask(prototypes, weights, box, geometry)
        found = mask.to_image()
        union = (found | expected).sum()
        assert union == 0 or (found & expected).sum() / union >= 0.999


def test_prototypes_in_half_and_single_precision_agree():
    rng = np.random.default_rng(1)
    geometry = Geometry.fit(400, 500, 640, 640)
    prototypes = smooth_prototypes(rng, 32, 160, 160)
    coefficients = rng.standard_normal((2, 32)).astype(np.float32)
    boxes = np.array([[10, 20, 200, 300], [100, 5, 490, 390]], np.float32)
    half = mask_runs(prototypes, coefficients, boxes, geometry)
    single = mask_runs(prototypes.astype(np.float32), coefficients, boxes, geometry)
    for one, other in zip(half, single, strict=True):
        np.testing.assert_array_equal(one.starts, other.starts)
        np.testing.assert_array_equal(one.ends, other.ends)


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [0, 0, 0.2, 0.2], [99.7, 49.9, 100, 50], [0, 0, 100, 50]])
def test_smallest_and_largest_boxes(box):
    geometry = Geometry.fit(50, 100, 640, 640)
    prototypes = np.ones((4, 160, 160), np.float16)
    (mask,) = mask_runs(prototypes, np.ones((1, 4), np.float32), np.array([box], np.float32), geometry)
    rows, columns = np.nonzero(mask.to_image())
    assert mask.area == len(rows) >= 1
    assert mask.area == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # all of the box


def test_many_large_instances_take_little_memory():
    rng = np.random.default_rng(3)
    geometry = Geometry.fit(3000, 4000, 640, 640)
    prototypes = smooth_prototypes(rng, 4, 160, 160)
    weights = rng.standard_normal((120, 4)).astype(np.float32)
    boxes = np.tile(np.array([[0, 0, 4000, 3000]], np.float32), (120, 1))
    tracemalloc.start()
    try:
        masks = mask_runs(prototypes, weights, boxes, geometry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 << 20  # 480,000 pixel columns; all at once would take 256 bytes and more for each
    (alone,) = mask_runs(prototypes, weights[77:78], boxes[77:78], geometry)
    np.testing.assert_array_equal(masks[77].starts, alone.starts)


def test_runs_are_whole_apart_and_in_order():
    rng = np.random.default_rng(7)
    geometry = Geometry.fit(300, 400, 640, 640)
    prototypes = rng.standard_normal((32, 160, 160)).astype(np.float16)  # a new sign in almost every cell
    boxes = np.array([[0, 0, 400, 300], [17.3, 20.9, 80.2, 90.1]], np.float32)
    for mask in mask_runs(prototypes, rng.standard_normal((2, 32)).astype(np.float32), boxes, geometry):
        assert np.all(mask.starts < mask.ends)
        assert np.all(mask.ends[:-1] < mask.starts[1:])
        again = MaskRuns.from_image(mask.to_image())
        np.testing.assert_array_equal(again.starts, mask.starts)
        np.testing.assert_array_equal(again.ends, mask.ends)


def test_no_detection_gives_no_mask():
    geometry = Geometry.fit(50, 100, 640, 640)
    prototypes = np.zeros((4, 160, 160), np.float16)
    assert mask_runs(prototypes, np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), geometry) == []


@pytest.mark.parametrize("size", [(300, 400), (40, 90), (1000, 700)])
def test_ready_masks_are_sampled_whole_and_not_cropped(size):
    """As rfdetr does it: bilinear at the pixels' centers, above 0, wherever the box lies."""
    rng = np.random.default_rng(5)
    planes = cv2.GaussianBlur(rng.standard_normal((78, 78, 12)).astype(np.float32), (0, 0), 4).transpose(2, 0, 1) - 0.02
    planes[3] = -1
    planes[4] = 1
    geometry = Geometry.fit(*size, 312, 312, stretch=True)
    numbers = np.array([[7], [3], [0], [4], [7]], np.float32)
    boxes = np.tile(np.array([[1, 1, 5, 5]], np.float32), (len(numbers), 1))
    masks = mask_runs(planes, numbers, boxes, geometry)
    for number, mask in zip(numbers[:, 0].astype(int), masks, strict=True):
        x, y = ((np.arange(side) + 0.5) * 78 / side - 0.5 for side in size[::-1])
        maps = (axis.astype(np.float32) for axis in np.meshgrid(np.clip(x, 0, 77), np.clip(y, 0, 77)))
        expected = cv2.remap(planes[number], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) > 0
        found = mask.to_image()
        union = (expected | found).sum()
        assert (expected ^ found).sum() <= 0.004 * union  # OpenCV samples at multiples of 1/32
    assert masks[1].area == 0
    assert masks[3].area == size[0] * size[1]
    assert (masks[0].to_image() == masks[4].to_image()).all()


def test_work_is_counted_where_ready_masks_lie():
    planes = np.full((2, 78, 78), -1, np.float32)
    planes[1] = 1
    where = Geometry.fit(3000, 4000, 312, 312, stretch=True)
    boxes = mask_boxes(planes, np.array([[0], [1]], np.float32), np.zeros((2, 4), np.float32), where)
    assert boxes.tolist() == [[0, 0, 0, 0], [0, 0, 4000, 3000]]
