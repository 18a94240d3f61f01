"""The length-controlled win rate against simulated truth and scikit-learn's logistic regression."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tokenq.judges import length_controlled, win_rate
from tokenq.judges.length_control import RIDGE, fit


def simulated(quality: float, length: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Preferences and length differences; ours is longer in most comparisons."""
    rng = np.random.default_rng(0)
    differences = rng.normal(150, 300, count)
    odds = quality + length * np.tanh(differences / differences.std(ddof=1))
    return (rng.random(count) < expit(odds)).astype(float), differences


def test_a_judge_who_likes_length_alone_gives_one_half() -> None:
    preferences, differences = simulated(quality=0, length=2)
    found = length_controlled(preferences, differences)
    assert found is not None
    assert win_rate(preferences).low > 0.58
    assert found.value == pytest.approx(0.5, abs=0.03)
    assert found.low < 0.5 < found.high
    assert found.length == pytest.approx(2, abs=0.2)


def test_a_judge_who_does_not_see_length_keeps_the_win_rate() -> None:
    preferences, differences = simulated(quality=0.8, length=0)
    found = length_controlled(preferences, differences)
    assert found is not None
    assert found.value == pytest.approx(win_rate(preferences).value, abs=0.01)
    assert found.value == pytest.approx(expit(0.8), abs=0.02)


def test_quality_is_found_under_a_taste_for_length() -> None:
    preferences, differences = simulated(quality=-0.5, length=2)
    found = length_controlled(preferences, differences)
    assert found is not None
    assert win_rate(preferences).value > 0.5 > found.high
    assert found.value == pytest.approx(expit(-0.5), abs=0.03)


def random_problem(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = np.stack([np.ones(rows), np.tanh(rng.normal(rng.normal(), 1, rows))], axis=1)
    return features, rng.choice([0.0, 0.5, 1.0], rows), rng.integers(0, 4, rows).astype(float)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_fit_is_where_the_gradient_of_the_penalised_loss_is_zero(seed: int, rows: int) -> None:
    features, preferences, weights = random_problem(seed, rows)

    def loss(coefficients: np.ndarray) -> float:
        odds = features @ coefficients
        log_loss = np.logaddexp(0, odds) - preferences * odds
        return float(weights @ log_loss + RIDGE / 2 * coefficients @ coefficients)

    [found] = fit(features, preferences, weights[None])
    assert np.isfinite(found).all()
    assert np.abs(approx_fprime(found, loss, 1e-6)).max() < 1e-4


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_the_fit_is_scikit_learns(seed: int) -> None:
    """A tie is half a win and half a loss."""
    features, preferences, weights = random_problem(seed, 40)
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=10_000)
    both = np.concatenate([weights * preferences, weights * (1 - preferences)])
    model.fit(np.tile(features, (2, 1)), np.repeat([1, 0], 40), sample_weight=both)
    [found] = fit(features, preferences, weights[None])
    assert found == pytest.approx(model.coef_[0], abs=1e-4)


def test_resamples_are_fitted_together_as_one_by_one() -> None:
    features, preferences, _ = random_problem(3, 30)
    weights = np.random.default_rng(0).integers(0, 3, (5, 30)).astype(float)
    together = fit(features, preferences, weights)
    alone = [fit(features, preferences, row[None])[0] for row in weights]
    assert together == pytest.approx(np.array(alone), abs=1e-8)


def test_the_interval_is_reproducible_and_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(100):
        differences = rng.normal(0.5, 1, 150)
        odds = 0.4 + 1.5 * np.tanh(differences / differences.std(ddof=1))
        preferences = (rng.random(150) < expit(odds)).astype(float)
        found = length_controlled(preferences, differences, resamples=300)
        assert found is not None
        inside += found.low <= expit(0.4) <= found.high
    assert 0.88 <= inside / 100 <= 1
    assert found == length_controlled(preferences, differences, resamples=300)


def test_data_that_length_or_quality_separate_give_finite_numbers() -> None:
    differences = np.linspace(-1, 2, 50)
    always = length_controlled(np.ones(50), differences)
    longer = length_controlled((differences > 0).astype(float), differences)
    assert always is not None
    assert longer is not None
    assert 0.99 < always.value < 1
    assert longer.value == pytest.approx(0.5, abs=0.15)


def test_equal_lengths_leave_the_win_rate_and_one_difference_cannot_be_controlled() -> None:
    equal = length_controlled([1, 1, 0, 0.5], [0, 0, 0, 0])
    assert equal is not None
    assert equal.value == pytest.approx(0.625, abs=0.001)
    assert length_controlled([1, 0, 1], [7, 7, 7]) is None


def test_sides_and_units_do_not_matter() -> None:
    preferences, differences = simulated(0.3, 1, count=200)
    found = length_controlled(preferences, differences)
    turned = length_controlled(1 - preferences, -3.5 * differences)
    assert found is not None
    assert turned is not None
    assert found.value + turned.value == pytest.approx(1)
    assert (found.longer, found.shorter) == (turned.shorter, turned.longer)


def test_differences_that_are_no_numbers_are_refused() -> None:
    for wrong in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="length differences"):
            length_controlled([1, 0], wrong)
