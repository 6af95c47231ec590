"""An image of any size into the network's input, letterboxed or stretched, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

PAD_VALUE: Final = 114
"""Gray of the border, the value the YOLO family is trained with (ultralytics ``LetterBox``)."""
IMAGE_FITS: Final = ("letterbox", "stretch")
"""How an image lies in the network's input; see :meth:`Geometry.fit`."""
RESAMPLING: Final = ("area", "bilinear")
"""How images are resized: as :func:`letterbox` does by default, or as it does with ``bilinear``."""


@dataclass(frozen=True)
class Geometry:
    """Where an image lies in the network's input.

    A point (x, y) of the original image, in pixels with pixel centers at .5, lies in the network's input at
    (x * scale_x + pad_left, y * scale_y + pad_top).

    Attributes:
        height: of the original image, in pixels.
        width: of the original image, in pixels.
        resized_height: rows that the image fills in the network's input.
        resized_width: columns that it fills.
        pad_top: rows of border above the image, in network pixels.
        pad_left: columns of border left of the image, in network pixels.

    Example:
        >>> geometry = Geometry.fit(480, 1280, 640, 640)  # height and width of the image, then of the input
        >>> geometry.scale_x, geometry.pad_top, geometry.pad_left
        (0.5, 200, 0)
        >>> geometry.to_image(np.array([[0, 200, 640, 440]], np.float32)).tolist()
        [[0.0, 0.0, 1280.0, 480.0]]
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    pad_top: int
    pad_left: int

    @property
    def scale_x(self) -> float:
        """Network pixels per pixel of the image, across."""
        return self.resized_width / self.width

    @property
    def scale_y(self) -> float:
        """Likewise, down."""
        return self.resized_height / self.height

    @classmethod
    def fit(cls, height: int, width: int, input_height: int, input_width: int, *, stretch: bool = False) -> Geometry:
        """Place an image of ``height`` x ``width`` pixels in the network's input.

        Letterboxed, it keeps its aspect ratio and lies in the middle. Rounding follows ultralytics ``LetterBox`` (half
        a pixel of border goes right and below). With ``stretch``, it fills the input.

        Example:
            >>> Geometry.fit(480, 1280, 312, 312, stretch=True).scale_y
            0.65
        """
        if stretch:
            return cls(height, width, input_height, input_width, 0, 0)
        scale = min(input_height / height, input_width / width)
        resized_height, resized_width = max(1, round(height * scale)), max(1, round(width * scale))
        top = round((input_height - resized_height) / 2 - 0.1)
        left = round((input_width - resized_width) / 2 - 0.1)
        return cls(height, width, resized_height, resized_width, top, left)

    def to_array(self) -> NDArray[np.float32]:
        """The ``geometry`` tensor: float32 [6] of height, width, resized_height, resized_width, pad_top, pad_left."""
        sizes = (self.height, self.width, self.resized_height, self.resized_width, self.pad_top, self.pad_left)
        return np.array(sizes, np.float32)

    @classmethod
    def from_array(cls, values: NDArray[np.float32]) -> Geometry:
        """Read the ``geometry`` tensor, float32 [6]."""
        return cls(*map(int, values.tolist()))

    def to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes from network pixels to the original image and clip them to it.

        Args:
            boxes: float32 [n, 4] of x1, y1, x2, y2 in network pixels.

        Returns:
            float32 [n, 4] of x1, y1, x2, y2 in original pixels, x in [0, width], y in [0, height].
        """
        offset = np.array([self.pad_left, self.pad_top] * 2, np.float32)
        factor = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        limit = np.array([self.width, self.height] * 2, np.float32)
        clipped: NDArray[np.float32] = np.clip((boxes - offset) / factor, 0.0, limit)
        return clipped


