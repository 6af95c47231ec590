"""Instance masks as runs of pixels, without rasterizing a mask.

YOLACT (Bolya et al., 2019): a mask is the weighted sum of the network's prototypes, cropped to the box. Networks
without prototypes, such as RF-DETR-seg, give one ready mask per query, which is not cropped. The logits are
interpolated bilinearly to the original image and cut at 0 (that is, at probability 0.5).

Down one column of the image, the interpolated logit is piecewise linear in y: it bends only at the prototype's rows.
So the rows where it changes sign follow exactly from the values at those rows, without looking at the pixels between.
Across the image it is the same: between two prototype columns of one sign every pixel column has that sign, so values
are interpolated only along the outline. The results are the runs that COCO's encoding consists of.

All instances of an image go through each step together, because a NumPy call costs more than a small instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import cv2
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

    Example:
        >>> runs = MaskRuns.from_image(np.array([[0, 1], [0, 1], [1, 1]], bool))
        >>> runs.starts.tolist(), runs.ends.tolist(), runs.area
        ([2], [6], 4)
        >>> runs.to_image().astype(int).tolist()
        [[0, 1], [0, 1], [1, 1]]
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


@dataclass(frozen=True)
class _Spans:
    """Pixels of one axis inside each of n boxes, and the prototype cells that they are interpolated from.

    Pixel ``first + i`` lies at ``offset + i * step``, counted in cells from the center of cell ``low``. ``step`` is a
    float; the others are arrays [n].
    """

    first: NDArray[np.int64]
    count: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    offset: NDArray[np.float64]
    step: float

    @classmethod
    def of(
        cls, boxes: NDArray[np.float64], geometry: Geometry, stride: float, cells: tuple[int, int]
    ) -> tuple[_Spans, _Spans]:
        """Pixels whose centers lie in the boxes, at least one each, within the image; both axes in one go.

        Args:
            boxes: float64 [n, 4] of x1, y1, x2, y2 in pixels of the original image.
            geometry: where the image lies in the network's input.
            stride: network pixels per prototype cell.
            cells: prototype cells across and down.

        Returns:
            Spans across and down.
        """
        begin, end = boxes.T.reshape(2, 2, -1)
        steps = geometry.scale_x / stride, geometry.scale_y / stride
        pads = geometry.pad_left / stride, geometry.pad_top / stride
        axes = ((geometry.width, geometry.height), steps, pads, cells)
        size, step, pad, most = np.array(axes, np.float64)[..., None]
        first = np.minimum(np.maximum(np.ceil(begin - 0.5), 0), size - 1)
        last = np.minimum(np.maximum(np.ceil(end - 0.5), first + 1), size) - 1
        start = (first + 0.5) * step + pad - 0.5
        low = np.minimum(np.maximum(np.floor(start), 0), most - 1)
        stop = (last + 0.5) * step + pad - 0.5
        high = np.minimum(np.maximum(np.floor(stop) + 2, low + 1), most)
        offset = start - low
        first, count, low, high = np.array((first, last - first + 1, low, high)).astype(np.int64)
        across, down = (
            cls(first[axis], count[axis], low[axis], high[axis], offset[axis], steps[axis]) for axis in range(2)
        )
        return across, down

    def __getitem__(self, chosen: NDArray[np.int64]) -> _Spans:
        return _Spans(
            self.first[chosen],
            self.count[chosen],
            self.low[chosen],
            self.high[chosen],
            self.offset[chosen],
            self.step,
        )


def mask_runs(
    prototypes: NDArray[np.float16] | NDArray[np.float32],
    coefficients: NDArray[Any],
    boxes: NDArray[np.float32],
    geometry: Geometry,
    stride: float = 4.0,
) -> list[MaskRuns]:
    """Compute every instance's mask: inside its box, or, if it is a ready one, wherever it lies.

    Args:
        prototypes: float16 or float32 [C, proto_height, proto_width], channel first; or C ready masks (see
            :func:`holds_ready_masks`).
        coefficients: float32 [n, C]; or [n, 1], numbers of ready masks.
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image, within it.
        geometry: where the image lies in the network's input.
        stride: network pixels per prototype cell (4 in the YOLOv8-seg family).

    Returns:
        n masks. A pixel is set when its center lies in the box and its interpolated logit is above 0; of a ready mask,
        when the logit is.

    Example:
        >>> prototypes = np.ones((1, 160, 160), np.float32)  # one prototype, 1 everywhere: the mask fills its box
        >>> boxes = np.array([[100, 100, 120, 110]], np.float32)
        >>> (mask,) = mask_runs(prototypes, np.ones((1, 1), np.float32), boxes, Geometry.fit(640, 640, 640, 640))
        >>> mask.area
        200
    """
    if not len(boxes):
        return []
    _, proto_height, proto_width = prototypes.shape
    if holds_ready_masks(prototypes, coefficients):  # from here on, a plane and its number per detection
        boxes = mask_boxes(prototypes, coefficients, boxes, geometry, stride)
        prototypes = prototypes[coefficients[:, 0].astype(np.intp)]
        coefficients = np.arange(len(boxes))
    across, down = _Spans.of(boxes.astype(np.float64), geometry, stride, (proto_width, proto_height))
    top = int(down.low.min())
    region = _widened(prototypes, top, int(down.high.max()))
    masks: list[MaskRuns] = [_NOTHING] * len(boxes)
    for group in _groups(down.high - down.low, across.count):
        x, y = across[group], down[group]
        planes = _logits(region, coefficients[group], x, y, top)
        runs = _runs(planes, x, y, geometry.height)
        for index, starts, ends in zip(group.tolist(), *runs, strict=True):
            masks[index] = MaskRuns(starts, ends, geometry.height, geometry.width)
    return masks


def holds_ready_masks(prototypes: NDArray[Any], coefficients: NDArray[np.float32]) -> bool:
    """Whether the network gives ready masks in place of prototypes: several planes, and one number per detection.

    Args:
        prototypes: [C, proto_height, proto_width].
        coefficients: float32 [n, C], or [n, 1] of numbers of planes.

    Example:
        >>> holds_ready_masks(np.zeros((100, 78, 78)), np.zeros((3, 1), np.float32))
        True
        >>> holds_ready_masks(np.zeros((32, 160, 160)), np.zeros((3, 32), np.float32))
        False
    """
    return coefficients.shape[1] == 1 < len(prototypes)


def mask_boxes(
    prototypes: NDArray[np.float16] | NDArray[np.float32],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    geometry: Geometry,
    stride: float = 4.0,
) -> NDArray[np.float32]:
    """The part of the image that each mask lies in: its box, or where the logits of a ready mask reach above 0.

    Args:
        prototypes, coefficients, boxes, geometry, stride: as in :func:`mask_runs`.

    Returns:
        float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image, within it.

    Example:
        >>> planes = np.full((2, 10, 10), -1, np.float32)
        >>> planes[1, 4:6, 2] = 1
        >>> where = Geometry.fit(40, 40, 40, 40)
        >>> mask_boxes(planes, np.ones((1, 1), np.float32), np.zeros((1, 4), np.float32), where).tolist()
        [[6.0, 14.0, 14.0, 26.0]]
    """
    if not len(boxes) or not holds_ready_masks(prototypes, coefficients):
        return boxes
    positive = prototypes[coefficients[:, 0].astype(np.intp)] > 0
    sides = []
    for axis in (2, 1):  # x, y
        cells = positive.any(axis=3 - axis)
        # An interpolated value is above 0 only between a cell that is, and its neighbors.
        sides.append((cells.argmax(axis=1) - 0.5, cells.shape[1] - cells[:, ::-1].argmax(axis=1) + 0.5))
    corners = np.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], axis=1) * stride
    corners[~positive.any(axis=(1, 2))] = 0
    return geometry.to_image(corners.astype(np.float32))


_NOTHING: Final = MaskRuns(np.zeros(0, np.int64), np.zeros(0, np.int64), 0, 0)
_OUTSIDE: Final = np.float32(-1)  # any value that is not above 0


def _widened(prototypes: NDArray[np.float16] | NDArray[np.float32], top: int, bottom: int) -> NDArray[np.float32]:
    """The rows that any box touches, as float32 [C, bottom - top, proto_width]."""
    channels, _, width = prototypes.shape
    rows = prototypes.reshape(channels, -1)[:, top * width : bottom * width]
    if rows.dtype == np.float16:
        # OpenCV widens with the processor's own instruction, NumPy 1 bit by bit.
        rows = np.asarray(cv2.convertFp16(rows.view(np.int16)), np.float32)
    return rows.astype(np.float32, copy=False).reshape(channels, bottom - top, width)


_COLUMNS_AT_ONCE: Final = 1 << 15


def _groups(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of the instances, grouped so that padding each to its group's highest at most doubles it.

    A group is cut where it has many pixel columns: a thousand large instances at once would take a gigabyte.
    """
    octaves: dict[int, list[list[int]]] = {}
    filled: dict[int, int] = {}
    for index, (height, width) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        octave = (height - 1).bit_length()
        filled[octave] = filled.get(octave, _COLUMNS_AT_ONCE) + width
        if filled[octave] > _COLUMNS_AT_ONCE:
            octaves.setdefault(octave, []).append([])
            filled[octave] = width
        octaves[octave][-1].append(index)
    return [np.array(group) for groups in octaves.values() for group in groups]


