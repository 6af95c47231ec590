"""Cards cut out of the reference model's photographs.

The photographs are fetched, never part of this project: what stands here is where their cards lie. A photograph
is known by its content, so one with other pixels is refused instead of being cut in the wrong place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.images import decode_image
from scenes.card import CORNER_RADIUS_MM, LONG_SIDE_MM, SHORT_SIDE_MM, TEXELS_PER_MM
from scenes.errors import SceneError
from scenes.surface import FlatObject, Pixels

Point = tuple[float, float]


@dataclass(frozen=True)
class CardOutline:
    """Where a card lies in a photograph, in pixels with pixel centers at .5.

    Attributes:
        corners: where its straight edges would meet: top left, top right, bottom right, bottom left as one reads it.
        radius_mm: of its rounded corners.
        hidden: a polygon over what hides part of the card (a thumb), to be filled from around it; may be empty.
    """

    corners: tuple[Point, Point, Point, Point]
    radius_mm: float = CORNER_RADIUS_MM
    hidden: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Photograph:
    """One photograph: the SHA-256 of its file, and its cards."""

    sha256: str
    cards: tuple[CardOutline, ...]


# Corners: lines fitted to the strongest change of color along each edge of the card (Lab, 0.25 px steps), met.
PHOTOGRAPHS: Final = {
    "mklovin.png": Photograph(
        "02834f17e2ec5bf4bd0b38725035e154871a78e1e934372558c7a0cd30a9e8aa",
        (
            CardOutline(
                ((89.0, 194.0), (791.0, 194.0), (798.5, 632.0), (89.0, 643.5)),
                hidden=((722.0, 650.0), (724.0, 604.0), (740.0, 574.0), (768.0, 556.0), (810.0, 552.0), (810.0, 650.0)),
            ),
        ),
    ),
    "three_ids.png": Photograph(
        "5d971efdc25f33c18bbe1c3d66fd1aa22a70767b59689d8f685cf82e3bb18728",
        (
            CardOutline(((64.0, 99.0), (456.0, 99.0), (456.0, 347.0), (64.0, 347.0))),
            CardOutline(((481.0, 25.0), (728.0, 25.0), (728.0, 415.0), (481.0, 415.0))),
            CardOutline(((752.0, 94.0), (1146.0, 94.0), (1146.0, 342.5), (752.0, 342.5))),
        ),
    ),
    "two_ids.png": Photograph(
        "e8787f4ef78a9b390b690c0b15848cbb84e490c8134e4a4455997f8ce396add6",
        (
            CardOutline(((160.0, 34.0), (559.0, 34.0), (559.0, 283.5), (160.0, 283.5))),
            CardOutline(((652.0, 33.0), (1038.0, 33.0), (1038.0, 276.0), (652.0, 276.0)), radius_mm=4.2),
        ),
    ),
    "us_card.png": Photograph(
        "a9411285d11335f0ca9043af1a9b23397ce816628805d257655f3263d86ff9ed",
        (CardOutline(((20.0, 162.5), (407.0, 88.5), (454.5, 326.5), (68.0, 399.0)), radius_mm=6.0),),
    ),
    # The picture before, turned by 90 degrees: its card is cut there already.
    "us_card_rotated.png": Photograph("7d61a2d18cbf3e13cf18d5694ee5a4398f0f5583efce8d59d32bd2e7b6242345", ()),
}

_INSET_PX: Final = 1.0
"""What is cut off each edge, so that the photograph's own background does not show as a rim."""


def cut_cards(photographs: Sequence[Path]) -> tuple[FlatObject, ...]:
    """Cut the cards out of photographs and flatten them.

    Args:
        photographs: image files named as in :data:`PHOTOGRAPHS`, in any order; may be empty.

    Returns:
        The cards, in the order of the photographs' names, named such as ``two_ids.png#1``.

    Raises:
        SceneError: a file cannot be read, or its name or content is not that of a known photograph.
    """
    cards: list[FlatObject] = []
    for path in sorted(photographs, key=lambda path: path.name):
        known = PHOTOGRAPHS.get(path.name)
        if known is None:
            raise SceneError(
                f"{path}: no card corners are known for a photograph of this name; known are {', '.join(PHOTOGRAPHS)}. "
                "Pictures without cards can be given as backgrounds"
            )
        image = _read(path, known.sha256)
        cards += [_flatten(image, card, f"{path.name}#{index}") for index, card in enumerate(known.cards)]
    return tuple(cards)


def _read(path: Path, sha256: str) -> Pixels:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SceneError(
            f"{path}: {error.strerror}; give the photographs that came with the reference model"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SceneError(
            f"{path}: SHA-256 {found}, expected {sha256}; the card corners are those of another picture. Fetch it again"
        )
    try:
        return decode_image(data)
    except ImageError as error:
        raise SceneError(f"{path}: {error}") from error


def _flatten(image: Pixels, card: CardOutline, name: str) -> FlatObject:
    corners = np.array(card.corners, np.float64)
    if card.hidden:
        image = _fill(image, card.hidden)
    is_upright = np.linalg.norm(corners[1] - corners[0]) < np.linalg.norm(corners[3] - corners[0])
    width_mm, height_mm = (SHORT_SIDE_MM, LONG_SIDE_MM) if is_upright else (LONG_SIDE_MM, SHORT_SIDE_MM)
    width, height = round(width_mm * TEXELS_PER_MM), round(height_mm * TEXELS_PER_MM)
    inset = _INSET_PX * width / float(np.linalg.norm(corners[1] - corners[0]))
    flat = np.array(
        [[-inset, -inset], [width + inset, -inset], [width + inset, height + inset], [-inset, height + inset]]
    )
    # Both sides count pixel centers at .5; OpenCV counts them at whole numbers.
    transform = cv2.getPerspectiveTransform((corners - 0.5).astype(np.float32), (flat - 0.5).astype(np.float32))
    texture = cv2.warpPerspective(
        image, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return FlatObject(np.asarray(texture, np.uint8), width_mm, height_mm, card.radius_mm, name)


def _fill(image: Pixels, polygon: tuple[Point, ...]) -> Pixels:
    """Paint over ``polygon`` from what is around it (Telea's method)."""
    hole: NDArray[np.uint8] = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(hole, [np.rint(np.array(polygon)).astype(np.int32)], (255,))
    return np.asarray(cv2.inpaint(image, hole, 5, cv2.INPAINT_TELEA), np.uint8)
