"""Win rates and agreement against numbers worked out by hand and simulated truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from tokenq.judges import agreement, win_rate
from tokenq.judges.accuracy import wilson_interval

ANSWERS = st.sampled_from([0.0, 0.5, 1.0])
PREFERENCES = st.lists(ANSWERS, min_size=1, max_size=30)


def test_wins_and_half_the_ties_count() -> None:
    found = win_rate([1, 1, 0.5, 0])
    assert (found.value, found.wins, found.ties, found.losses) == (0.625, 2, 1, 1)
    assert (found.low, found.high) == wilson_interval(0.625, 4)
    assert (found.prompts, found.comparisons) == (4, 4)


def test_every_prompt_counts_the_same_however_many_responses_it_has() -> None:
    found = win_rate([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert found.value == 0.5
    assert (found.prompts, found.comparisons) == (2, 4)


@given(PREFERENCES)
def test_the_other_side_has_the_rest(preferences: list[float]) -> None:
    ours, theirs = win_rate(preferences), win_rate([1 - each for each in preferences])
    assert ours.value + theirs.value == pytest.approx(1)
    assert ours.low == pytest.approx(1 - theirs.high)
    assert ours.low <= ours.value <= ours.high


def test_responses_of_one_prompt_that_always_agree_do_not_narrow_the_interval() -> None:
    """Ten copies of each answer are no further evidence."""
    rng = np.random.default_rng(0)
    once = rng.integers(0, 2, 60).astype(float)
    copied = win_rate(np.repeat(once, 10), np.repeat(np.arange(60), 10))
    assert copied.value == pytest.approx(once.mean())
    low, high = wilson_interval(once.mean(), 60)
    assert copied.high - copied.low == pytest.approx(high - low, rel=0.15)


def test_the_interval_over_prompts_covers_the_truth() -> None:
    """Prompts of their own rates, mean 0.6, and four responses each."""
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(50), 4)
    inside = 0
    for _ in range(200):
        rates = rng.beta(1.2, 0.8, 50)
        found = win_rate(rng.random(200) < rates[prompts], prompts, resamples=400)
        inside += found.low <= 0.6 <= found.high
    assert 0.89 <= inside / 200 <= 0.99


@pytest.mark.parametrize(
    ("preferences", "prompts", "message"),
    [([], None, "no preferences"), ([2], None, "outside"), ([1], ["a", "b"], "2 prompts")],
)
def test_what_is_no_preference_is_refused(
    preferences: list[float], prompts: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        win_rate(preferences, prompts)
    with pytest.raises(ValueError, match="outside"):
        win_rate([float("nan")])


@given(st.data())
def test_kappa_is_scikit_learns(data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=30))
    first, second = zip(*pairs, strict=True)
    found = agreement(first, second)
    assert found is not None
    assert found.same == np.mean(np.array(first) == np.array(second))
    if len({*first, *second}) > 1:
        expected = cohen_kappa_score([str(each) for each in first], [str(each) for each in second])
        assert found.kappa == pytest.approx(expected)
    else:
        assert found.kappa is None


def test_only_what_both_judges_told_is_compared() -> None:
    found = agreement([1, None, 0, 0.5], [1, 1, None, 0])
    assert found is not None
    assert (found.comparisons, found.same) == (2, 0.5)
    assert agreement([None], [1]) is None