def _logits(
    region: NDArray[np.float32], coefficients: NDArray[Any], x: _Spans, y: _Spans, top: int
) -> NDArray[np.float32]:
    """Logits at the prototype cells of every box: float32 [sum of the boxes' cells across, most cells down].

    The boxes' columns follow each other; the rest of a column, below the box's cells, is below 0.
    """
    rows = (y.high - y.low).tolist()
    columns = (x.high - x.low).tolist()
    planes = np.full((sum(columns), max(rows)), _OUTSIDE)
    first = 0
    corners = zip(x.low.tolist(), (y.low - top).tolist(), strict=True)
    whole_width = region.shape[2]
    for weights, width, height, (column, row) in zip(coefficients, columns, rows, corners, strict=True):
        if weights.ndim == 0:  # the number of a plane
            values = region[weights, row : row + height, column : column + width]
        elif 2 * width > whole_width:
            # Whole rows are contiguous; copying a part of each would cost more than it saves.
            values = weights @ region[:, row : row + height].reshape(len(weights), -1)
            values = values.reshape(height, whole_width)[:, column : column + width]
        else:
            cells = region[:, row : row + height, column : column + width]
            values = (weights @ cells.reshape(len(weights), -1)).reshape(height, width)
        planes[first : first + width, :height] = values.T
        first += width
    return planes


