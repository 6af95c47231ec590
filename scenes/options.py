"""What a scene may look like, and which seeds belong to which set of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scenes.errors import SceneError

CALIBRATION_SEEDS: Final = range(0, 1_000_000)
"""Seeds of scenes that a network is calibrated on."""
VERIFICATION_SEEDS: Final = range(CALIBRATION_SEEDS.stop, CALIBRATION_SEEDS.stop + 1_000_000)
"""Seeds of scenes that a network is verified on: starts where the calibration seeds stop, so none is in both."""
SPLITS: Final = {"calibration": CALIBRATION_SEEDS, "verification": VERIFICATION_SEEDS}


def split_of(seed: int) -> str:
    """The split that ``seed`` belongs to, ``calibration`` or ``verification``.

    Raises:
        SceneError: it belongs to neither.
    """
    for name, seeds in SPLITS.items():
        if seed in seeds:
            return name
    allowed = ", ".join(f"{seeds.start}..{seeds.stop - 1} ({name})" for name, seeds in SPLITS.items())
    raise SceneError(f"seed {seed} belongs to no split; allowed are {allowed}")


def seeds_from(first_seed: int, count: int) -> range:
    """``count`` seeds from ``first_seed`` on, all of one split.

    Raises:
        SceneError: the count is negative, or the seeds would run past the end of the split.
    """
    split = split_of(first_seed)
    last = SPLITS[split].stop - 1
    if not 0 <= count <= last - first_seed + 1:
        raise SceneError(
            f"{count} scenes from seed {first_seed}: the {split} seeds end at {last}, so 0 to {last - first_seed + 1} "
            "scenes are possible; ask for fewer or start lower"
        )
    return range(first_seed, first_seed + count)


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are composed.

    Attributes:
        card_weights: how often a scene is asked to hold 0, 1, 2, ... cards; relative, at least one entry. A scene
            may hold fewer where there is no room.
        min_side_px: shortest side of an image, in pixels.
        max_side_px: longest side of an image, in pixels.
        max_tilt_degrees: largest angle between the table and the image plane, in [0, 60].
        min_visible: least share of a card, in (0, 1], that stays inside the image and uncovered. What would cover
            or cut off more is not placed, so every card in an image counts and has its mask.
        overlap_share: share of cards that may lie over other cards, in [0, 1].
        cut_off_share: share of cards that may reach out of the image, in [0, 1].
        smallest_card: least width of a card lying flat in the middle, as a share of the shorter image side.
        largest_card: greatest such width.
        max_clutter: most other objects on the table (half as many, small ones, may lie on top of the cards).
        strength: scales light, shadow, color cast, blur, noise and JPEG loss; 0 switches them off.
        backgrounds: photographs to use instead of drawn tables in half of the scenes; none is needed.
    """

    card_weights: tuple[float, ...] = (0.10, 0.28, 0.22, 0.16, 0.11, 0.08, 0.05)
    min_side_px: int = 480
    max_side_px: int = 1280
    max_tilt_degrees: float = 40.0
    min_visible: float = 0.5
    overlap_share: float = 0.35
    cut_off_share: float = 0.15
    smallest_card: float = 0.24
    largest_card: float = 0.85
    max_clutter: int = 6
    strength: float = 1.0
    backgrounds: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self._check("card_weights", sum(self.card_weights) > 0 and min(self.card_weights) >= 0, "at least 0, sum > 0")
        self._check("min_side_px", self.min_side_px >= 64, "64 or more")
        self._check("max_side_px", self.max_side_px >= self.min_side_px, f"{self.min_side_px} (min_side_px) or more")
        self._check("max_tilt_degrees", 0 <= self.max_tilt_degrees <= 60, "0 to 60")
        self._check("min_visible", 0 < self.min_visible <= 1, "above 0, at most 1")
        self._check("overlap_share", 0 <= self.overlap_share <= 1, "0 to 1")
        self._check("cut_off_share", 0 <= self.cut_off_share <= 1, "0 to 1")
        self._check("smallest_card", self.smallest_card > 0, "above 0")
        self._check("largest_card", self.largest_card >= self.smallest_card, f"{self.smallest_card} or more")
        self._check("max_clutter", self.max_clutter >= 0, "0 or more")
        self._check("strength", 0 <= self.strength <= 2, "0 to 2")

    def _check(self, name: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise SceneError(f"scene option {name} is {getattr(self, name)}; allowed: {allowed}")
