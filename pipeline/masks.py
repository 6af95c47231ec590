"""Instance masks from prototypes and coefficients, as runs of pixels, without rasterising a mask.

YOLACT (Bolya et al., 2019): a mask is the weighted sum of the network's prototypes, cropped to the box. Its
logits are interpolated bilinearly to the original image and cut at 0 (that is, at probability 0.5).

Down one column of the image, the interpolated logit is piecewise linear in y: it bends at the prototype's rows only.
So the rows where it changes its sign follow from the values at those rows, exactly, and no pixel in between has to be
looked at. A column costs as much as the prototype rows that it crosses, and what comes out are the runs that COCO's
encoding is made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.letterbox import Geometry


@dataclass(frozen=True)
class MaskRuns:
    """One instance's mask as runs of set pixels, down the columns of the image from left to right.

    The pixel (x, y) has the index x * height + y, as in COCO's run-length encoding.

    Attributes:
        starts: int64 [r], index of each run's first pixel, rising.
        ends: int64 [r], index behind each run's last pixel; ``starts[i] < ends[i] < starts[i + 1]``.
        height: of the whole image, in pixels.
        width: of the whole image, in pixels.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    height: int
    width: int

    @property
    def area(self) -> int:
        """Pixels set."""
        return int((self.ends - self.starts).sum())

    def to_image(self) -> NDArray[np.bool_]:
        """The mask in the whole image: bool [height, width]."""
        bounds = np.empty(2 * len(self.starts) + 2, np.int64)
        bounds[0], bounds[-1] = 0, self.height * self.width
        bounds[1:-1:2], bounds[2:-1:2] = self.starts, self.ends
        values = np.arange(len(bounds) - 1) % 2 == 1
        return np.ascontiguousarray(np.repeat(values, np.diff(bounds)).reshape(self.width, self.height).T)

    @classmethod
    def from_image(cls, mask: NDArray[np.bool_] | NDArray[np.uint8]) -> MaskRuns:
        """Runs of a whole mask [height, width], set where not 0."""
        height, width = mask.shape
        columns = np.ascontiguousarray(np.asarray(mask, bool).T).reshape(-1)
        framed = np.concatenate([[False], columns, [False]])
        edges = np.flatnonzero(framed[1:] != framed[:-1])
        return cls(edges[0::2], edges[1::2], height, width)


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """First pixel and end of the pixels whose centres lie in [low, high), at least one, within [0, size)."""
    first = min(max(math.ceil(low - 0.5), 0), size - 1)
    return first, min(max(math.ceil(high - 0.5), first + 1), size)


@dataclass(frozen=True)
class _Axis:
    """Pixels of one axis inside a box, and the prototype cells that they are interpolated from.

    Pixel ``first + i`` lies at ``offset + i * step``, counted in cells from the centre of cell ``low``.
    """

    first: int
    count: int
    low: int
    high: int
    step: float
    offset: float

    @classmethod
    def of(cls, box: tuple[float, float], size: int, factor: float, pad: float, cells: int) -> _Axis:
        first, end = _pixels(*box, size)
        start = (first + 0.5) * factor + pad - 0.5
        last = start + (end - 1 - first) * factor
        low = min(max(math.floor(start), 0), cells - 1)
        high = min(max(math.floor(last) + 2, low + 1), cells)
        return cls(first, end - first, low, high, factor, start - low)


