"""Lemma 1, Definition 1 and Theorem 1 on rewards with known answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.mdp import (
    PrefixTree,
    TokenMDP,
    bradley_terry,
    canonical,
    equivalence,
    inverse_bellman,
    shaped,
)

TREE = PrefixTree(vocabulary=3, horizon=3, eos=1, prompts=2)


def random_mdp(seed: int, tree: PrefixTree = TREE) -> TokenMDP:
    return TokenMDP.random(tree, np.random.default_rng(seed))


def test_reward_of_logits_by_hand() -> None:
    # beta 1, a coin as reference. The second state's logits log 3 and log 1 have V = log 4.
    tree = PrefixTree(vocabulary=2, horizon=2, eos=1)
    q = np.log([[2.0, 5.0], [3.0, 1.0]])
    reward = inverse_bellman(tree, q, np.log(np.full((2, 2), 0.5)), 1.0)
    # Going on: log 2 - log 1/2 - log 4 = 0; ending: log 5 + log 2.
    np.testing.assert_allclose(reward, np.log([[1.0, 10.0], [6.0, 2.0]]), atol=1e-15)


def test_shaping_by_hand() -> None:
    tree = PrefixTree(vocabulary=2, horizon=2, eos=1)
    reward = shaped(tree, np.zeros((2, 2)), np.array([5.0, 2.0]))
    # Phi is 0 after the end: 2 - 5 to go on, -5 to end at once, -2 to end later.
    np.testing.assert_array_equal(reward, [[-3.0, -5.0], [-2.0, -2.0]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 5.0))
def test_shaping_keeps_policy_and_preferences(seed: int, beta: float) -> None:
    mdp = random_mdp(seed)
    potential = np.random.default_rng(seed + 1).normal(size=TREE.states)
    other = mdp.with_reward(shaped(TREE, mdp.reward, potential))
    np.testing.assert_allclose(
        beta * other.solve(beta).log_policy, beta * mdp.solve(beta).log_policy, atol=1e-12
    )
    np.testing.assert_allclose(bradley_terry(other.returns), bradley_terry(mdp.returns), atol=1e-12)
    found = equivalence(TREE, mdp.reward, other.reward)
    assert found.holds
    np.testing.assert_allclose(found.potential, potential, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_equivalent_means_that_all_returns_differ_by_one_constant(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mdp = random_mdp(seed)
    reward = shaped(TREE, mdp.reward, rng.normal(size=TREE.states))
    if seed % 2:
        reward[rng.integers(TREE.states), rng.integers(3)] += 1e-3
    gaps = TREE.totals(reward) - mdp.returns
    constant = np.ptp(gaps, axis=-1).max() < 1e-9
    assert bool(equivalence(TREE, mdp.reward, reward).holds) == constant == (seed % 2 == 0)


def test_a_changed_reward_is_refused_with_its_distance() -> None:
    mdp = random_mdp(0)
    reward = mdp.reward.copy()
    state = TREE.state(0, (0, 2))
    reward[state, 0] += 0.3
    found = equivalence(TREE, mdp.reward, reward)
    # The last state's potential is the mean over its tokens, -0.1; the changed token is off by 0.2.
    assert not found.holds
    assert math.isclose(found.error, 0.2, rel_tol=1e-12)
    assert not np.allclose(
        mdp.with_reward(reward).solve(1.0).log_policy, mdp.solve(1.0).log_policy, atol=1e-6
    )


def test_one_answer_for_each_mdp_of_a_batch() -> None:
    mdp = TokenMDP.random(TREE, np.random.default_rng(3), (2,))
    reward = shaped(TREE, mdp.reward, np.ones((2, TREE.states)))
    reward[1, 0, 0] += 1.0
    assert equivalence(TREE, mdp.reward, reward).holds.tolist() == [True, False]


def test_the_canonical_reward_is_the_advantage_and_stays() -> None:
    mdp = random_mdp(4)
    other = canonical(mdp, 0.3)
    np.testing.assert_allclose(other.reward, mdp.solve(0.3).advantage)
    np.testing.assert_allclose(other.solve(0.3).v, 0, atol=1e-13)
    np.testing.assert_allclose(canonical(other, 0.3).reward, other.reward, atol=1e-13)
    # It belongs to one beta: another one makes another member of the class.
    assert np.abs(other.solve(0.6).v).max() > 1e-3
    assert equivalence(TREE, mdp.reward, other.reward).holds


@pytest.mark.parametrize("horizon", [1, 2])
def test_equivalence_where_nothing_goes_on(horizon: int) -> None:
    tree = PrefixTree(vocabulary=2, horizon=horizon, eos=None)
    reward = np.zeros((tree.states, 2))
    assert equivalence(tree, reward, reward + 1.0).holds
