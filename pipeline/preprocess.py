"""One encoded image to one slice of the network's input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.images import ImageLimits, decode_for, decode_image
from pipeline.letterbox import Geometry, letterbox


def preprocess(
    data: bytes,
    out: NDArray[np.uint8],
    limits: ImageLimits | None = None,
    *,
    stretch: bool = False,
    bilinear: bool = False,
) -> Geometry:
    """Decode ``data`` and letterbox, or stretch, it into ``out``.

    Args:
        data: an encoded image (see :func:`pipeline.images.decode_for`).
        out: uint8 [input_height, input_width, 3], overwritten whole with RGB pixels.
        limits: bounds on the image.
        stretch: whether the image fills ``out``; else it keeps its aspect ratio, between gray borders.
        bilinear: decode the whole image and take bilinear samples of it, as ultralytics does (see
            :func:`pipeline.letterbox.letterbox`); a large JPEG then takes longer.

    Returns:
        Where the image lies in ``out``.

    Raises:
        ImageError: the bytes cannot be decoded within the limits.

    Example:
        >>> import cv2
        >>> _, jpeg = cv2.imencode(".jpg", np.zeros((480, 1280, 3), np.uint8))
        >>> out = np.empty((640, 640, 3), np.uint8)
        >>> preprocess(jpeg.tobytes(), out).pad_top
        200
    """
    input_height, input_width = out.shape[:2]
    if bilinear:
        image = decode_image(data, limits)
        height, width = image.shape[:2]
    else:
        image, height, width = decode_for(data, input_height, input_width, limits, stretch=stretch)
    geometry = Geometry.fit(height, width, input_height, input_width, stretch=stretch)
    return letterbox(image, out, geometry, bilinear=bilinear)
