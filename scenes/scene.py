"""Scenes: tables with identity cards on them, drawn from a seed, with the exact mask of every card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from scenes.backgrounds import table
from scenes.camera import expose, jpeg
from scenes.cards import CardSource
from scenes.clutter import finger, thing_on_table, thing_on_top
from scenes.errors import SceneError
from scenes.perspective import Camera, random_turn, turn_x, turn_z
from scenes.stage import Shadow, Stage
from scenes.surface import FlatObject, Matrix, Pixels

CALIBRATION_SEEDS: Final = range(0, 1_000_000)
"""Seeds of scenes that a network is calibrated on."""
VERIFICATION_SEEDS: Final = range(1_000_000, 2_000_000)
"""Seeds of scenes that a network is verified on."""
SPLITS: Final = {"calibration": CALIBRATION_SEEDS, "verification": VERIFICATION_SEEDS}

SIDES_PX: Final = (480, 1280)
"""Shortest and longest side of an image."""
MIN_VISIBLE: Final = 0.5
"""Least share of a card that stays inside the image and uncovered, so that every card in an image counts."""

# How often a scene is asked to hold 0, 1, 2, ... cards. It holds fewer where there is no room.
_CARD_SHARES: Final = (0.10, 0.28, 0.22, 0.16, 0.11, 0.08, 0.05)
_MAX_TILT_DEGREES: Final = 40.0
_OVERLAP_SHARE: Final = 0.35  # of cards that may lie over other cards
_CUT_OFF_SHARE: Final = 0.15  # of cards that may reach out of the image
# Width of a card that lies flat in the middle, as a share of the shorter image side.
_SMALLEST_CARD: Final = 0.24
_LARGEST_CARD: Final = 0.85
_MAX_CLUTTER: Final = 6  # half as many, small ones, may lie on top of the cards
_ASPECTS: Final = (4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 1.0)
_TRIES: Final = 10


@dataclass(frozen=True)
class Scene:
    """An image and the cards in it; n may be 0."""

    image: Pixels  # uint8 [height, width, 3] RGB, as ``jpeg`` decodes
    # bool [n, height, width]: the pixels whose center is on the card and on nothing that lies over it
    masks: NDArray[np.bool_]
    # float32 [n, 4] of x1, y1, x2, y2 in pixels, tight around the masks; a pixel covers [x, x + 1]
    boxes: NDArray[np.float32]
    jpeg: bytes  # the image as a file
    card_names: tuple[str, ...]  # what each card is and where it comes from, such as ``drawn 17`` or ``two_ids.png#1``


def generate_scene(
    seed: int, *, cards: CardSource, sides_px: tuple[int, int] = SIDES_PX, strength: float = 1.0
) -> Scene:
    """Compose the scene of ``seed``.

    The same arguments give the same scene, to the pixel, with the same NumPy, OpenCV and Pillow on the same kind of
    machine. No global random state is read or changed. ``strength`` scales light, shadow, color cast, blur, noise and
    JPEG loss, in [0, 2]; 0 switches them off.

    Raises:
        SceneError: the seed is in no split.
    """
    split = next((name for name, seeds in SPLITS.items() if seed in seeds), None)
    if split is None:
        raise SceneError(f"seed {seed} belongs to no split; allowed: 0 to {VERIFICATION_SEEDS.stop - 1}")
    rng = np.random.default_rng([seed])
    height, width = _image_size(rng, *sides_px)
    wanted = int(rng.choice(len(_CARD_SHARES), p=np.array(_CARD_SHARES) / sum(_CARD_SHARES)))
    camera = Camera.over_table(rng, height, width, _card_px(rng, wanted, height, width), _MAX_TILT_DEGREES)
    stage = Stage(table_in_perspective(table(rng, height, width), camera), _shadow(rng), MIN_VISIBLE)
    for _ in range(int(rng.integers(0, _MAX_CLUTTER + 1))):
        stage.lay_thing(thing_on_table(rng), _somewhere(rng, camera, height, width))
    for _ in range(wanted):
        _lay_card(rng, stage, camera, cards.pick(rng, split))
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(0, _MAX_CLUTTER // 2 + 1))):
            stage.lay_thing(thing_on_top(rng), _somewhere(rng, camera, height, width))
    if rng.random() < 0.25:
        _lay_fingers(rng, stage, camera)
    return finish(rng, stage, strength)


def table_in_perspective(flat: Pixels, camera: Camera) -> Pixels:
    """A table as the camera sees it: its picture (uint8 [height, width, 3]) laid on the plane that the cards lie on."""
    height, width = flat.shape[:2]
    scale = camera.distance_mm / camera.intrinsics[0, 0]
    centered = np.array([[scale, 0, -scale * width / 2], [0, scale, -scale * height / 2], [0, 0, 1.0]])
    seen = camera.homography(np.zeros(2), 0.0) @ centered
    warped = cv2.warpPerspective(flat, seen, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(warped, np.uint8)


def finish(rng: np.random.Generator, stage: Stage, strength: float) -> Scene:
    """Photograph a stage: light, lens, sensor and JPEG; the masks stay."""
    content, image = jpeg(rng, expose(rng, stage.image, strength), strength)
    masks = np.array([placed.mask for placed in stage.cards], bool).reshape(-1, *image.shape[:2])
    boxes = np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    return Scene(image, masks, boxes, content, tuple(placed.card.name for placed in stage.cards))


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _image_size(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Height and width in pixels, of an aspect ratio that cameras have."""
    aspect = float(rng.choice(_ASPECTS))
    area = float(np.exp(rng.uniform(np.log(low * low * 1.2), np.log(min(high * high * 0.55, low * low * 4)))))
    width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
    return round(float(np.clip(height, low, high))), round(float(np.clip(width, low, high)))


