"""Large JPEGs decoded at a fraction of their size: the same picture in the network's input, original coordinates."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.images import decode_for, decode_image
from pipeline.letterbox import Geometry, letterbox
from pipeline.preprocess import preprocess


def picture(height, width):
    """Smooth, and different in every corner."""
    coarse = np.random.default_rng(height).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "reduction"),
    [((600, 640), 1), ((1279, 1279), 1), ((1280, 700), 2), ((3000, 4000), 4), ((1287, 5121), 8), ((41, 6000), 8)],
)
def test_reduced_as_far_as_the_input_allows(size, reduction):
    image, height, width = decode_for(jpeg(picture(*size)), 640, 640)
    assert (height, width) == size
    assert image.shape[:2] == (-(-height // reduction), -(-width // reduction))
    geometry = Geometry.fit(height, width, 640, 640)
    assert image.shape[0] >= geometry.resized_height
    assert image.shape[1] >= geometry.resized_width


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1400, 2001), (2001, 1400)])
def test_equals_whole_decoding_in_every_orientation(orientation, size):
    data = jpeg(picture(*size), orientation)
    whole = decode_image(data)
    found, expected = np.empty((640, 640, 3), np.uint8), np.empty((640, 640, 3), np.uint8)
    geometry = preprocess(data, found)
    assert geometry == letterbox(whole, expected)
    assert (geometry.height, geometry.width) == whole.shape[:2]
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 1
    assert difference.max() <= 12


@pytest.mark.parametrize("stretch", [False, True])
def test_bilinear_samples_are_those_of_the_whole_image(stretch):
    data = jpeg(np.random.default_rng(0).integers(0, 256, (2100, 2800, 3), dtype=np.uint8), orientation=6)
    whole = decode_image(data)
    bilinear, expected, area = (np.empty((640, 640, 3), np.uint8) for _ in range(3))
    geometry = preprocess(data, bilinear, stretch=stretch, bilinear=True)
    letterbox(whole, expected, geometry, bilinear=True)
    np.testing.assert_array_equal(bilinear, expected)
    assert preprocess(data, area, stretch=stretch) == geometry
    assert area.std() < 0.7 * bilinear.std()  # the noise that averages away


def test_other_formats_are_decoded_whole():
    stream = io.BytesIO()
    Image.fromarray(picture(1400, 1500)).save(stream, "PNG")
    image, height, width = decode_for(stream.getvalue(), 640, 640)
    assert image.shape[:2] == (height, width) == (1400, 1500)


@pytest.mark.parametrize("factor", [1.15, 1.42, 1.9])
def test_blurred_bilinear_is_close_to_area_averaging(factor):
    """On noise, where plain bilinear sampling is furthest from it."""
    noise = np.random.default_rng(0).integers(0, 256, (round(640 * factor), round(640 * factor), 3), dtype=np.uint8)
    out = np.empty((640, 640, 3), np.uint8)
    letterbox(noise, out)
    area = cv2.resize(noise, (640, 640), interpolation=cv2.INTER_AREA).astype(float)
    linear = cv2.resize(noise, (640, 640), interpolation=cv2.INTER_LINEAR).astype(float)
    ours = np.sqrt(((out - area) ** 2).mean())
    assert ours < 0.75 * np.sqrt(((linear - area) ** 2).mean())