def letterbox(
    image: NDArray[np.uint8], out: NDArray[np.uint8], geometry: Geometry | None = None, *, bilinear: bool = False
) -> Geometry:
    """Resize ``image`` into ``out`` and fill the border, where there is one, with gray.

    Args:
        image: uint8 [height, width, 3].
        out: uint8 [input_height, input_width, 3], overwritten whole; C-contiguous.
        geometry: where the image lies in ``out``; None puts it in the middle, its aspect ratio kept.
        bilinear: resize with bilinear samples whatever the size; ``out`` is then what ultralytics ``LetterBox`` gives,
            bit for bit. Otherwise, larger images are averaged over the area of each pixel.

    Returns:
        Where the image lies in ``out``.

    Example:
        >>> out = np.empty((640, 640, 3), np.uint8)
        >>> geometry = letterbox(np.zeros((480, 1280, 3), np.uint8), out)
        >>> int(out[0, 0, 0]), int(out[320, 320, 0]), geometry.pad_top
        (114, 0, 200)
    """
    geometry = geometry or Geometry.fit(image.shape[0], image.shape[1], out.shape[0], out.shape[1])
    top, left = geometry.pad_top, geometry.pad_left
    bottom, right = top + geometry.resized_height, left + geometry.resized_width
    out[:top] = PAD_VALUE
    out[bottom:] = PAD_VALUE
    out[top:bottom, :left] = PAD_VALUE
    out[top:bottom, right:] = PAD_VALUE
    inside = out[top:bottom, left:right]
    if image.shape == inside.shape:
        inside[:] = image
    elif bilinear:
        _resize(image, inside, cv2.INTER_LINEAR)
    else:
        _average(image, inside)
    return geometry


def _average(image: NDArray[np.uint8], inside: NDArray[np.uint8]) -> None:
    """Resize ``image`` into ``inside``: smaller over pixel areas, larger bilinearly.

    Bilinear sampling of a larger image skips pixels, which moves boxes and masks of the reference model by up to two
    pixels. OpenCV averages over areas slowly for factors between 1 and 2 (6 ms a megapixel); there a 3 x 3 blur before
    bilinear sampling does the same in a third of the time, and boxes stay within 0.25 of the network's pixels.
    """
    height, width = inside.shape[:2]
    factors = image.shape[0] / height, image.shape[1] / width
    factor, is_stretched = max(factors), max(factors) > _MOST_ROUNDED * min(factors)
    if is_stretched and min(factors) < 1 < factor:  # OpenCV averages over areas only if both sides shrink
        shrunk = np.empty((min(height, image.shape[0]), min(width, image.shape[1]), 3), np.uint8)
        _average(image, shrunk)
        image, factor = shrunk, 1.0
    method = cv2.INTER_LINEAR
    if factor >= _LEAST_AREA_FACTOR or (is_stretched and factor > 1):
        method = cv2.INTER_AREA
    elif factor > _LEAST_BLUR_FACTOR:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), _blur_sigma(factor)), np.uint8)
    _resize(image, inside, method)


def _resize(image: NDArray[np.uint8], inside: NDArray[np.uint8], method: int) -> None:
    height, width = inside.shape[:2]
    if inside.flags.c_contiguous:
        cv2.resize(image, (width, height), dst=inside, interpolation=method)
    else:
        inside[:] = cv2.resize(image, (width, height), interpolation=method)


_LEAST_AREA_FACTOR: Final = 2.0
_MOST_ROUNDED: Final = 1.05  # between the factors of both sides, in a letterbox
_LEAST_BLUR_FACTOR: Final = 1.1  # below it a blur changes pixels by less than one gray value on average


def _blur_sigma(factor: float) -> float:
    """Sigma of the blur that makes bilinear sampling as wide as averaging over areas.

    Per axis, in source pixels: averaging over ``factor`` pixels has the variance (1 + factor^2) / 12, bilinear
    sampling 2 / 12. The kernel [a, 1 - 2a, a] adds 2a, so a = (factor^2 - 1) / 24. OpenCV makes that kernel from the
    sigma at which exp(-1 / (2 sigma^2)) = a / (1 - 2a).
    """
    side = (factor * factor - 1) / 24
    return math.sqrt(-0.5 / math.log(side / (1 - 2 * side)))
