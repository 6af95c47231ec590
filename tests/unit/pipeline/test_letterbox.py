import cv2
import numpy as np
import pytest

from pipeline.letterbox import PAD_VALUE, Geometry, letterbox


@pytest.mark.parametrize(
    ("height", "width", "input_size"),
    [
        (480, 640, (640, 640)),
        (1080, 1920, (640, 640)),
        (1, 1, (640, 640)),
        (6000, 1, (640, 640)),
        (333, 777, (384, 640)),
    ],
)
def test_image_lies_centered_in_gray(height, width, input_size):
    image = np.full((height, width, 3), 200, np.uint8)
    out = np.zeros((*input_size, 3), np.uint8)
    geometry = letterbox(image, out)
    inside = np.all(out == 200, axis=2)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (len(rows), len(columns)) == (geometry.resized_height, geometry.resized_width)
    assert (rows[0], columns[0]) == (geometry.pad_top, geometry.pad_left)
    assert np.all(out[~inside] == PAD_VALUE)
    assert abs(geometry.pad_top - (input_size[0] - rows[-1] - 1)) <= 1
    assert abs(geometry.pad_left - (input_size[1] - columns[-1] - 1)) <= 1


def test_geometry_survives_its_tensor():
    for size in [(315, 1200), (909, 909), (4000, 6000), (1, 7)]:
        geometry = Geometry.fit(*size, 640, 640)
        assert Geometry.from_array(geometry.to_array()) == geometry


@pytest.mark.parametrize("size", [(315, 1200), (420, 700), (37, 1001), (3000, 4000)])
def test_boxes_come_back_to_where_they_were(size):
    geometry = Geometry.fit(*size, 640, 640)
    original = np.array(
        [[0, 0, size[1], size[0]], [size[1] * 0.2, size[0] * 0.3, size[1] * 0.7, size[0] * 0.9]], np.float32
    )
    factor = [geometry.scale_x, geometry.scale_y] * 2
    offset = [geometry.pad_left, geometry.pad_top] * 2
    np.testing.assert_allclose(geometry.to_image((original * factor + offset).astype(np.float32)), original, atol=0.01)


def test_boxes_are_clipped_to_the_image():
    geometry = Geometry.fit(100, 200, 640, 640)
    (box,) = geometry.to_image(np.array([[-50, -50, 900, 900]], np.float32))
    assert box.tolist() == [0, 0, 200, 100]


def test_image_of_the_input_size_is_copied():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    out = np.zeros_like(image)
    letterbox(image, out)
    np.testing.assert_array_equal(out, image)


def test_smaller_images_are_averaged_over_area():
    image = np.zeros((128, 128, 3), np.uint8)
    image[::2] = 200
    out = np.zeros((64, 64, 3), np.uint8)
    letterbox(image, out)
    np.testing.assert_array_equal(out, cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA))
    assert np.all(out == 100)


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("size", [(720, 1280), (700, 512), (100, 90), (40, 3000), (312, 312)])
def test_bilinear_samples_whatever_the_size(size, stretch):
    """Against the four neighbors of each sample, weighted in floating point; OpenCV's weights have 11 bits."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = np.empty((312, 312, 3), np.uint8)
    geometry = letterbox(image, out, Geometry.fit(*size, 312, 312, stretch=stretch), bilinear=True)
    expected = image.astype(float)
    for axis, (here, there) in enumerate(zip(size, (geometry.resized_height, geometry.resized_width), strict=True)):
        places = np.clip((np.arange(there) + 0.5) * here / there - 0.5, 0, here - 1)
        first = places.astype(int)
        weights = (places - first).reshape(-1, *[1] * (2 - axis))
        one, other = (np.take(expected, np.minimum(first + step, here - 1), axis) for step in (0, 1))
        expected = one + (other - one) * weights
    bottom, right = geometry.pad_top + geometry.resized_height, geometry.pad_left + geometry.resized_width
    inside = out[geometry.pad_top : bottom, geometry.pad_left : right]
    assert np.abs(inside - expected).max() <= 1
    assert (out == PAD_VALUE).all(2).sum() >= out.shape[0] * out.shape[1] - inside.shape[0] * inside.shape[1]


def test_half_a_row_is_rounded_as_ultralytics_rounds_it():
    """405 * 640 / 768 is 337.5, which a scale in single precision makes less."""
    assert Geometry.fit(405, 768, 640, 640).resized_height == 338


@pytest.mark.parametrize("size", [(720, 1280), (100, 900), (200, 150), (312, 312), (1, 1), (40, 3000)])
def test_a_stretched_image_fills_the_input(size):
    """Each side by itself averaged where it shrinks, interpolated where it grows: what OpenCV does side by side."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    out = np.empty((312, 312, 3), np.uint8)
    geometry = letterbox(image, out, Geometry.fit(*size, 312, 312, stretch=True))
    expected = image
    for wanted in ((expected.shape[1], 312), (312, 312)):
        method = cv2.INTER_AREA if wanted[0] < expected.shape[1] or wanted[1] < expected.shape[0] else cv2.INTER_LINEAR
        expected = cv2.resize(expected, wanted, interpolation=method)
    assert np.abs(out.astype(int) - expected).mean() < 1.5
    corners = np.array([[0, 0, 312, 312]], np.float32)
    assert geometry.to_image(corners).tolist() == [[0, 0, size[1], size[0]]]
    assert Geometry.from_array(geometry.to_array()) == geometry
