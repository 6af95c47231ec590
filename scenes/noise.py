"""Smooth random fields, the stuff of drawn tables and cards."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
RGB = tuple[float, float, float]
"""A color, 0 to 255 each."""


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cells: tuple[float, float], octaves: int = 3, gain: float = 0.5
) -> Field:
    """Value noise: random numbers on grids of falling size, interpolated and summed.

    ``cells`` are rows and columns of the coarsest grid across the field; unequal ones stretch the grain. Each of
    ``octaves`` grids is twice as fine as the one before, and weighs ``gain`` as much.

    Returns:
        float32 [height, width], mean about 0, values in [-1, 1].
    """
    total = np.zeros((height, width), np.float32)
    weight, sum_of_weights = 1.0, 0.0
    for octave in range(octaves):
        rows = min(height, max(2, round(cells[0] * 2**octave)))
        columns = min(width, max(2, round(cells[1] * 2**octave)))
        grid = rng.random((rows, columns), np.float32) * np.float32(2 * weight) - np.float32(weight)
        total += np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        sum_of_weights += weight
        weight *= gain
    total /= np.float32(sum_of_weights)
    return total


def gradient(rng: np.random.Generator, height: int, width: int) -> Field:
    """A plane rising from 0 to 1 in a random direction: float32 [height, width]."""
    angle = rng.uniform(0, 2 * np.pi)
    columns = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * np.float32(np.cos(angle))
    rows = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    plane = columns + rows
    low, high = float(plane.min()), float(plane.max())
    risen: Field = (plane - low) / np.float32(high - low)
    return risen


def tint(field: Field, dark: RGB, bright: RGB) -> NDArray[np.uint8]:
    """Color a field: 0 becomes ``dark``, 1 ``bright`` (RGB, 0 to 255); values are clipped to -0.5 to 1.5.

    Returns:
        uint8 [height, width, 3].
    """
    low, high = np.array(dark), np.array(bright)
    steps = np.linspace(-0.5, 1.5, 256)[:, None]
    colors = np.clip(np.rint(low + steps * (high - low)), 0, 255).astype(np.uint8)
    levels = cv2.convertScaleAbs(np.clip(field, -0.5, 1.5) + np.float32(0.5), alpha=127.5)
    return np.asarray(cv2.applyColorMap(levels, colors[:, None, :]), np.uint8)
