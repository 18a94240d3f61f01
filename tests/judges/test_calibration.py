"""Calibration against hand-worked numbers, and on data that is calibrated by construction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenq.judges import calibrate


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_four_pairs_by_hand() -> None:
    # Probabilities of the chosen response: 0.9, 0.8 (right), 0.4 and 0.12 (wrong).
    # Bins of width 0.1: confidence 0.6 in the second, 0.8 and 0.88 in the fourth, 0.9 in the last.
    margins = [logit(p) for p in (0.9000001, 0.8000001, 0.3999999, 0.12)]
    found = calibrate(margins, bins=5)
    assert [each.count for each in found.bins] == [0, 1, 0, 2, 1]
    assert [each.accuracy for each in found.bins] == [None, 0.0, None, 0.5, 1.0]
    assert found.bins[3].confidence == pytest.approx(0.84, abs=1e-6)
    # (1 * |0.6 - 0| + 2 * |0.84 - 0.5| + 1 * |0.9 - 1|) / 4
    assert found.expected_calibration_error == pytest.approx((0.6 + 0.68 + 0.1) / 4, abs=1e-6)
    # (0.1^2 + 0.2^2 + 0.6^2 + 0.88^2) / 4
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.36 + 0.7744) / 4, abs=1e-6)
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.12)) / 4
    assert found.log_loss == pytest.approx(expected, abs=1e-6)


def test_a_coin() -> None:
    found = calibrate([0.0, 0.0, 0.0])
    assert found.expected_calibration_error == 0
    assert found.brier == 0.25
    assert found.log_loss == pytest.approx(math.log(2))
    assert found.bins[0].count == 3


def test_certainty_stays_finite_and_in_the_last_bin() -> None:
    found = calibrate([1000.0, -1000.0])
    assert found.bins[-1].count == 2
    assert found.expected_calibration_error == pytest.approx(0.5)
    assert found.brier == pytest.approx(0.5)
    assert found.log_loss == pytest.approx(500)


def test_outcomes_drawn_from_the_probabilities_are_calibrated() -> None:
    draw = np.random.default_rng(0)
    margins = draw.normal(scale=2, size=100_000)
    first_wins = draw.random(margins.size) < 1 / (1 + np.exp(-margins))
    outcomes = np.where(first_wins, margins, -margins)
    assert calibrate(outcomes.tolist()).expected_calibration_error < 0.006
    # The same order with three times the margin is sure of itself without reason.
    assert calibrate((3 * outcomes).tolist()).expected_calibration_error > 0.05


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_hold_every_pair_and_the_order_of_pairs_is_nothing(
    margins: list[float], bins: int
) -> None:
    found = calibrate(margins, bins)
    assert sum(each.count for each in found.bins) == len(margins)
    assert 0 <= found.expected_calibration_error <= 1
    for each in found.bins:
        if each.confidence is not None:
            assert each.low - 1e-12 <= each.confidence <= each.high + 1e-12
    again = calibrate(margins[::-1], bins)
    assert again.expected_calibration_error == pytest.approx(found.expected_calibration_error)


def test_both_orders_of_each_pair_give_the_same_error() -> None:
    margins = np.random.default_rng(1).normal(size=500)
    probability = 1 / (1 + np.exp(-np.concatenate([margins, -margins])))
    outcome = np.concatenate([np.ones(500), np.zeros(500)])
    edges = np.linspace(0, 1, 21)
    places = np.digitize(probability, edges[1:-1])
    by_hand = sum(
        abs(probability[places == i].sum() - outcome[places == i].sum()) for i in range(20)
    )
    found = calibrate(margins.tolist(), bins=10).expected_calibration_error
    assert found == pytest.approx(by_hand / 1000)


@pytest.mark.parametrize(("margins", "bins"), [([], 10), ([math.nan], 10), ([1.0], 0)])
def test_what_cannot_be_judged_is_refused(margins: list[float], bins: int) -> None:
    with pytest.raises(ValueError, match=r"no pairs|NaN|bins"):
        calibrate(margins, bins)
