import cv2
import numpy as np
import pytest

from pipeline.preprocess import decode_seconds

PIXELS = np.zeros((1000, 2000, 3), np.uint8)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_the_time_to_decode_follows_the_pixels(extension):
    whole = cv2.imencode(extension, PIXELS)[1].tobytes()
    half = cv2.imencode(extension, PIXELS[:, :1000])[1].tobytes()
    assert 0.01 < decode_seconds(whole) < 0.2
    assert decode_seconds(whole) == pytest.approx(2 * decode_seconds(half))


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_takes_no_time(data):
    assert decode_seconds(data) == 0
