"""Tables that things lie on: drawn wood, cloth, stone, plain boards and tiles."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import cv2
import numpy as np

from scenes.noise import RGB, gradient, smooth_noise, tint
from scenes.surface import Pixels

_WOODS: Final[tuple[tuple[RGB, RGB], ...]] = (
    ((96, 62, 38), (156, 108, 70)),
    ((150, 112, 76), (206, 168, 124)),
    ((58, 40, 30), (98, 70, 50)),
    ((176, 150, 120), (222, 202, 174)),
)


def table(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A table of a random kind: uint8 [height, width, 3] RGB; sizes in pixels."""
    rng.random()  # keeps what each seed gives
    kinds = (wood, _cloth, _stone, _board, _tiles)
    kind = kinds[int(rng.choice(len(kinds), p=(0.28, 0.2, 0.17, 0.25, 0.1)))]
    return kind(rng, height, width)


def wood(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Planks, each with its own brightness and its grain along it."""
    planks = int(rng.integers(1, 8))
    grain = smooth_noise(rng, height, width, (18 + 5 * planks, 1.5), 4, 0.7)
    knots = smooth_noise(rng, height, width, (4, 2), 2)
    field = 0.5 + 0.42 * grain + 0.12 * np.sin(knots * 14)
    edges = np.linspace(0, height, planks + 1).astype(int)
    for top, bottom in pairwise(edges.tolist()):
        field[top:bottom] += rng.uniform(-0.22, 0.22)
        if top > 0:
            field[top : top + max(1, height // 250)] -= 0.55
    if rng.random() < 0.4:
        field = np.ascontiguousarray(cv2.resize(np.ascontiguousarray(field.T), (width, height)), np.float32)
    dark, bright = _WOODS[int(rng.integers(len(_WOODS)))]
    return tint(np.clip(field, -0.3, 1.2).astype(np.float32), dark, bright)


def _cloth(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A weave with folds, plain or checkered."""
    pitch = rng.uniform(3.5, 9)
    across = np.sin(np.arange(width, dtype=np.float32) * np.float32(2 * np.pi / pitch))[None, :]
    along = np.sin(np.arange(height, dtype=np.float32) * np.float32(2 * np.pi / pitch))[:, None]
    field = 0.5 + 0.1 * across * along + 0.25 * smooth_noise(rng, height, width, (3, 3), 2)
    field += 0.14 * smooth_noise(rng, height, width, (90, 90), 2)
    if rng.random() < 0.35:
        check = width / rng.uniform(5, 14)
        columns = (np.arange(width) // check % 2)[None, :]
        rows = (np.arange(height) // check % 2)[:, None]
        field += 0.2 * (columns + rows - 1)
    base = _color(rng, 0.1, 0.6, 0.25, 0.8)
    return tint(field.astype(np.float32), _scaled(base, 0.55), _scaled(base, 1.2))


def _stone(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Grains of all sizes, as on stone, tarmac or carpet."""
    fine = smooth_noise(rng, height, width, (height / 8, width / 8), 3, 0.8)
    coarse = smooth_noise(rng, height, width, (5, 7), 3)
    field = 0.5 + rng.uniform(0.3, 0.9) * fine + 0.3 * coarse
    base = _color(rng, 0.0, 0.25, 0.3, 0.85)
    return tint(field.astype(np.float32), _scaled(base, 0.55), _scaled(base, 1.3))


def _board(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A plain table top with a faint stain, of any color from black to white."""
    field = gradient(rng, height, width) * 0.6 + 0.2 + 0.2 * smooth_noise(rng, height, width, (3, 3), 3)
    base = _color(rng, 0.0, 0.5, 0.12, 1.0)
    return tint(field.astype(np.float32), _scaled(base, 0.8), _scaled(base, 1.08))


def _tiles(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Tiles with joints."""
    size = width / rng.uniform(2.5, 9)
    joint = max(2.0, size * rng.uniform(0.015, 0.05))
    columns = (np.arange(width) + rng.uniform(0, size)) % size < joint
    rows = (np.arange(height) + rng.uniform(0, size)) % size < joint
    field = 0.6 + 0.25 * smooth_noise(rng, height, width, (8, 8), 4, 0.7)
    field[columns[None, :] | rows[:, None]] = rng.uniform(-0.2, 1.2)
    base = _color(rng, 0.0, 0.4, 0.35, 0.95)
    return tint(field.astype(np.float32), _scaled(base, 0.7), _scaled(base, 1.1))


def _color(rng: np.random.Generator, low: float, high: float, dark: float, bright: float) -> RGB:
    """A color of saturation ``low`` to ``high`` and value ``dark`` to ``bright``, RGB of 0 to 255."""
    value, saturation = rng.uniform(dark, bright) * 255, rng.uniform(low, high)
    shares = rng.random(3)
    shares = (shares - shares.min()) / (shares.max() - shares.min())
    red, green, blue = (value * (1 - saturation * (1 - shares))).tolist()
    return red, green, blue


def _scaled(color: RGB, factor: float) -> RGB:
    return color[0] * factor, color[1] * factor, color[2] * factor
