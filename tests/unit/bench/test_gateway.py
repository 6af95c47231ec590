"""The picture that the gateway is measured with."""

import cv2
import numpy as np

from bench.gateway import SIZES, _padded
from pipeline.images import decode_image


def test_comments_make_a_jpeg_larger_and_nothing_else():
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))[1].tobytes()
    for size in SIZES:
        padded = _padded(jpeg, size)
        assert size - 4 <= len(padded) <= size
        assert np.array_equal(decode_image(padded), decode_image(jpeg))
