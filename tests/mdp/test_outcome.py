"""Soft expectations of the outcome, against enumeration of the continuations."""

import numpy as np

from tokenq.mdp import PrefixTree, TokenMDP, outcome_steps, soft_expectation
from tokenq.mdp.arrays import log_softmax

TREE = PrefixTree(vocabulary=3, horizon=3, eos=0, prompts=2)
RNG = np.random.default_rng(0)
REFERENCE = log_softmax(RNG.normal(size=(TREE.states, 3)))


def test_every_state_by_enumeration() -> None:
    outcomes, beta = RNG.normal(size=(2, TREE.responses)), 0.3
    values = soft_expectation(TREE, REFERENCE, outcomes, beta)
    paths = TREE.paths
    reference = TREE.totals(REFERENCE)
    reached = TREE.prefix_sums(REFERENCE)
    for state in range(TREE.states):
        through = ((paths.states == state) & paths.mask).any(-1)
        law = np.exp(reference[through] - reached[state])
        assert np.isclose(law.sum(), 1)
        exact = beta * np.log((law * np.exp(outcomes[through] / beta)).sum())
        np.testing.assert_allclose(values[state], exact, atol=1e-13)


def test_prefix_sums_of_log_ratios_are_soft_expectations() -> None:
    ratio = 0.3 * (log_softmax(RNG.normal(size=REFERENCE.shape)) - REFERENCE)
    values = soft_expectation(TREE, REFERENCE, TREE.totals(ratio), 0.3)
    np.testing.assert_allclose(TREE.prefix_sums(ratio), values, atol=1e-13)
    # Another reference than the one in the ratio: no identity.
    other = log_softmax(RNG.normal(size=REFERENCE.shape))
    wrong = soft_expectation(TREE, other, TREE.totals(ratio), 0.3)
    assert np.abs(TREE.prefix_sums(ratio) - wrong).max() > 1e-2


def test_a_reward_at_the_end_is_a_classical_reward_model() -> None:
    # Eq. 3: its V* at the prompts is beta log Z of the bandit, and its returns are the outcomes.
    outcomes = RNG.normal(size=(2, TREE.responses))
    mdp = TokenMDP(TREE, outcome_steps(TREE, outcomes), REFERENCE)
    np.testing.assert_array_equal(mdp.returns, outcomes)
    np.testing.assert_allclose(
        mdp.solve(0.3).v, soft_expectation(TREE, REFERENCE, outcomes, 0.3), atol=1e-13
    )