def _runs(
    planes: NDArray[np.float32], x: _Spans, y: _Spans, image_height: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Starts and ends of the runs of every box."""
    cells = x.high - x.low
    box = np.repeat(np.arange(len(cells)), x.count)  # of every pixel column
    column = np.arange(len(box)) - np.repeat(np.cumsum(x.count) - x.count, x.count)
    position = column.astype(np.float32) * np.float32(x.step) + x.offset.astype(np.float32)[box]
    position = np.minimum(np.maximum(position, np.float32(0)), (cells - 1).astype(np.float32)[box])
    cell = np.minimum(position.astype(np.intp), np.maximum(cells - 2, 0)[box])
    fraction: NDArray[np.float32] = position - cell.astype(np.float32)
    cell += (np.cumsum(cells) - cells)[box]
    neighbor = np.minimum(cell + 1, len(planes) - 1)
    grid = _Columns(planes, cell, neighbor, fraction)
    edges, before = _sign_changes(grid)
    of = box[edges]
    pixel = _crossings(grid, edges, before, of, y)
    origin = (x.first[of] + column[edges]) * image_height + y.first[of]
    return _joined((origin + pixel)[0::2], (origin + pixel)[1::2], of[0::2], len(cells))


@dataclass(frozen=True)
class _Columns:
    """Every pixel column as a blend of two columns of cells."""

    planes: NDArray[np.float32]  # float32 [cells, rows]
    cell: NDArray[np.intp]  # intp [columns], the cell to the left
    neighbor: NDArray[np.intp]  # intp [columns], the cell to the right
    fraction: NDArray[np.float32]  # float32 [columns], weight of ``neighbor``

    def at(self, columns: NDArray[np.intp], *rows: NDArray[np.intp]) -> list[NDArray[np.float32]]:
        """Interpolated logits at pixel columns and prototype rows, for each of several rows."""
        flat, depth = self.planes.reshape(-1), self.planes.shape[1]
        left, right = self.cell.take(columns) * depth, self.neighbor.take(columns) * depth
        fraction = self.fraction.take(columns)
        blended = []
        for row in rows:
            one = flat.take(left + row)
            blended.append(one + fraction * (flat.take(right + row) - one))
        return blended


def _sign_changes(grid: _Columns) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the logit changes its sign down the pixel columns, in order.

    Returns:
        Pixel columns, and how many prototype rows lie above the change: 0 is the box's upper side.
    """
    rows = grid.planes.shape[1]
    bits = (rows + 1).bit_length()  # a row of no sign above and below; a power of two, because divisions are slow
    positive = np.zeros((len(grid.planes), 1 << bits), bool)
    np.greater(grid.planes, 0, out=positive[:, 1 : rows + 1])
    signs = positive.take(grid.cell, axis=0)
    mixed = np.flatnonzero(signs != positive.take(grid.neighbor, axis=0))
    flat = signs.reshape(-1)
    (values,) = grid.at(mixed >> bits, (mixed & ((1 << bits) - 1)) - 1)
    flat[mixed] = values > 0
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return changes >> bits, changes & ((1 << bits) - 1)


def _crossings(
    grid: _Columns, columns: NDArray[np.intp], before: NDArray[np.intp], box: NDArray[np.intp], y: _Spans
) -> NDArray[np.int64]:
    """Pixel rows, from the box's top, where runs begin (even places) and end (odd places)."""
    rows = (y.high - y.low)[box]
    count = y.count[box]
    # Edge 0 is the box's upper side and edge ``rows`` its lower one; the others lie between two prototype rows.
    row = np.minimum(np.maximum(before, 1), np.maximum(rows - 1, 1)) - 1
    upper, lower = grid.at(columns, row, np.minimum(row + 1, rows - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = (row + upper / (upper - lower) - y.offset[box]) / y.step
    pixel = np.empty(len(columns), np.float64)
    pixel[0::2] = np.floor(crossing[0::2]) + 1  # the first row above 0
    pixel[1::2] = np.ceil(crossing[1::2])  # the first row not above 0
    pixel[before == 0] = 0
    at_foot = before == rows
    pixel[at_foot] = count[at_foot]
    return np.minimum(np.maximum(pixel, 0), count).astype(np.int64)


def _joined(
    starts: NDArray[np.int64], ends: NDArray[np.int64], box: NDArray[np.intp], boxes: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Drop runs without a pixel, join runs that touch (down a column, or from its foot to the next one's head).

    Returns:
        Starts and ends of each box's runs.
    """
    filled = ends > starts
    if not filled.all():
        starts, ends, box = starts[filled], ends[filled], box[filled]
    apart = (starts[1:] != ends[:-1]) | (box[1:] != box[:-1])
    if not apart.all():
        first = np.concatenate([[True], apart])
        starts, ends, box = starts[first], ends[np.concatenate([apart, [True]])], box[first]
    if boxes == 1:
        return [starts], [ends]
    bounds = np.searchsorted(box, np.arange(boxes + 1)).tolist()
    parts = list(pairwise(bounds))
    return [starts[low:high] for low, high in parts], [ends[low:high] for low, high in parts]
