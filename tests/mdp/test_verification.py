"""The table of identities: it holds, it is repeatable, and a broken solution does not pass."""

from dataclasses import replace

import numpy as np
import pytest

from tokenq.mdp import PrefixTree, TokenMDP, counter_example, verify
from tokenq.mdp.identities import FALSE_STATEMENTS, IDENTITIES, Case, over_continuations
from tokenq.mdp.verification import random_cases


def test_all_hold_and_all_controls_fail() -> None:
    found = verify(trees=120, seed=1)
    assert found.holds
    assert {check.trees for check in found.checks} == {120}
    assert max(check.error for check in found.checks) < 1e-11
    *always, searches = found.controls
    assert all(control.refuted == 120 and control.smallest > 1e-6 for control in always)
    assert 20 < searches.refuted < 100
    assert verify(trees=120, seed=1) == found
    table = repr(found)
    assert all(name in table for name, _, _ in (*IDENTITIES, *FALSE_STATEMENTS))


def test_shapes_vary() -> None:
    trees = [case.tree for case in random_cases(1000, np.random.default_rng(0))]
    assert {tree.vocabulary for tree in trees} == {2, 3, 4, 5, 6}
    assert {tree.horizon for tree in trees} == {1, 2, 3, 4, 5}
    assert {tree.eos is None for tree in trees} == {True, False}
    assert {tree.prompts for tree in trees} == {1, 2, 3}


USES_THE_SOLUTION = {
    "pi* is optimal; others fall short by beta KL",
    "pi* from Q* = tilted reference over responses",
    "V* = soft maximum over continuations",
    "Q* = reward, prior and continuations",
    "reward to Q* to reward",
    "return = V*(s0) + sum of log-ratios",
    "Bradley-Terry from pi*",
    "shaping keeps the policy",
    "log-ratio = optimal advantage",
    "canonical reward has the same policy",
    "search value up to any state, +V*(s0)",
}


def broken(case: Case) -> Case:
    """The case with a solution that forgot half of beta."""
    wrong = Case(case.mdp, case.beta, case.rng)
    wrong.__dict__["solution"] = replace(case.mdp.solve(case.beta / 2), beta=case.beta)
    return wrong


@pytest.mark.parametrize("name", sorted(USES_THE_SOLUTION))
def test_a_wrong_solution_is_seen(name: str) -> None:
    measure = next(measure for known, _, measure in IDENTITIES if known == name)
    mdp = TokenMDP.random(PrefixTree(3, 3, 1, 2), np.random.default_rng(0), (5,))
    case = Case(mdp, np.full(5, 0.7), np.random.default_rng(1))
    assert measure(case).max() < 1e-12
    assert measure(broken(case)).min() > 1e-4


def test_continuations_by_plain_enumeration() -> None:
    tree = PrefixTree(vocabulary=3, horizon=3, eos=2, prompts=2)
    steps = np.random.default_rng(0).normal(size=(1, tree.states, 3))
    values = over_continuations(tree, steps, np.array([0.5]))

    def rest(prompt: int, tokens: tuple[int, ...]) -> list[float]:
        sums = []
        for token in range(3):
            step = steps[0, tree.state(prompt, tokens), token]
            if token == 2 or len(tokens) == 2:
                sums.append(step)
            else:
                sums += [step + later for later in rest(prompt, (*tokens, token))]
        return sums

    for prompt in range(2):
        for tokens in [(), (0,), (1,), (0, 1), (1, 1)]:
            exact = 0.5 * np.log(np.exp(np.array(rest(prompt, tokens)) / 0.5).sum())
            np.testing.assert_allclose(values[0, tree.state(prompt, tokens)], exact)


def test_the_counter_example_is_one() -> None:
    found = counter_example()
    mdp, tree = found.mdp, found.mdp.tree
    likelihood = tree.totals(mdp.solve(found.beta).log_policy)[0]
    assert found.likeliest == likelihood.argmax() != found.best == mdp.returns[0].argmax()
    # No tree is smaller: one step, two responses.
    assert tree.responses == 2


def test_less_than_one_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="trees must be >= 1, got 0"):
        verify(trees=0)
