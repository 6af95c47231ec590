"""A picture being composed: things laid on one another, and what stays visible of each card."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scenes.surface import FlatObject, Footprint, Matrix, Pixels, footprint, is_in_front, paint, paint_shadow, sample


@dataclass
class PlacedCard:
    """A card in the picture."""

    card: FlatObject  # what it is
    mask: NDArray[np.bool_]  # bool [height, width], what is visible of it now; later things take pixels away
    area_px: float  # of the whole card, with what is hidden or outside the image


@dataclass(frozen=True)
class Shadow:
    """The shadow that everything in a picture casts: offset and softness in mm, depth in [0, 1]."""

    right_mm: float
    down_mm: float
    blur_mm: float
    depth: float


@dataclass
class Stage:
    """A picture and the cards in it; what is laid down later lies on top."""

    image: Pixels  # uint8 [height, width, 3] RGB
    shadow: Shadow  # what each thing casts
    min_visible: float  # share of each card's whole area, in (0, 1], that must stay visible
    cards: list[PlacedCard] = field(default_factory=list)  # what has been laid down so far

    def lay_card(self, card: FlatObject, homography: Matrix, *, may_overlap: bool, min_inside: float) -> bool:
        """Lay a card on the picture, unless that breaks a rule; says whether it was laid.

        Args:
            card: what to lay.
            homography: where: float64 [3, 3] from mm on the card to pixels.
            may_overlap: whether it may hide part of another card.
            min_inside: share of it that must lie inside the image; pixels are counted, so 0.99 asks for all of it.
        """
        place = self._place(card, homography)
        if place is None or np.count_nonzero(place.mask) < max(min_inside, self.min_visible) * place.area_px:
            return False
        if not self._may_cover(place, may_overlap):
            return False
        self._lay(card, place)
        mask = np.zeros(self.image.shape[:2], bool)
        mask[place.window.slices] = place.mask
        self.cards.append(PlacedCard(card, mask, place.area_px))
        return True

    def lay_thing(self, thing: FlatObject, homography: Matrix) -> bool:
        """Lay something that is not a card, unless it would hide too much of one; says whether it was laid."""
        place = self._place(thing, homography)
        if place is None or not self._may_cover(place, True):
            return False
        self._lay(thing, place)
        return True

    def _place(self, thing: FlatObject, homography: Matrix) -> Footprint | None:
        if not is_in_front(thing, homography):
            return None
        place = footprint(thing, homography, *self.image.shape[:2])
        return None if place.window.is_empty else place

    def _may_cover(self, place: Footprint, may_overlap: bool) -> bool:
        """Whether every card would stay visible enough under ``place``."""
        for placed in self.cards:
            lost = np.count_nonzero(placed.mask[place.window.slices] & place.mask)
            left = np.count_nonzero(placed.mask) - lost
            if lost and (not may_overlap or left < self.min_visible * placed.area_px):
                return False
        return True

    def _lay(self, thing: FlatObject, place: Footprint) -> None:
        px_per_mm = float(np.sqrt(place.area_px / (thing.width_mm * thing.height_mm)))
        offset = (self.shadow.right_mm * px_per_mm, self.shadow.down_mm * px_per_mm)
        paint_shadow(self.image, place, offset, self.shadow.blur_mm * px_per_mm, self.shadow.depth)
        paint(self.image, sample(thing, place), place)
        for placed in self.cards:
            placed.mask[place.window.slices] &= ~place.mask
