"""Where cards come from: cut out of the reference model's photographs, or drawn by code."""

from __future__ import annotations

import functools
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
from scenes.drawn import draw_card
from scenes.errors import SceneError
from scenes.surface import (
    CORNER_RADIUS_MM,
    LONG_SIDE_MM,
    SHORT_SIDE_MM,
    TEXELS_PER_MM,
    FlatObject,
    Pixels,
)

Point = tuple[float, float]

_PHOTOGRAPHED_SHARE: Final = 0.7
"""Share of photographed cards. The reference model learned from real cards and finds them more reliably."""
_INSET_PX: Final = 1.0
"""What is cut off each edge, so that no rim of the photograph's background shows."""


@dataclass(frozen=True)
class CardOutline:
    """Where a card lies in a photograph, in pixels with pixel centers at .5."""

    # Where its straight edges would meet: top left, top right, bottom right, bottom left as one reads it
    corners: tuple[Point, Point, Point, Point]
    radius_mm: float = CORNER_RADIUS_MM  # of its rounded corners
    # A polygon over what hides part of the card (a thumb), to be filled from around it; may be empty
    hidden: tuple[Point, ...] = ()


# Corners: lines fitted to the strongest change of color along each edge of the card (Lab, 0.25 px steps), intersected.
# us_card_rotated.png shows the card of us_card.png again.
CARDS_OF_PHOTOGRAPHS: Final = {
    "mklovin.png": (
        CardOutline(
            ((89.0, 194.0), (791.0, 194.0), (798.5, 632.0), (89.0, 643.5)),
            hidden=((722.0, 650.0), (724.0, 604.0), (740.0, 574.0), (768.0, 556.0), (810.0, 552.0), (810.0, 650.0)),
        ),
    ),
    "three_ids.png": (
        CardOutline(((64.0, 99.0), (456.0, 99.0), (456.0, 347.0), (64.0, 347.0))),
        CardOutline(((481.0, 25.0), (728.0, 25.0), (728.0, 415.0), (481.0, 415.0))),
        CardOutline(((752.0, 94.0), (1146.0, 94.0), (1146.0, 342.5), (752.0, 342.5))),
    ),
    "two_ids.png": (
        CardOutline(((160.0, 34.0), (559.0, 34.0), (559.0, 283.5), (160.0, 283.5))),
        CardOutline(((652.0, 33.0), (1038.0, 33.0), (1038.0, 276.0), (652.0, 276.0)), radius_mm=4.2),
    ),
    "us_card.png": (CardOutline(((20.0, 162.5), (407.0, 88.5), (454.5, 326.5), (68.0, 399.0)), radius_mm=6.0),),
}


@dataclass
class CardSource:
    """The cards of scenes.

    The splits share the few photographed cards but no drawn one: a drawn card's design number is even in calibration
    scenes and odd in verification scenes.
    """

    photographed: tuple[FlatObject, ...] = ()  # cards cut out of photographs; may be empty
    designs: int = 40  # how many different cards are drawn for each split, at least 1

    def __post_init__(self) -> None:
        self.drawn = functools.cache(draw_card)

    @classmethod
    def from_photographs(cls, photographs: Sequence[Path]) -> CardSource:
        """Drawn cards, and those in the reference model's photographs, named such as ``two_ids.png#1``.

        Raises:
            SceneError: a photograph cannot be read.
        """
        cards: list[FlatObject] = []
        for path in sorted(photographs, key=lambda path: path.name):
            outlines = CARDS_OF_PHOTOGRAPHS.get(path.name, ())
            if outlines:
                image = _read(path)
                cards += [_flatten(image, card, f"{path.name}#{index}") for index, card in enumerate(outlines)]
        return cls(tuple(cards))

    def pick(self, rng: np.random.Generator, split: str) -> FlatObject:
        """Take a card at random for a scene of ``split`` (``calibration`` or ``verification``)."""
        is_photographed = rng.random() < _PHOTOGRAPHED_SHARE
        if is_photographed and self.photographed:
            return self.photographed[int(rng.integers(len(self.photographed)))]
        return self.drawn(2 * int(rng.integers(self.designs)) + (split == "verification"))

    def digest(self) -> str:
        """SHA-256, hexadecimal, over all that decides which cards are picked."""
        digest = hashlib.sha256(f"{self.designs} {_PHOTOGRAPHED_SHARE}".encode())
        for card in self.photographed:
            digest.update(f"{card.name} {card.width_mm} {card.height_mm} {card.radius_mm}".encode())
            digest.update(np.ascontiguousarray(card.texture).tobytes())
        return digest.hexdigest()


def _read(path: Path) -> Pixels:
    try:
        return decode_image(path.read_bytes())
    except (OSError, ImageError) as error:
        raise SceneError(f"{path}: {error}; give the photographs that came with the reference model") from error


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
