import math

import pytest

from load.spread import Spread, percentile, ratios


def test_a_spread_goes_from_least_to_most_or_over_the_quartiles():
    assert Spread.of([5, 1, 2, 4, 3]) == Spread(3, 1, 5, 5)
    assert Spread.of([5, 1, 2, 4, 3], 25, 75) == Spread(3, 2, 4, 5)
    assert Spread.of([7]) == Spread.of([7], 25, 75) == Spread(7, 7, 7, 1)


def test_nothing_is_not_a_number_and_null_in_json():
    assert math.isnan(percentile([], 50))
    assert Spread.of([]).to_json() == {"median": None, "low": None, "high": None, "rounds": 0}


def test_ratios_are_taken_round_by_round():
    # A machine that was twice as slow in the second round must not show in the ratio.
    assert ratios([10, 20, 1], [5, 10, 0]) == [2, 2]
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])
