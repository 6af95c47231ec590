"""From the head's last convolutions to candidates, as kernels do it; recognized by its result, not by its form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import contract
from steps.onnx_cpu import OUTPUT_NAMES

MAX_ROWS: Final = 1024
"""Candidates of an image that the kernels sort."""

_PARTS: Final = 3  # boxes, classes, coefficients


@dataclass(frozen=True)
class Head:
    """Boxes by the distances of their edges from a point of a grid, one grid for each level.

    Attributes:
        rows: candidates that leave the network per image.
        bins: of each distance, whose mean is taken; 1: it is given.
        classes: how many.
        coefficients: of the masks.
        levels: height, width and stride in pixels of each, in the order of the maps.
    """

    rows: int
    bins: int
    classes: int
    coefficients: int
    levels: tuple[tuple[int, int, int], ...]

    @property
    def points(self) -> int:
        """Of all levels."""
        return sum(height * width for height, width, _ in self.levels)

    def every_point(self, maps: list[NDArray[Any]]) -> NDArray[np.float32]:
        """The candidate of every point of one image, in their order.

        Args:
            maps: float [height, width, channels]: boxes, classes and coefficients of each level.

        Returns:
            float32 [points, 6 + coefficients]: score, center x, center y, width, height, class, coefficients.
        """
        rows = []
        for level, (height, width, stride) in enumerate(self.levels):
            box, logits, coefficients = (one.astype(np.float32) for one in maps[level * _PARTS :][:_PARTS])
            bins = box.reshape(height, width, 4, self.bins)
            if self.bins > 1:
                weights = np.exp(bins - bins.max(-1, keepdims=True))
                bins = weights @ np.arange(self.bins, dtype=np.float32)[:, None] / weights.sum(-1, keepdims=True)
            left, top, right, bottom = np.moveaxis(bins[..., 0], -1, 0)
            y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
            edges = x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom
            kind = logits.argmax(-1)
            score = 1 / (1 + np.exp(-logits.max(-1)))
            one = np.stack([score, *(edge * stride for edge in edges), kind], -1)
            rows.append(np.concatenate([one, coefficients], -1).reshape(height * width, -1))
        points: NDArray[np.float32] = np.concatenate(rows).astype(np.float32)
        return points


def recognized(
    model: onnx.ModelProto, sizes: Mapping[str, tuple[int, int, int]], input_height: int, coefficients: int
) -> tuple[Head, tuple[str, ...]] | None:
    """What a head does, if the kernels can do it.

    Args:
        model: from the last convolutions to the candidates.
        sizes: channels, height and width of the inputs, by name.
        input_height: of the network, in pixels.
        coefficients: of the masks.

    Returns:
        The head, and the names of its inputs in the order of :meth:`Head.every_point`; None: another one.
    """
    by_level: dict[tuple[int, int], list[str]] = {}
    for name, (_, *size) in sizes.items():
        by_level.setdefault((size[0], size[1]), []).append(name)
    grids = sorted(by_level, reverse=True)
    if not grids or any(len(by_level[grid]) != _PARTS for grid in grids):
        return None
    random = np.random.default_rng(0)
    given = {name: random.standard_normal(size).astype(np.float16) for name, size in sizes.items()}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {name: value[None] for name, value in given.items()}
    for node in session.get_inputs():
        if node.name == contract.IMAGES.name:  # it is only asked for the number of images
            feed[node.name] = np.zeros((1, *node.shape[1:]), np.uint8)
    expected = session.run([OUTPUT_NAMES[0]], feed)[0][0]
    levels = tuple((*grid, input_height // grid[0]) for grid in grids)
    for order in permutations(range(_PARTS)):
        parts = [_sorted(by_level[grid], sizes)[place] for grid in grids for place in order]
        box, classes, last = (sizes[name][0] for name in parts[:_PARTS])
        if last != coefficients or box % 4 or len({sizes[name][0] for name in parts}) > _PARTS:
            continue
        head = Head(len(expected), box // 4, classes, coefficients, levels)
        maps = [given[name].transpose(1, 2, 0) for name in parts]
        if head.rows <= min(MAX_ROWS, head.points) and _same(head.every_point(maps), expected, input_height):
            return head, tuple(parts)
    return None


def _sorted(names: list[str], sizes: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """Inputs of a level so that those that mean the same have the same place in all of them."""
    return sorted(names, key=lambda name: sizes[name][0])


def _same(points: NDArray[np.float32], rows: NDArray[np.float32], input_height: int) -> bool:
    """Whether rows are the best ones of all points, as far as halves can tell."""
    if points.shape[1] != rows.shape[1]:
        return False
    place = {point[6:].astype(np.float16).tobytes(): index for index, point in enumerate(points)}
    chosen = [place.get(row[6:].astype(np.float16).tobytes(), -1) for row in rows]
    if -1 in chosen or len(set(chosen)) != len(rows):
        return False
    found = points[chosen]
    worst = np.sort(points[:, 0])[-len(rows)]
    off = np.abs(found - rows)
    near = off[:, 0].max() < 2e-3 and off[:, 1:5].max() < input_height / 500 and found[:, 0].min() > worst - 2e-3
    return bool(near and (off[:, 5] > 0.5).mean() < 0.05)  # classes whose halves are equal
