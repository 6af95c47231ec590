"""Flat objects with rounded corners, seen in perspective: their pixels and their exact masks.

Cards, papers, pens and coins are all rounded rectangles of some size in millimeters with a picture on them. An
object's homography takes a point on it (x right, y down, in millimeters from its center) to image pixels, with
pixel centers at .5.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]

# A card: ISO/IEC 7810, size ID-1.
LONG_SIDE_MM: Final = 85.60
SHORT_SIDE_MM: Final = 53.98
CORNER_RADIUS_MM: Final = 3.18
TEXELS_PER_MM: Final = 10
"""Resolution of every card's texture: 856 x 540 texels."""


@dataclass(frozen=True)
class FlatObject:
    """A rounded rectangle with a picture on it."""

    texture: Pixels  # uint8 [rows, columns, 3] RGB; fills the whole rectangle, corners included
    width_mm: float  # of the rectangle
    height_mm: float  # of the rectangle
    radius_mm: float  # of its corners; half the shorter side makes a pill or a disc
    name: str = ""  # what it is and where it comes from, such as ``drawn 17``
    _levels: list[Pixels] = field(default_factory=list, repr=False, compare=False)

    def level(self, texels_per_pixel: float) -> Pixels:
        """The texture, halved until it has at most two texels per image pixel."""
        if not self._levels:
            self._levels.append(self.texture)
        wanted = max(0, int(np.log2(max(texels_per_pixel, 1.0))))
        while len(self._levels) <= wanted and min(self._levels[-1].shape[:2]) >= 8:
            last = self._levels[-1]
            half = (max(1, last.shape[1] // 2), max(1, last.shape[0] // 2))
            self._levels.append(np.asarray(cv2.resize(last, half, interpolation=cv2.INTER_AREA), np.uint8))
        return self._levels[min(wanted, len(self._levels) - 1)]


class Window(NamedTuple):
    """A rectangle of pixels of an image: rows ``top`` to ``bottom``, columns ``left`` to ``right``, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.top >= self.bottom or self.left >= self.right


@dataclass(frozen=True)
class Footprint:
    """Where an object lies in an image."""

    window: Window  # the pixels that it may touch
    x_mm: NDArray[np.float32]  # float32, shape of the window: the point of the object behind each pixel center
    y_mm: NDArray[np.float32]  # likewise
    # float32, likewise: distance to the object's outline in pixels, negative inside. Its sign is exact; its size is to
    # first order, for smooth edges.
    distance_px: NDArray[np.float32]
    area_px: float  # area of the whole object in pixels, with what is outside the image

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """bool, shape of the window: the pixels whose center is on the object."""
        inside: NDArray[np.bool_] = self.distance_px <= 0
        return inside


def outline(thing: FlatObject, points_per_corner: int = 16) -> Matrix:
    """The object's outline as a polygon: float64 [4 * points_per_corner, 2] of x, y in millimeters, clockwise."""
    radius = thing.radius_mm
    x, y = thing.width_mm / 2 - radius, thing.height_mm / 2 - radius
    turn = np.linspace(0, np.pi / 2, points_per_corner)
    corners = []
    for quarter, center in enumerate(((x, y), (-x, y), (-x, -y), (x, -y))):
        angle = turn + quarter * np.pi / 2
        corners.append(np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + center)
    return np.concatenate(corners)


def project(points_mm: Matrix, homography: Matrix) -> Matrix:
    """Points [n, 2] in millimeters through ``homography`` [3, 3] to image pixels [n, 2]."""
    mapped = np.c_[points_mm, np.ones(len(points_mm))] @ homography.T
    pixels: Matrix = mapped[:, :2] / mapped[:, 2:]
    return pixels


def is_in_front(thing: FlatObject, homography: Matrix) -> bool:
    """Whether the whole object is in front of the camera that ``homography`` describes."""
    x, y = thing.width_mm / 2, thing.height_mm / 2
    corners = np.array([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]])
    return bool((corners @ homography[2] > 1e-6).all())


def footprint(thing: FlatObject, homography: Matrix, height: int, width: int) -> Footprint:
    """Where ``thing`` lies in an image of ``height`` x ``width`` pixels.

    Each pixel center is mapped back to the object and compared with its outline, so the mask is exact: no polygon is
    filled and nothing is resampled.
    """
    polygon = project(outline(thing), homography)
    low = np.floor(polygon.min(axis=0)).astype(int) - 2
    high = np.ceil(polygon.max(axis=0)).astype(int) + 2
    window = Window(max(0, low[1]), min(height, high[1]), max(0, low[0]), min(width, high[0]))
    area = 0.5 * abs(
        float(np.dot(polygon[:, 0], np.roll(polygon[:, 1], -1)) - np.dot(polygon[:, 1], np.roll(polygon[:, 0], -1)))
    )
    if window.is_empty:
        nothing = np.zeros((0, 0), np.float32)
        return Footprint(Window(0, 0, 0, 0), nothing, nothing, nothing, area)
    # Single precision is enough once the origin is in the middle of the window: errors stay below 1e-4 px.
    middle = np.array([(window.left + window.right) / 2, (window.top + window.bottom) / 2])
    inverse = np.linalg.inv(np.array([[1, 0, -middle[0]], [0, 1, -middle[1]], [0, 0, 1.0]]) @ homography)
    inverse /= inverse[2, 2]
    columns = (np.arange(window.left, window.right) + 0.5 - middle[0]).astype(np.float32)[None, :]
    rows = (np.arange(window.top, window.bottom) + 0.5 - middle[1]).astype(np.float32)[:, None]
    m = inverse.astype(np.float32)
    per_depth = 1 / ((m[2, 0] * columns) + (m[2, 1] * rows + m[2, 2]))
    x_mm = ((m[0, 0] * columns) + (m[0, 1] * rows + m[0, 2])) * per_depth
    y_mm = ((m[1, 0] * columns) + (m[1, 1] * rows + m[1, 2])) * per_depth
    # The area of a pixel on the object is |det(inverse)| / |depth|^3: the Jacobian of a homography.
    pixels_per_mm = np.abs(per_depth) ** np.float32(-1.5) / np.float32(np.sqrt(abs(np.linalg.det(inverse))))
    return Footprint(window, x_mm, y_mm, _distance(thing, x_mm, y_mm) * pixels_per_mm, area)


def _distance(thing: FlatObject, x_mm: NDArray[np.float32], y_mm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed distance to a rounded rectangle: Inigo Quilez, "2D distance functions", sdRoundedBox."""
    radius = np.float32(thing.radius_mm)
    across = np.abs(x_mm) - np.float32(thing.width_mm / 2 - thing.radius_mm)
    along = np.abs(y_mm) - np.float32(thing.height_mm / 2 - thing.radius_mm)
    distance = np.maximum(across, along)
    at_corner = (across > 0) & (along > 0)
    distance[at_corner] = np.hypot(across[at_corner], along[at_corner])
    distance -= radius
    return distance


def sample(thing: FlatObject, place: Footprint) -> Pixels:
    """The object's picture behind each pixel of its window: uint8 [rows, columns, 3] RGB."""
    rows, columns = thing.texture.shape[:2]
    texture = thing.level(float(np.sqrt(rows * columns / max(place.area_px, 1.0))))
    half = np.float32(0.5)
    map_x = (place.x_mm / np.float32(thing.width_mm) + half) * np.float32(texture.shape[1]) - half
    map_y = (place.y_mm / np.float32(thing.height_mm) + half) * np.float32(texture.shape[0]) - half
    sampled = cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, np.uint8)


def paint(image: Pixels, pixels: Pixels, place: Footprint) -> None:
    """Lay ``pixels`` over ``image`` (uint8 [height, width, 3], changed in place) where the object covers it."""
    under = image[place.window.slices]
    alpha = np.clip(0.5 - place.distance_px, 0.0, 1.0)  # how much of each pixel the object covers
    edge = (alpha > 0) & (alpha < 1)
    blended = under[edge] + (pixels[edge].astype(np.float32) - under[edge]) * alpha[edge][:, None]
    under[:] = cv2.copyTo(pixels, (alpha >= 1).view(np.uint8), under.copy())
    under[edge] = np.rint(blended).astype(np.uint8)


def paint_shadow(image: Pixels, place: Footprint, offset_px: tuple[float, float], blur_px: float, depth: float) -> None:
    """Darken what is around and under an object, in place; ``blur_px`` is how wide its edge is, ``depth`` in [0, 1]."""
    height, width = image.shape[:2]
    reach = round(blur_px * 2 + max(map(abs, offset_px))) + 1
    top, bottom, left, right = place.window
    rows = slice(max(0, top - reach), min(height, bottom + reach))
    columns = slice(max(0, left - reach), min(width, right + reach))
    under = image[rows, columns]
    shadow = np.zeros(under.shape[:2], np.uint8)
    covered = place.mask * np.uint8(round(255 * depth))
    shadow[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = covered
    shift = np.array([[1, 0, offset_px[0]], [0, 1, offset_px[1]]], np.float32)
    shifted = cv2.warpAffine(shadow, shift, (shadow.shape[1], shadow.shape[0]))
    side = max(3, round(blur_px) * 2 + 1)
    light = cv2.bitwise_not(cv2.blur(cv2.blur(shifted, (side, side)), (side, side)))
    under[:] = cv2.multiply(under, cv2.merge([light, light, light]), scale=1 / 255)
