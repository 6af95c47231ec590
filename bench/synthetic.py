"""Synthetic outputs of a network: a wanted number of instances, in the layouts of every way that is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import contract
from pipeline.letterbox import Geometry

INPUT_SIZE: Final = 640
_CHANNELS: Final = 32
_CELLS: Final = INPUT_SIZE // 4
_ANCHORS: Final = 8400  # of a 640 x 640 input, over the strides 8, 16 and 32
_DUPLICATES: Final = 8  # anchors that see the same instance, about what the reference model gives
_FEATURE_CELLS: Final = 6  # width of what the prototypes show, in cells


@dataclass(frozen=True)
class Outputs:
    """What a network would put out for one image."""

    geometry: Geometry  # where the image lies in the network's input
    detections: NDArray[np.float32]  # float32 [5 + C, anchors], the plain export's layout with one class
    candidates: NDArray[np.float32]  # float32 [1000, 6 + C], this project's layout, sorted by falling score
    prototypes: NDArray[np.float16]  # float16 [C, 160, 160]
    wide_prototypes: NDArray[np.float32]  # the same in float32


def scene(instances: int, height: int, width: int, seed: int = 0) -> Outputs:
    """Instances on a grid that fills the image, each a random blob seen by nine anchors; suppression leaves all."""
    rng = np.random.default_rng(seed)
    geometry = Geometry.fit(height, width, INPUT_SIZE, INPUT_SIZE)
    prototypes = _smooth_fields(rng).astype(np.float16)
    centers, sizes = _grid(rng, instances, geometry)
    rows = np.zeros((instances, 1 + _DUPLICATES, contract.FIRST_COEFFICIENT_COLUMN + _CHANNELS), np.float32)
    rows[..., contract.SCORE_COLUMN] = rng.uniform(0.3, 0.95, rows.shape[:2])
    jitter = rng.uniform(-0.03, 0.03, (*rows.shape[:2], 4)) * np.tile(sizes, 2)[:, None]
    rows[..., contract.BOX_COLUMNS] = np.concatenate([centers, sizes], axis=1)[:, None] + jitter
    rows[..., contract.FIRST_COEFFICIENT_COLUMN :] = rng.standard_normal((instances, 1, _CHANNELS))
    flat = rows.reshape(-1, rows.shape[-1])
    flat = flat[np.argsort(-flat[:, contract.SCORE_COLUMN])]
    candidates = np.zeros((contract.DEFAULT_TOP_K, flat.shape[1]), np.float32)
    candidates[: len(flat)] = flat
    return Outputs(geometry, _plain_layout(rng, flat), candidates, prototypes, prototypes.astype(np.float32))


def _smooth_fields(rng: np.random.Generator) -> NDArray[np.float32]:
    coarse = rng.standard_normal((_CHANNELS, _CELLS // _FEATURE_CELLS, _CELLS // _FEATURE_CELLS)).astype(np.float32)
    return np.stack([cv2.resize(plane, (_CELLS, _CELLS), interpolation=cv2.INTER_CUBIC) for plane in coarse])


def _grid(
    rng: np.random.Generator, instances: int, geometry: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centers and sizes of boxes in network pixels, [n, 2] each, that do not overlap."""
    area = np.array([geometry.resized_width, geometry.resized_height], np.float64)
    across = max(1, round((instances * area[0] / area[1]) ** 0.5))
    down = -(-instances // across)
    pitch = area / [across, down]
    place = np.stack([np.arange(instances) % across, np.arange(instances) // across], axis=1)
    centers = (place + 0.5) * pitch + [geometry.pad_left, geometry.pad_top]
    return centers, pitch * rng.uniform(0.6, 0.9, (instances, 2))


def _plain_layout(rng: np.random.Generator, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows among anchors that see nothing: float32 [5 + C, anchors]."""
    detections = np.zeros((5 + _CHANNELS, _ANCHORS), np.float32)
    detections[4] = rng.uniform(0, 0.01, _ANCHORS)
    places = rng.choice(_ANCHORS, len(rows), replace=False)
    detections[:4, places] = rows[:, contract.BOX_COLUMNS].T
    detections[4, places] = rows[:, contract.SCORE_COLUMN]
    detections[5:, places] = rows[:, contract.FIRST_COEFFICIENT_COLUMN :].T
    return detections
