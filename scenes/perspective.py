"""A camera over a table, and what lies on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from scenes.surface import LONG_SIDE_MM, Matrix

_FOCAL_RANGE: Final = (0.75, 1.5)
"""Focal length over the longer image side: 27 to 54 mm on 35 mm film, as telephones have."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the middle of a tilted table."""

    intrinsics: Matrix  # float64 [3, 3]; pixel centers at .5
    rotation: Matrix  # float64 [3, 3], from the table's axes (x right, y down, z away) to the camera's
    distance_mm: float  # from the camera to the point of the table that it looks at

    @classmethod
    def over_table(
        cls, rng: np.random.Generator, height: int, width: int, card_px: float, max_tilt_degrees: float
    ) -> Camera:
        """A camera from which a card in the middle is ``card_px`` wide, at a random angle.

        Small angles are more likely than large ones, and the far side of the table is mostly the upper one.
        """
        focal = max(height, width) * rng.uniform(*_FOCAL_RANGE)
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        tilt = np.deg2rad(max_tilt_degrees) * rng.beta(1.2, 2.0)
        towards = rng.normal(0, 0.6) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
        return cls.at(intrinsics, turn_z(towards) @ turn_x(-tilt) @ turn_z(-towards), card_px)

    @classmethod
    def at(cls, intrinsics: Matrix, rotation: Matrix, card_px: float) -> Camera:
        """A camera as far away as makes a card in the middle ``card_px`` wide when it is not tilted."""
        return cls(intrinsics, rotation, float(intrinsics[0, 0]) * LONG_SIDE_MM / card_px)

    def point_on_table(self, x_px: float, y_px: float) -> Matrix | None:
        """The point of the table behind a pixel: float64 [2] of x, y in mm; None above the horizon."""
        ray = self.rotation.T @ np.linalg.solve(self.intrinsics, np.array([x_px, y_px, 1.0]))
        eye = self.rotation.T @ np.array([0, 0, -self.distance_mm])
        if ray[2] <= 1e-3:
            return None
        point: Matrix = (eye - ray * eye[2] / ray[2])[:2]
        return point

    def homography(self, center_mm: Matrix, turn: float, lift: Matrix | None = None) -> Matrix:
        """The homography of something that lies on the table.

        Args:
            center_mm: float64 [2], where its middle lies on the table.
            turn: its angle on the table, clockwise in radians.
            lift: a further rotation, float64 [3, 3], about its middle, for what does not lie flat.

        Returns:
            float64 [3, 3] from x, y in mm from its middle to pixels.
        """
        axes = self.rotation @ (np.eye(3) if lift is None else lift) @ turn_z(turn)
        middle = self.rotation @ np.array([center_mm[0], center_mm[1], 0.0]) + np.array([0, 0, self.distance_mm])
        matrix: Matrix = self.intrinsics @ np.column_stack([axes[:, 0], axes[:, 1], middle])
        return matrix


def turn_z(angle: float) -> Matrix:
    """Rotation in the plane of the image, clockwise as y points down: float64 [3, 3]."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def turn_x(angle: float) -> Matrix:
    """Rotation about the horizontal axis: float64 [3, 3]."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])


def random_turn(rng: np.random.Generator) -> float:
    """An angle as cards lie: mostly upright, sometimes on a side or upside down, rarely any. Radians."""
    quarter = float(rng.choice((0.0, 0.5, -0.5, 1.0), p=(0.72, 0.1, 0.1, 0.08)))
    if rng.random() < 0.15:
        return float(rng.uniform(-np.pi, np.pi))
    return quarter * np.pi + float(rng.normal(0, 0.16))
