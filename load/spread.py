"""Statistics of repeated measurements: median, spread, percentiles, and ratios taken round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spread:
    """A value per round, summed up; NaN throughout without rounds."""

    median: float  # the middle value
    low: float  # the least value, or the first quartile
    high: float  # the greatest value, or the third quartile
    rounds: int  # number of values

    @classmethod
    def of(cls, values: Sequence[float], low: float = 0, high: float = 100) -> Spread:
        """Median and two percentiles: least and greatest value, or 25 and 75 for the middle half."""
        return cls(percentile(values, 50), percentile(values, low), percentile(values, high), len(values))

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values."""
        return {
            "median": number(self.median),
            "low": number(self.low),
            "high": number(self.high),
            "rounds": self.rounds,
        }


def percentile(values: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """Percentile with linear interpolation; NaN without values."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios within each round; rounds whose divisor is 0 are left out.

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    return [one / other for one, other in zip(above, below, strict=True) if other > 0]


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN: null."""
    return None if math.isnan(value) else float(value)
