"""A scene to show: drawn cards only, in good light."""

from __future__ import annotations

from typing import Final

import numpy as np

from scenes.backgrounds import wood
from scenes.cards import CardSource
from scenes.perspective import Camera, turn_x, turn_z
from scenes.scene import MIN_VISIBLE, Scene, finish, table_in_perspective
from scenes.stage import Shadow, Stage

_STREAM: Final = 0x5C0E
"""Keeps the random numbers of showcases apart from those of other scenes."""
_HEIGHT: Final = 720
_WIDTH: Final = 1080
_CARD_PX: Final = 330.0
_TILT: Final = np.deg2rad(16.0)
# Where the cards lie, as shares of width and height, and how they are turned, in radians. The third lies on the second.
_PLACES: Final = ((0.2, 0.27, -0.12), (0.62, 0.24, 0.1), (0.79, 0.49, -0.2), (0.24, 0.71, 0.16), (0.62, 0.79, -0.05))


def draw_showcase(seed: int = 0) -> Scene:
    """Five drawn cards on a wooden table, one partly under another, seen at an angle: 1080 x 720 pixels.

    It holds no photograph and no real card, so the picture may be published. ``seed``, at least 0, decides on the
    cards, the wood and small changes of place.
    """
    rng = np.random.default_rng([_STREAM, seed])
    cards = CardSource()
    focal = 1.1 * _WIDTH
    intrinsics = np.array([[focal, 0, _WIDTH / 2], [0, focal, _HEIGHT / 2], [0, 0, 1.0]])
    camera = Camera.at(intrinsics, turn_z(0.25) @ turn_x(-_TILT) @ turn_z(-0.25), _CARD_PX)
    stage = Stage(table_in_perspective(wood(rng, _HEIGHT, _WIDTH), camera), Shadow(1.0, 1.4, 1.8, 0.45), MIN_VISIBLE)
    designs = rng.choice(2 * cards.designs, len(_PLACES), replace=False)
    for (x, y, turn), design in zip(_PLACES, designs, strict=True):
        center = camera.point_on_table(x * _WIDTH, y * _HEIGHT)
        if center is not None:
            homography = camera.homography(center + rng.normal(0, 1, 2), turn + float(rng.normal(0, 0.04)))
            stage.lay_card(cards.drawn(int(design)), homography, may_overlap=True, min_inside=0.99)
    return finish(rng, stage, strength=0.2)