def mask_runs(
    prototypes: NDArray[np.float16] | NDArray[np.float32],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    geometry: Geometry,
    stride: float = 4.0,
) -> list[MaskRuns]:
    """Compute every instance's mask inside its box.

    Args:
        prototypes: float16 or float32 [C, proto_height, proto_width], channel first.
        coefficients: float32 [n, C].
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image, within it.
        geometry: where the image lies in the network's input.
        stride: network pixels per prototype cell (4 in the YOLOv8-seg family).

    Returns:
        n masks. A pixel is set when its centre lies in the box and its interpolated logit is above 0.
    """
    _, proto_height, proto_width = prototypes.shape
    horizontal = (geometry.width, geometry.scale_x / stride, geometry.pad_left / stride, proto_width)
    vertical = (geometry.height, geometry.scale_y / stride, geometry.pad_top / stride, proto_height)
    places = [(_Axis.of((x1, x2), *horizontal), _Axis.of((y1, y2), *vertical)) for x1, y1, x2, y2 in boxes.tolist()]
    if not places:
        return []
    # Half precision is widened once for the region that any box touches.
    left, right = min(x.low for x, _ in places), max(x.high for x, _ in places)
    top, bottom = min(y.low for _, y in places), max(y.high for _, y in places)
    region = prototypes[:, top:bottom, left:right].astype(np.float32)
    masks = []
    for weights, (x, y) in zip(coefficients, places, strict=True):
        cells = region[:, y.low - top : y.high - top, x.low - left : x.high - left]
        logits = (weights @ cells.reshape(len(weights), -1)).reshape(cells.shape[1:])
        starts, ends = _crossings(_interpolate_columns(logits, x), y)
        base = x.first * geometry.height + y.first
        masks.append(_join(*_flatten(starts, ends, geometry.height, base), geometry))
    return masks


def _interpolate_columns(logits: NDArray[np.float32], x: _Axis) -> NDArray[np.float32]:
    """Logits [rows, cells] at every pixel column: float32 [columns, rows]."""
    position = np.clip(np.arange(x.count, dtype=np.float32) * x.step + x.offset, 0, logits.shape[1] - 1)
    cell = np.minimum(position.astype(np.intp), max(logits.shape[1] - 2, 0))
    fraction = (position - cell).astype(np.float32)[:, None]
    columns = np.ascontiguousarray(logits.T)
    steps = np.diff(columns, axis=0, append=columns[-1:])
    values: NDArray[np.float32] = columns[cell]
    values += fraction * steps[cell]
    return values


def _crossings(
    values: NDArray[np.float32], y: _Axis
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.intp]]:
    """Pixel rows where the mask begins and ends, column by column.

    Args:
        values: float32 [columns, rows], logits of every pixel column at the prototype's rows.
        y: the pixels of the vertical axis.

    Returns:
        Columns and rows of the beginnings, and rows of the ends, in order; rows count from the box's top.
    """
    columns, rows = values.shape
    signs = np.zeros((columns, rows + 2), bool)
    np.greater(values, 0, out=signs[:, 1:-1])
    edges = np.flatnonzero(signs.reshape(-1)[1:] != signs.reshape(-1)[:-1])
    column, before = np.divmod(edges, rows + 2)
    # Edge 0 is the box's upper side and edge ``rows`` its lower one; the others lie between two prototype rows.
    row = np.clip(before, 1, max(rows - 1, 1)) - 1
    upper = values[column, row]
    lower = values[column, np.minimum(row + 1, rows - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = (row + upper / (upper - lower) - y.offset) / y.step
    pixel = np.empty(len(edges), np.float64)
    pixel[0::2] = np.floor(crossing[0::2]) + 1  # the first row above 0
    pixel[1::2] = np.ceil(crossing[1::2])  # the first row not above 0
    pixel[before == 0] = 0
    pixel[before == rows] = y.count
    clipped = np.clip(pixel, 0, y.count).astype(np.intp)
    return (column[0::2], clipped[0::2]), clipped[1::2]


def _flatten(
    starts: tuple[NDArray[np.intp], NDArray[np.intp]], ends: NDArray[np.intp], height: int, base: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    column, first = starts
    origin = column.astype(np.int64) * height + base
    return origin + first, origin + ends


def _join(starts: NDArray[np.int64], ends: NDArray[np.int64], geometry: Geometry) -> MaskRuns:
    """Drop runs without a pixel, and join runs that touch (down a column, or from its foot to the next one's head)."""
    filled = ends > starts
    if not filled.all():
        starts, ends = starts[filled], ends[filled]
    apart = starts[1:] != ends[:-1]
    if not apart.all():
        starts = starts[np.concatenate([[True], apart])]
        ends = ends[np.concatenate([apart, [True]])]
    return MaskRuns(starts, ends, geometry.height, geometry.width)
