"""MDPs with loops: by hand, against long unrolled recursion, and against the token tree."""

import math

import numpy as np
import pytest

from tokenq.mdp import DiscountedMDP, PrefixTree, TokenMDP
from tokenq.mdp.arrays import log_softmax, log_sum_exp

RNG = np.random.default_rng(0)


def random_mdp(states: int = 5, actions: int = 3, discount: float = 0.9) -> DiscountedMDP:
    transition = RNG.dirichlet(np.full(states, 0.4), size=(states, actions))
    return DiscountedMDP(RNG.normal(size=(states, actions)), transition, discount)


def certain(discount: float = 0.9) -> DiscountedMDP:
    """Deterministic: every action leads to one random state."""
    transition = np.eye(6)[RNG.integers(6, size=(6, 2))]
    return DiscountedMDP(RNG.normal(size=(6, 2)), transition, discount)


def test_worked_by_hand() -> None:
    # One state, two actions that stay, rewards 0 and log 3, beta 1, discount 1/2:
    # V = log(1 + 3) + V / 2, so V = 2 log 4.
    mdp = DiscountedMDP(np.log([[1.0, 3.0]]), np.ones((1, 2, 1)), 0.5)
    solution = mdp.solve(1.0)
    assert math.isclose(solution.v[0], 2 * math.log(4))
    np.testing.assert_allclose(np.exp(solution.log_policy), [[1 / 4, 3 / 4]])
    # Without a reference A* is beta log pi*, as in CPL.
    np.testing.assert_allclose(solution.advantage, np.log([[1 / 4, 3 / 4]]))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_solution_is_the_limit_of_unrolling(beta: float, reference: bool) -> None:
    mdp = random_mdp()
    prior = log_softmax(RNG.normal(size=(5, 3))) if reference else None
    terminal = np.array([False, False, False, False, True])
    mdp = DiscountedMDP(mdp.reward, mdp.transition, mdp.discount, prior, terminal)
    solution = mdp.solve(beta)
    v = np.zeros(5)
    for _ in range(500):
        q = mdp.reward + beta * (prior if reference else 0.0) + 0.9 * mdp.transition @ v
        v = np.where(terminal, 0.0, beta * log_sum_exp(q / beta))
    np.testing.assert_allclose(solution.v, v, atol=1e-10)
    np.testing.assert_allclose(solution.q, q, atol=1e-10)
    expected = mdp.reward + 0.9 * mdp.transition @ v - v[:, None]
    np.testing.assert_allclose(solution.advantage, expected, atol=1e-9)


def test_evaluation_is_the_limit_of_unrolling_and_the_optimum_its_maximum() -> None:
    mdp, beta = random_mdp(), 0.3
    log_policy = log_softmax(RNG.normal(size=(5, 3)))
    policy, v = np.exp(log_policy), np.zeros(5)
    for _ in range(500):
        v = (policy * (mdp.reward - beta * log_policy + 0.9 * mdp.transition @ v)).sum(-1)
    np.testing.assert_allclose(mdp.evaluate(log_policy, beta), v, atol=1e-10)
    solution = mdp.solve(beta)
    np.testing.assert_allclose(mdp.evaluate(solution.log_policy, beta), solution.v, atol=1e-10)
    assert (v < solution.v).all()


def test_a_token_tree_is_a_special_case() -> None:
    tree = PrefixTree(vocabulary=3, horizon=3, eos=1)
    mdp = TokenMDP.random(tree, RNG)
    end = tree.states
    transition = np.zeros((end + 1, 3, end + 1))
    following = tree.next_values(np.arange(tree.states, dtype=np.float64))
    goes_on = tree.next_values(np.ones(tree.states)) == 1
    for state in range(tree.states):
        for token in range(3):
            to = int(following[state, token]) if goes_on[state, token] else end
            transition[state, token, to] = 1.0
    transition[end, :, end] = 1.0
    looped = DiscountedMDP(
        np.vstack([mdp.reward, np.zeros(3)]),
        transition,
        1.0,
        np.vstack([mdp.ref_logps, np.full(3, -math.log(3))]),
        np.arange(end + 1) == end,
    )
    tree_solution, solution = mdp.solve(0.4), looped.solve(0.4)
    np.testing.assert_allclose(solution.v[:-1], tree_solution.v, atol=1e-12)
    np.testing.assert_allclose(solution.advantage[:-1], tree_solution.advantage, atol=1e-12)


def test_both_regrets_agree_where_nothing_is_left_to_chance() -> None:
    mdp = certain()
    solution = mdp.solve(0.2)
    segments = mdp.sample_segments(np.full((6, 2), 0.5), np.arange(6).repeat(20), 7, RNG)
    np.testing.assert_allclose(
        mdp.regret(solution, segments), mdp.outcome_regret(solution, segments), atol=1e-10
    )
    by_hand = sum(
        -(0.9**t) * solution.advantage[segments.states[3, t], segments.actions[3, t]]
        for t in range(7)
    )
    assert math.isclose(mdp.regret(solution, segments)[3], by_hand)


def test_regrets_agree_on_average_where_transitions_are_random() -> None:
    mdp = random_mdp()
    solution = mdp.solve(0.2)
    starts = np.zeros(20_000, dtype=np.int64)
    segments = mdp.sample_segments(np.exp(solution.log_policy), starts, 4, RNG)
    luck = mdp.outcome_regret(solution, segments) - mdp.regret(solution, segments)
    assert luck.std() > 1e-2
    assert abs(luck.mean()) < 4 * luck.std() / math.sqrt(len(luck))


def test_segments_follow_policy_and_transitions_and_stop_at_the_end() -> None:
    mdp = random_mdp(states=3, actions=2)
    mdp = DiscountedMDP(mdp.reward, mdp.transition, 0.9, terminal=np.array([False, False, True]))
    policy = np.array([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    segments = mdp.sample_segments(policy, np.zeros(20_000, dtype=np.int64), 2, RNG)
    assert segments.states.shape == (20_000, 3)
    assert abs((segments.actions[:, 0] == 1).mean() - 0.7) < 0.02
    for action in range(2):
        moved = segments.states[segments.actions[:, 0] == action, 1]
        share = np.bincount(moved, minlength=3) / len(moved)
        np.testing.assert_allclose(share, mdp.transition[0, action], atol=0.03)
    ended = segments.states[:, 1] == 2
    assert ended.any()
    assert (segments.states[ended, 2] == 2).all()
    ones = mdp.discounted_sum(np.ones((3, 2)), segments)
    np.testing.assert_allclose(ones, np.where(ended, 1.0, 1.9))


def test_what_has_no_value_is_refused() -> None:
    forever = DiscountedMDP(np.ones((1, 2)), np.ones((1, 2, 1)), 1.0)
    with pytest.raises(ValueError, match="a policy never ends; accepted: a discount below 1"):
        forever.solve(1.0)
    for beta in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="beta must be > 0"):
            random_mdp().solve(beta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discount": 0.0}, r"discount must be in \(0, 1\], got 0.0"),
        ({"transition": np.ones((2, 2, 2))}, "sum to 1 over the next states"),
        ({"transition": np.ones((2, 2, 3))}, r"transition must be \[2, 2, 2\], got \[2, 2, 3\]"),
        ({"terminal": np.zeros(3, bool)}, r"terminal must be \[2\], got \[3\]"),
    ],
)
def test_what_is_no_mdp_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "reward": np.zeros((2, 2)),
        "transition": np.full((2, 2, 2), 0.5),
        "discount": 0.9,
    }
    with pytest.raises(ValueError, match=message):
        DiscountedMDP(**(arguments | change))
