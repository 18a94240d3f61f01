"""The exact solution: a tree worked out by hand, plain-Python recursion, and properties."""

import math

import numpy as np
import pytest

import tokenq
from tokenq.mdp import PrefixTree, TokenMDP
from tokenq.mdp.arrays import log_softmax

TREE = PrefixTree(vocabulary=3, horizon=3, eos=1, prompts=2)


def small(batch: tuple[int, ...] = (), tree: PrefixTree = TREE, seed: int = 0) -> TokenMDP:
    return TokenMDP.random(tree, np.random.default_rng(seed), batch)


def test_worked_by_hand() -> None:
    # Token 0 goes on, token 1 is EOS; two steps; the reference tosses a coin; beta = 1.
    # Second state: rewards log 3 and 0: Z = (3 + 1) / 2 = 2, so V = log 2 and pi(0) = 3/4.
    # First state: 0 leads there without reward: weight 2 / 2 = 1; EOS has reward log 4: weight 2.
    tree = PrefixTree(vocabulary=2, horizon=2, eos=1)
    reward = np.log([[1.0, 4.0], [3.0, 1.0]])
    mdp = tokenq.mdp.TokenMDP(tree, reward, np.log(np.full((2, 2), 0.5)))
    solution = mdp.solve(beta=1.0)
    np.testing.assert_allclose(solution.v, np.log([3.0, 2.0]), atol=1e-15)
    np.testing.assert_allclose(solution.q, np.log([[1.0, 2.0], [1.5, 0.5]]), atol=1e-15)
    np.testing.assert_allclose(solution.policy, [[1 / 3, 2 / 3], [3 / 4, 1 / 4]], atol=1e-15)
    np.testing.assert_allclose(
        solution.advantage, np.log([[2 / 3, 4 / 3], [3 / 2, 1 / 2]]), atol=1e-15
    )
    # Responses: EOS, "0 0", "0 EOS"
    np.testing.assert_allclose(mdp.returns, np.log([[4.0, 3.0, 1.0]]), atol=1e-15)


def test_every_state_by_plain_recursion() -> None:
    mdp, beta = small(), 0.7
    solution = mdp.solve(beta)

    def value(prompt: int, tokens: tuple[int, ...]) -> float:
        state, weights = TREE.state(prompt, tokens), []
        for token in range(TREE.vocabulary):
            end = token == TREE.eos or len(tokens) + 1 == TREE.horizon
            following = 0.0 if end else value(prompt, (*tokens, token))
            q = mdp.reward[state, token] + beta * mdp.ref_logps[state, token] + following
            assert math.isclose(solution.q[state, token], q, abs_tol=1e-13)
            weights.append(math.exp(q / beta))
        v = beta * math.log(sum(weights))
        assert math.isclose(solution.v[state], v, abs_tol=1e-13)
        np.testing.assert_allclose(solution.policy[state], np.array(weights) / sum(weights))
        return v

    for prompt in range(TREE.prompts):
        value(prompt, ())


def test_a_batch_is_its_members() -> None:
    mdp = small(batch=(4,))
    beta = np.array([0.1, 0.5, 1.0, 3.0])
    together = mdp.solve(beta)
    for index in range(4):
        alone = TokenMDP(TREE, mdp.reward[index], mdp.ref_logps[index]).solve(beta[index])
        np.testing.assert_array_equal(together.q[index], alone.q)
        np.testing.assert_array_equal(together.log_policy[index], alone.log_policy)


def test_one_mdp_under_many_betas() -> None:
    mdp, beta = small(), np.array([0.2, 2.0])
    both = mdp.solve(beta)
    np.testing.assert_array_equal(both.v[1], mdp.solve(2.0).v)
    np.testing.assert_allclose(mdp.evaluate(both.log_policy, beta).v, both.v, atol=1e-13)


def test_the_limits_of_beta() -> None:
    mdp = small()
    np.testing.assert_allclose(mdp.solve(1e6).log_policy, mdp.ref_logps, atol=1e-4)
    greedy = mdp.solve(1e-5)
    np.testing.assert_allclose(greedy.v[:2], mdp.returns.max(-1), atol=1e-3)
    assert np.isfinite(greedy.log_policy).all()


