"""Shares and their intervals, against numbers worked out by hand and scipy's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tokenq.judges import count_wins
from tokenq.judges.accuracy import wilson_interval


def test_ties_count_half() -> None:
    found = count_wins([1.5, 0.2, -0.1, 0.0])
    assert (found.value, found.count, found.ties) == (2.5 / 4, 4, 1)


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (0.8 + 0.192073) / 1.384146, half width 0.226573.
    low, high = wilson_interval(0.8, 10)
    assert low == pytest.approx(0.490162, abs=1e-6)
    assert high == pytest.approx(0.943318, abs=1e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_for_whole_numbers(case: tuple[int, int]) -> None:
    right, count = case
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("differences", [[], [1.0, math.nan]])
def test_what_cannot_be_judged_is_refused(differences: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no pairs|NaN"):
        count_wins(differences)
