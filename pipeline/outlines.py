"""Outlines of masks along the sides of their pixels, straight from the runs and without a raster.

Every run of a mask, from row ``y0`` to ``y1`` in column ``x``, has a side above and a side below: horizontal edges
from (x, y0) to (x + 1, y0) and from (x, y1) to (x + 1, y1). On the line between two columns lie the ends of the edges
of both. Sorted by row and taken two by two, they are where one column is set and the other is not: the vertical parts
of the outline. Followed along edges and vertical parts, the outline closes to loops, one around each part of the mask
and one around each hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.masks import MaskRuns


@dataclass(frozen=True)
class Outlines:
    """The edges and vertical parts of the outlines of several masks of one image.

    The mask's side lies right of the direction of travel, seen in an image whose y points down: edges above a run lead
    from left to right, edges below from right to left. Edge 2 i lies above run i, and edge 2 i + 1 below it.

    Attributes:
        edge_mask: int64 [e], which mask each edge belongs to.
        edge_x: int64 [e], column of its run.
        edge_y: int64 [e], row of the edge.
        upper: int64 [v], of each vertical part the edge that ends at its upper end; each mask's follow the other's,
            by column.
        lower: int64 [v], likewise at its lower end.
        x: int64 [v], where each vertical part lies.
        down: bool [v], whether travel leads down there: the mask lies to the left of the part.

    Example:
        >>> ring = np.ones((3, 3), bool)
        >>> ring[1, 1] = False
        >>> Outlines.of([MaskRuns.from_image(ring)]).polygons()  # the hole is joined by a line there and back
        [[[1, 0, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0, 3, 0, 3, 3, 0, 3, 0, 0]]]
    """

    edge_mask: NDArray[np.int64]
    edge_x: NDArray[np.int64]
    edge_y: NDArray[np.int64]
    upper: NDArray[np.int64]
    lower: NDArray[np.int64]
    x: NDArray[np.int64]
    down: NDArray[np.bool_]

    @classmethod
    def of(cls, masks: Sequence[MaskRuns]) -> Outlines:
        """The outlines of at least one mask; all of one size."""
        height, width = masks[0].height, masks[0].width
        pieces = [_within_columns(mask) for mask in masks]
        owner = np.repeat(np.arange(len(masks)), [len(starts) for starts, _ in pieces])
        starts = np.concatenate([starts for starts, _ in pieces])
        column = starts // height
        y = np.stack([starts, np.concatenate([ends for _, ends in pieces])], axis=1) - (column * height)[:, None]
        # One number per end of an edge, rising with line and row; where two parts of a mask touch at a corner, the
        # run that ends comes before the one that begins, so that each gets its own outline.
        line = 2 * (height + 1)
        left = ((owner * (width + 2) + column) * line)[:, None] + 2 * y + np.array([1, 0])
        ends = np.concatenate([left.reshape(-1), left.reshape(-1) + line])
        order = np.argsort(ends, kind="stable")  # both halves rise: they are merged
        edges = 2 * len(starts)
        first, second = order[0::2], order[1::2]
        upper, lower = first % edges, second % edges
        edge_x = np.repeat(column, 2)
        right_end = first >= edges
        return cls(
            np.repeat(owner, 2),
            edge_x,
            y.reshape(-1),
            upper,
            lower,
            edge_x[upper] + right_end,
            right_end == (upper % 2 == 0),
        )

    def polygons(self) -> list[list[list[int]]]:
        """The loops as polygons, holes joined to what surrounds them.

        Returns:
            Per mask that has an edge and in order, polygons as flat lists of x, y in pixels, at the corners of pixels,
            without the first point again at the end; see :func:`pipeline.mask_formats.encode_masks`.
        """
        follower = np.empty(len(self.edge_y), np.int64)
        follower[np.where(self.down, self.upper, self.lower)] = np.where(self.down, self.lower, self.upper)
        order, lengths = _loops(follower)
        if self._join_holes(follower, order, lengths):
            order, lengths = _loops(follower)
        here, then = np.array(order), follower[order]
        corner = self.edge_y[here] != self.edge_y[then]
        points = np.empty((int(np.count_nonzero(corner)), 2, 2), np.int64)
        turn, onward = here[corner], then[corner]
        points[..., 0] = (self.edge_x[onward] + onward % 2)[:, None]  # the next edge's beginning
        points[:, 0, 1], points[:, 1, 1] = self.edge_y[turn], self.edge_y[onward]
        numbers = points.reshape(-1).tolist()
        behind = np.cumsum(lengths)
        bounds = (4 * np.concatenate([[0], np.cumsum(corner)[behind - 1]])).tolist()
        found: dict[int, list[list[int]]] = {}
        owners = self.edge_mask[here[behind - 1]].tolist()
        for mask, low, high in zip(owners, bounds[:-1], bounds[1:], strict=True):
            found.setdefault(mask, []).append(numbers[low:high])
        return list(found.values())

    def _join_holes(self, follower: NDArray[np.int64], order: Sequence[int], lengths: Sequence[int]) -> bool:
        """Join every hole to the outline that lies straight above its highest edge; whether there is a hole.

        The highest edge of a loop lies above a run where the loop surrounds a part, and below one where it surrounds
        a hole. That run's other edge belongs to a loop that reaches higher. Both loops are led over the left side of
        the run: there and back, so that nothing is set or cleared by it.
        """
        edges = np.array(order)
        rows = self.edge_y[edges]
        loop = np.repeat(np.arange(len(lengths)), lengths)
        by_height = np.lexsort((self.edge_x[edges], rows, loop))
        highest = edges[by_height[np.cumsum(lengths) - lengths]]
        holes = highest[highest % 2 == 1].tolist()
        if not holes:
            return False
        leader = np.empty_like(follower)
        leader[follower] = np.arange(len(follower))
        for foot in holes:
            head = foot - 1
            before, after = leader[head], follower[foot]
            follower[foot], leader[head] = head, foot
            follower[before], leader[after] = after, before
        return True


def _within_columns(mask: MaskRuns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends of a mask's runs, those that go on in the next column cut at its head."""
    starts, ends = mask.starts, mask.ends
    first, last = starts // max(mask.height, 1), (ends - 1) // max(mask.height, 1)
    more = last - first
    if not more.any():
        return starts, ends
    columns = np.repeat(first, more + 1)
    place = np.arange(len(columns))
    columns += place - np.repeat(np.cumsum(more + 1) - more - 1, more + 1)
    head = columns * mask.height
    return np.maximum(np.repeat(starts, more + 1), head), np.minimum(np.repeat(ends, more + 1), head + mask.height)


def _loops(follower: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """The cycles of a permutation: its elements, cycle behind cycle, and how many belong to each."""
    following = follower.tolist()
    new = bytearray(b"\1") * len(following)
    order: list[int] = []
    lengths: list[int] = []
    add = order.append
    at = new.find(1)
    while at >= 0:
        before = len(order)
        while new[at]:
            new[at] = 0
            add(at)
            at = following[at]
        lengths.append(len(order) - before)
        at = new.find(1, at)  # the cycle began at its lowest
    return order, lengths
