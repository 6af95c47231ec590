"""What a card is, and where cards come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from scenes.errors import SceneError
from scenes.surface import FlatObject

LONG_SIDE_MM: Final = 85.60
"""ISO/IEC 7810, size ID-1."""
SHORT_SIDE_MM: Final = 53.98
"""ISO/IEC 7810, size ID-1."""
CORNER_RADIUS_MM: Final = 3.18
"""ISO/IEC 7810: 3.18 mm, give or take 0.30 mm."""
TEXELS_PER_MM: Final = 10
"""Resolution of every card's texture: 856 x 540 texels."""


@dataclass
class CardSource:
    """Where the cards of a scene are taken from: cut out of photographs, or drawn by code.

    The two splits share the photographed cards, there being few, but no drawn one: a drawn card's design number
    is even in calibration scenes and odd in verification scenes.

    Attributes:
        photographed: cards cut out of photographs (:func:`scenes.photographs.cut_cards`); may be empty.
        designs: how many different cards are drawn for each split, at least 1.
        photographed_share: share of cards that are photographed ones, in [0, 1], where there are any. More than
            half by default: the reference model has learnt from real cards and finds them more surely.
    """

    photographed: tuple[FlatObject, ...] = ()
    designs: int = 40
    photographed_share: float = 0.7
    _drawn: dict[int, FlatObject] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.designs < 1:
            raise SceneError(f"designs is {self.designs}; allowed: 1 or more")
        if not 0 <= self.photographed_share <= 1:
            raise SceneError(f"photographed_share is {self.photographed_share}; allowed: 0 to 1")

    @classmethod
    def from_photographs(cls, photographs: Sequence[Path] = (), photographed_share: float = 0.7) -> CardSource:
        """A source of drawn cards and those in ``photographs``, which may be none.

        Raises:
            SceneError: a photograph is not one whose cards are known.
        """
        from scenes.photographs import cut_cards

        return cls(cut_cards(photographs), photographed_share=photographed_share)

    def pick(self, rng: np.random.Generator, split: str) -> FlatObject:
        """Take a card at random for a scene of ``split`` (``calibration`` or ``verification``)."""
        is_photographed = rng.random() < self.photographed_share
        if is_photographed and self.photographed:
            return self.photographed[int(rng.integers(len(self.photographed)))]
        return self.drawn(2 * int(rng.integers(self.designs)) + (split == "verification"))

    def drawn(self, design: int) -> FlatObject:
        """The drawn card of design number ``design``; drawn once, then kept."""
        from scenes.drawn import draw_card

        if design not in self._drawn:
            self._drawn[design] = draw_card(design)
        return self._drawn[design]

    def digest(self) -> str:
        """SHA-256, hexadecimal, over all that decides which cards are picked."""
        digest = hashlib.sha256(f"{self.designs} {self.photographed_share}".encode())
        for card in self.photographed:
            digest.update(f"{card.name} {card.width_mm} {card.height_mm} {card.radius_mm}".encode())
            digest.update(np.ascontiguousarray(card.texture).tobytes())
        return digest.hexdigest()
