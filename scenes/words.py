"""Words that mean nothing, for what is printed on drawn things."""

from __future__ import annotations

from typing import Final

import numpy as np

_ONSETS: Final = ("b", "br", "d", "dr", "f", "g", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS: Final = ("a", "e", "i", "o", "u", "ae", "ia")
_CODAS: Final = ("", "", "n", "r", "l", "s", "nd", "x")


def word(rng: np.random.Generator, syllables: int) -> str:
    """One invented word, capitalized."""
    parts = [_pick(rng, _ONSETS) + _pick(rng, _VOWELS) for _ in range(syllables)]
    return ("".join(parts) + _pick(rng, _CODAS)).capitalize()


def date(rng: np.random.Generator, first_year: int, last_year: int) -> str:
    """A date such as 05.11.1987."""
    return f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.{rng.integers(first_year, last_year + 1)}"


def number(rng: np.random.Generator, digits: int) -> str:
    """A letter and some digits."""
    return chr(int(rng.integers(65, 91))) + "".join(str(digit) for digit in rng.integers(0, 10, digits))


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