def _card_px(rng: np.random.Generator, wanted: int, height: int, width: int) -> float:
    """Width of a card in the middle: of any size for a single one, smaller where several need room."""
    high = max(_SMALLEST_CARD, _LARGEST_CARD / max(1, wanted) ** 0.5)
    share = float(np.exp(rng.uniform(np.log(_SMALLEST_CARD), np.log(high))))
    return share * min(height, width)


def _shadow(rng: np.random.Generator) -> Shadow:
    right, down = rng.normal(0, 1.2, 2)
    return Shadow(float(right), float(down), float(rng.uniform(0.6, 3.0)), float(rng.uniform(0.15, 0.6)))


def _somewhere(rng: np.random.Generator, camera: Camera, height: int, width: int) -> Matrix:
    """The homography of a thing that lies anywhere in view, turned by any angle."""
    center = camera.point_on_table(width * float(rng.random()), height * float(rng.random()))
    turn = float(rng.uniform(-np.pi, np.pi))
    return camera.homography(np.zeros(2) if center is None else center, turn)


def _lay_fingers(rng: np.random.Generator, stage: Stage, camera: Camera) -> None:
    """One to three fingers that reach into the picture from an edge."""
    height, width = stage.image.shape[:2]
    share = float(rng.uniform(0.2, 0.8))
    edges = ((width * share, height), (0, height * share), (width, height * share))
    base = camera.point_on_table(*edges[int(rng.choice(3, p=(0.5, 0.25, 0.25)))])
    if base is None:
        return
    inwards = float(np.arctan2(-base[1], -base[0]) + rng.normal(0, 0.2))
    along, beside = np.array([np.cos(inwards), np.sin(inwards)]), np.array([-np.sin(inwards), np.cos(inwards)])
    tone = float(rng.uniform(0.35, 1.0))
    for index in range(int(rng.integers(1, 4))):
        thing = finger(rng, tone)
        reach = thing.width_mm / 2 - float(rng.uniform(10, 30))
        stage.lay_thing(thing, camera.homography(base + along * reach + beside * 19.0 * index, inwards))


def _lay_card(rng: np.random.Generator, stage: Stage, camera: Camera, card: FlatObject) -> None:
    """Try a few places for a card; without a fit it is left out."""
    height, width = stage.image.shape[:2]
    may_overlap = rng.random() < _OVERLAP_SHARE
    may_be_cut = rng.random() < _CUT_OFF_SHARE
    margin = -0.02 if may_be_cut else 0.1
    turn = random_turn(rng)
    lift = _lift(rng)
    for _ in range(_TRIES):
        x, y = rng.uniform(margin, 1 - margin, 2) * (width, height)
        center = camera.point_on_table(float(x), float(y))
        if center is None:
            continue
        homography = camera.homography(center, turn, lift)
        min_inside = MIN_VISIBLE if may_be_cut else 0.99
        if stage.lay_card(card, homography, may_overlap=may_overlap, min_inside=min_inside):
            return


def _lift(rng: np.random.Generator) -> Matrix:
    """A small tilt against the table, as of a card that leans on something or is held."""
    if rng.random() < 0.7:
        return np.eye(3)
    towards = float(rng.uniform(-np.pi, np.pi))
    return turn_z(towards) @ turn_x(float(rng.normal(0, np.deg2rad(8)))) @ turn_z(-towards)