def test_evaluation_by_enumeration() -> None:
    mdp, beta = small(), 0.4
    policy = log_softmax(np.random.default_rng(1).normal(size=mdp.reward.shape))
    value = mdp.evaluate(policy, beta)
    log_law = TREE.totals(policy)
    law = np.exp(log_law)
    np.testing.assert_allclose(law.sum(-1), 1, atol=1e-14)
    np.testing.assert_allclose(value.reward[:2], (law * mdp.returns).sum(-1), atol=1e-14)
    kl = (law * (log_law - TREE.totals(mdp.ref_logps))).sum(-1)
    np.testing.assert_allclose(value.kl[:2], kl, atol=1e-14)
    np.testing.assert_allclose(value.v, value.reward - beta * value.kl, atol=1e-14)
    # The soft value of a state is the policy's mean of its tokens' values and its entropy.
    mean = (np.exp(policy) * (value.q - beta * policy)).sum(-1)
    np.testing.assert_allclose(value.v, mean, atol=1e-14)


def test_no_policy_is_better() -> None:
    mdp, beta, rng = small(), 0.4, np.random.default_rng(2)
    solution = mdp.solve(beta)
    np.testing.assert_allclose(mdp.evaluate(solution.log_policy, beta).v, solution.v, atol=1e-14)
    near = log_softmax(solution.log_policy + 0.01 * rng.normal(size=(50, *mdp.reward.shape)))
    assert (mdp.evaluate(near, beta).v < solution.v).all()


def test_a_policy_that_rules_tokens_out_has_a_value() -> None:
    mdp = small()
    certain = np.full(mdp.reward.shape, -np.inf)
    certain[:, 1] = 0.0
    value = mdp.evaluate(certain, 0.3)
    np.testing.assert_allclose(value.v, mdp.reward[:, 1] + 0.3 * mdp.ref_logps[:, 1])


def test_the_bandit_is_the_tree() -> None:
    mdp = small(batch=(3,))
    beta = np.array([0.1, 1.0, 5.0])
    solution, bandit = mdp.solve(beta), mdp.bandit()
    assert bandit.returns.shape == bandit.ref_logps.shape == (3, 2, TREE.responses)
    arms = bandit.solve(beta)
    np.testing.assert_allclose(np.exp(arms.log_policy).sum(-1), 1, atol=1e-13)
    np.testing.assert_allclose(arms.log_policy, TREE.totals(solution.log_policy), atol=1e-12)
    np.testing.assert_allclose(arms.v, solution.v[:, :2], atol=1e-13)


def test_hard_search_on_the_tree_finds_the_likeliest_response() -> None:
    # Max-product from the leaves up, which knows nothing of responses.
    solution = small().solve(0.5)
    best = TREE.backward(
        lambda level, following: (solution.log_policy[level] + following).max(-1), ()
    )
    np.testing.assert_allclose(best[:2], TREE.totals(solution.log_policy).max(-1), atol=1e-14)


def test_a_million_states_take_seconds() -> None:
    tree = PrefixTree(vocabulary=11, horizon=7, eos=10)
    assert tree.states > 1_000_000
    flat = np.full((tree.states, 11), -math.log(11))
    reward = np.zeros_like(flat)
    reward[tree.state(0, (1, 2, 3, 4, 5, 6)), 7] = 1.0
    solution = TokenMDP(tree, reward, flat).solve(0.1)
    # One response of probability 11^-7 is worth 1 more than all others.
    assert math.isclose(solution.v[0], 0.1 * math.log(1 + 11**-7 * math.expm1(10)), rel_tol=1e-8)


@pytest.mark.parametrize(
    ("reward", "reference", "message"),
    [
        (np.zeros((4, 3)), None, r"reward must be \[\.\.\., 14, 3\] \(states, tokens\), got"),
        (np.full((14, 3), np.nan), None, "reward must be finite"),
        (np.zeros((14, 3)), np.zeros((14, 3)), "ref_logps must be normalised"),
        (np.zeros((14, 3)), np.full((14, 3), -np.inf), "ref_logps must be finite"),
    ],
)
def test_what_is_no_mdp_is_refused(
    reward: np.ndarray, reference: np.ndarray | None, message: str
) -> None:
    reference = np.full((14, 3), -math.log(3)) if reference is None else reference
    with pytest.raises(ValueError, match=message):
        TokenMDP(TREE, reward, reference)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    mdp = small()
    for call in (mdp.solve, mdp.bandit().solve, lambda b: mdp.evaluate(mdp.ref_logps, b)):
        with pytest.raises(ValueError, match="beta must be > 0"):
            call(beta)
