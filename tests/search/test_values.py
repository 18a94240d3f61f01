"""Values of prefixes: asked together, once for each, and checked."""

from typing import Any

import numpy as np
import pytest
from tabular_search import random_case

from tokenq.errors import UserError
from tokenq.mdp.outcome import soft_expectation
from tokenq.search.values import PrefixValue, ScoredPrefix, TabularValue, Valuation


def prefix(*tokens: int, **known: Any) -> ScoredPrefix:
    return ScoredPrefix((0,), tokens, **known)


def test_a_value_is_added_to_the_score_and_asked_once_for_each_prefix() -> None:
    asked: list[list[tuple[int, ...]]] = []

    def lengths(prefixes: Any) -> list[float]:
        asked.append([each.response_ids for each in prefixes])
        return [len(each.response_ids) for each in prefixes]

    worth_of = Valuation(lengths)
    assert worth_of([prefix(1, score=0.5), prefix(1, 2), prefix(1, score=0.5)]) == [1.5, 2.0, 1.5]
    assert worth_of([prefix(1, 2, score=3.0), prefix(7)]) == [5.0, 1.0]
    assert asked == [[(1,), (1, 2)], [(7,)]]
    assert worth_of.calls == 2
    assert Valuation(None)([prefix(1, score=0.5)]) == [0.5]


@pytest.mark.parametrize("given", [[], [1.0, 2.0], [np.nan], [np.inf]])
def test_a_value_gives_one_finite_number_a_prefix(given: list[float]) -> None:
    with pytest.raises(UserError, match="value returned"):
        Valuation(lambda prefixes: given)([prefix(1)])


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_prefix_value_is_the_soft_expectation_of_the_outcome(beta: float) -> None:
    """Prop. 3.1 of arXiv 2412.01981, on every state of an exact MDP."""
    case = random_case(3)
    ratio = case.tables["policy"] - case.tables["reference"]
    expected = soft_expectation(
        case.tree, case.tables["reference"], beta * case.tree.totals(ratio), beta
    )
    sums = {name: case.tree.prefix_sums(table) for name, table in case.tables.items()}
    prefixes = [
        prefix(logps={name: float(each[state]) for name, each in sums.items()})
        for state in range(case.tree.states)
    ]
    assert PrefixValue(beta)(prefixes) == pytest.approx(expected.tolist())


def test_a_table_values_its_states_and_nothing_behind_the_end() -> None:
    case = random_case(4)
    value = TabularValue(case.tree, np.arange(case.tree.states, dtype=float))
    prefixes = [prefix(), prefix(1, 2), prefix(1, 0, finish="eos")]
    assert value(prefixes) == [0.0, float(case.tree.state(0, (1, 2))), 0.0]


def test_the_best_to_come_is_that_of_all_responses() -> None:
    case = random_case(5)
    steps = case.tables["policy"] - case.tables["reference"]
    value = TabularValue.best_to_come(case.tree, steps)
    totals = case.tree.totals(steps)
    assert value([prefix(), prefix(2)])[0] == pytest.approx(totals[0].max())
    behind = [r for r in range(case.tree.responses) if case.tree.response(r)[0] == 2]
    first = steps[case.tree.state(0, ()), 2]
    assert value([prefix(2)])[0] == pytest.approx(totals[0][behind].max() - first)


def test_without_a_reference_there_is_no_prefix_value() -> None:
    with pytest.raises(UserError, match="needs a policy and a reference"):
        PrefixValue()([prefix(logps={"policy": -1.0})])
