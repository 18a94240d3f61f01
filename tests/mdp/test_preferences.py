"""Bradley-Terry and Plackett-Luce: by hand, by enumeration, and by counting samples."""

import math
from itertools import permutations

import numpy as np
import pytest

from tokenq.mdp import bradley_terry, plackett_luce_logp, sample_comparisons, sample_rankings

RETURNS = np.array([0.0, math.log(2), math.log(5)])


def test_bradley_terry_by_hand() -> None:
    probability = bradley_terry(RETURNS)
    np.testing.assert_allclose(probability[1], [2 / 3, 1 / 2, 2 / 7])
    np.testing.assert_allclose(probability + probability.T, 1)
    extreme = bradley_terry(np.array([0.0, 1e4]))
    np.testing.assert_array_equal(extreme, [[0.5, 0.0], [1.0, 0.5]])


def test_plackett_luce_by_hand() -> None:
    # 5 of 8, then 2 of 3, then the rest
    ranked = RETURNS[::-1]
    assert math.isclose(math.exp(plackett_luce_logp(ranked)), 5 / 8 * 2 / 3)
    assert plackett_luce_logp(RETURNS[:1]) == 0
    orders = np.array(list(permutations(range(3))))
    np.testing.assert_allclose(np.exp(plackett_luce_logp(RETURNS[orders])).sum(), 1)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    assert math.isclose(math.exp(plackett_luce_logp(RETURNS[[1, 0]])), bradley_terry(RETURNS)[1, 0])


def test_a_pair_within_a_ranking_is_bradley_terry() -> None:
    orders = np.array(list(permutations(range(3))))
    law = np.exp(plackett_luce_logp(RETURNS[orders]))
    first_ahead = [list(order).index(2) < list(order).index(0) for order in orders]
    assert math.isclose(law[first_ahead].sum(), bradley_terry(RETURNS)[2, 0])


def test_sampled_comparisons_have_the_exact_law() -> None:
    returns = np.stack([RETURNS, RETURNS[::-1] * 2])
    drawn = sample_comparisons(returns, 60_000, np.random.default_rng(0))
    counts = np.zeros((2, 3, 3))
    np.add.at(counts, (drawn.prompts, drawn.winners, drawn.losers), 1)
    assert (counts[:, range(3), range(3)] == 0).all()
    asked = counts + counts.swapaxes(1, 2)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(asked[:, off] / 60_000, 1 / 6, atol=0.01)
    np.testing.assert_allclose(
        (counts / np.maximum(asked, 1))[:, off], bradley_terry(returns)[:, off], atol=0.02
    )


def test_sampled_rankings_have_the_exact_law() -> None:
    drawn = sample_rankings(RETURNS, 60_000, np.random.default_rng(0))
    for order in permutations(range(3)):
        share = (drawn == order).all(-1).mean()
        exact = math.exp(plackett_luce_logp(RETURNS[list(order)]))
        assert abs(share - exact) < 4 * math.sqrt(exact / 60_000)
    assert sample_rankings(np.zeros((2, 5)), 3, np.random.default_rng(0)).shape == (3, 2, 5)


def test_samples_repeat_with_the_seed() -> None:
    one, other = (sample_comparisons(RETURNS[None], 50, np.random.default_rng(7)) for _ in range(2))
    assert one.winners.tolist() == other.winners.tolist()


def test_one_response_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least 2 responses, got 1"):
        sample_comparisons(np.zeros((1, 1)), 5, np.random.default_rng(0))
