"""Effects found by repeated looks at the same rows: numbers worked out by hand, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenq.monitor.findings.looks import ERROR, Track, chance, held, interval


def _track(*rows):
    return Track([10 * (number + 1) for number in range(len(rows))], list(rows))


def _rows(mean, count=32, seed=0):
    """Rows with exactly this mean and a standard deviation of 1."""
    rows = np.random.default_rng(seed).normal(size=count)
    return mean + (rows - rows.mean()) / rows.std(ddof=1)


def test_the_chance_is_that_of_the_t_test():
    rows = _rows(0.4)
    expected = stats.ttest_1samp(rows, 0.1, alternative="greater").pvalue

    assert chance(rows, 0.1) == pytest.approx(expected)


def test_rows_that_are_all_alike_are_no_surer_than_their_number():
    assert chance(np.full(8, 0.7)) == 2**-8
    assert chance(np.full(8, -0.7)) == 1.0
    assert chance(np.array([0.7])) == 1.0
    assert chance(np.array([1.0, np.nan])) == 1.0


def test_the_interval_is_students():
    found = interval(np.array([1.0, 2.0, 3.0]))

    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))


def test_error_is_the_p_value_over_what_its_look_may_spend():
    rows = _rows(0.9)
    found = held(_track(_rows(0.0), rows), 0.5)

    assert found.since == 20
    assert found.error == pytest.approx(chance(rows) * 4 * math.pi**2 / 6)
    assert held(_track(_rows(0.0), rows), 0.5, tries=2).error == pytest.approx(2 * found.error)
    assert held(_track(_rows(0.0), rows), 0.5, tries=[1, 3]).error == pytest.approx(3 * found.error)


def test_what_all_looks_may_spend_adds_up_to_one():
    spends = [6 / (math.pi * number) ** 2 for number in range(1, 200_000)]

    assert sum(spends) == pytest.approx(1, abs=1e-5)


def test_a_sure_but_tiny_effect_is_silent():
    assert held(_track(_rows(2.0)), 2.1) is None
    assert held(_track(_rows(2.0)), 1.9) is not None


def test_since_is_the_start_of_the_unbroken_run():
    large, none = _rows(2.0), _rows(0.0)

    assert held(_track(large, none, large, large), 0.5).since == 30
    assert held(_track(large, large, none), 0.5) is None


def test_a_look_may_have_found_it_and_later_ones_only_hold():
    sure, holding = _rows(1.5), _rows(0.45)

    assert held(_track(holding), 0.4) is None
    found = held(_track(sure, holding), 0.4)
    assert found.since == 10
    assert found.interval.mean == pytest.approx(0.45)


def test_a_threshold_of_each_look():
    rows = _rows(1.0)

    assert held(_track(rows, rows), [2.0, 0.5]).since == 20
    assert held(_track(rows, rows), [0.5, 2.0]) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.5]), min_size=2, max_size=8))
def test_later_looks_never_move_since_back(means):
    tracks = [_rows(mean, seed=number) for number, mean in enumerate(means)]
    earlier, later = held(_track(*tracks[:-1]), 0.4), held(_track(*tracks), 0.4)

    if earlier is not None and later is not None:
        assert later.since == earlier.since


def test_runs_without_an_effect_are_found_no_oftener_than_the_error_allows():
    """Twenty looks at the same skewed rows, which drift about zero: exponential, as log-ratios."""
    draw = np.random.default_rng(1)
    false = 0
    for _ in range(200):
        rows = np.zeros(32)
        looks = []
        for _ in range(20):
            rows = rows + 1 - draw.exponential(size=32)
            looks.append(rows)
        false += held(_track(*looks), 0.0) is not None
    assert false <= stats.binom.ppf(0.999, 200, ERROR)
