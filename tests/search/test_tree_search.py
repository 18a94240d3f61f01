"""Tree search on exact MDPs: it converges to the best response, at once by the exact value."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pairs import small_pair
from tabular_search import Case, random_case

from tokenq.errors import UserError
from tokenq.mdp.token_mdp import TokenMDP
from tokenq.search import Progress, TabularValue, greedy, mcts
from tokenq.search.scores import Score
from tokenq.search.tabular import TabularModel, tabular_models
from tokenq.search.values import PrefixValue, ScoredPrefix

Tokens = tuple[int, ...]
SCORES = ["likelihood", 0.5, "log_ratio"]


def best_of(case: Case, score: str | float) -> list[tuple[Tokens, float]]:
    """The best response to each prompt and its score, of all."""
    weight = Score.of(score).reference
    totals = case.tree.totals(case.tables["policy"] - weight * case.tables["reference"])
    return [(case.tree.response(int(row.argmax())), float(row.max())) for row in totals]


def share_right(simulations: int, score: str | float, **options: Any) -> float:
    right = []
    for seed in range(6):
        case = random_case(seed)
        results = mcts(case.models, case.prompts, simulations, 3, score, **options)
        right += [
            tuple(one.token_ids) == tokens
            for one, (tokens, _) in zip(results.best, best_of(case, score), strict=True)
        ]
    return float(np.mean(right))


@pytest.mark.parametrize("leaves", [1, 8])
@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("score", SCORES)
def test_it_converges_to_the_best_response(score: str | float, backup: Any, leaves: int) -> None:
    options: dict[str, Any] = {"backup": backup, "leaves": leaves, "prior_temperature": 4.0}
    few, many = (share_right(n, score, **options) for n in (2, 600))
    assert many > few
    # Where the best and the next best are close, visits take longer to tell them apart.
    assert many >= 10 / 12


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rollouts", [0, 2])
def test_it_returns_the_best_of_all_when_it_has_met_all(score: str | float, rollouts: int) -> None:
    options: dict[str, Any] = {"emit": "response", "c_puct": 50.0, "rollouts": rollouts}
    assert share_right(1500 if not rollouts else 300, score, **options) == 1.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("simulations", [1, 5, 40])
def test_by_the_exact_value_it_is_right_at_once(
    seed: int, score: str | float, simulations: int
) -> None:
    case = random_case(seed, horizon=4)
    weight = Score.of(score).reference
    steps = case.tables["policy"] - weight * case.tables["reference"]
    value = TabularValue.best_to_come(case.tree, steps)
    results = mcts(
        case.models,
        case.prompts,
        simulations,
        4,
        score,
        value=value,
        value_ahead=True,
        c_puct=0.0,
        leaves=1,
    )
    for one, (tokens, total) in zip(results.best, best_of(case, score), strict=True):
        assert tuple(one.token_ids) == tokens
        assert one.score == pytest.approx(total)
        assert one.details["value"] == pytest.approx(total)
    longest = max(len(one.token_ids) for one in results.best)
    assert results.statistics["expansions"] <= len(case.prompts) * longest


@pytest.mark.parametrize("seed", range(4))
def test_soft_values_become_those_of_the_exact_solution(seed: int) -> None:
    """With the reference as prior and a reward at the leaves, the prompt's value becomes V*."""
    beta = 0.6
    case = random_case(seed, sharpness=0.4)
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(case.tree.states, case.tree.vocabulary))
    solution = TokenMDP(case.tree, reward, case.tables["reference"]).solve(beta)
    so_far = case.tree.prefix_sums(reward)

    def reward_of(prefix: ScoredPrefix) -> float:
        prompt, *tokens = prefix.prompt_ids[0], *prefix.response_ids
        if prefix.finish is None:
            return float(so_far[case.tree.state(prompt, tuple(tokens))])
        state = case.tree.state(prompt, tuple(tokens[:-1]))
        return float(so_far[state] + reward[state, tokens[-1]])

    def error(simulations: int) -> float:
        results = mcts(
            tabular_models(case.tree, policy=case.tables["reference"]),
            case.prompts,
            simulations,
            3,
            score=None,
            value=lambda prefixes: [reward_of(each) for each in prefixes],
            backup="soft",
            backup_temperature=beta,
            c_puct=50.0,
            emit="response",
        )
        found = [one.details["value"] for one in results.best]
        return float(np.abs(np.array(found) - solution.v[: len(found)]).max())

    assert error(2000) < 1e-9
    assert error(3) > 1e-3


@pytest.mark.parametrize("simulations", [1, 2, 30])
def test_without_exploration_and_one_continuation_it_is_greedy(simulations: int) -> None:
    pair = small_pair()
    prompts: list[Any] = ["A warm film", "The plot"]
    found = mcts(pair, prompts, simulations, 5, "likelihood", top_k=1)
    expected = greedy(pair, prompts, 5)
    for one, other in zip(found.best, expected.best, strict=True):
        assert one.token_ids == other.token_ids
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rollouts": 2, "emit": "response", "num_return_sequences": 3},
        {"temperature": 1.0, "leaves": 3},
    ],
)
def test_batches_change_nothing(batch_size: int, options: dict[str, Any]) -> None:
    case = random_case(5, horizon=4, prompts=5)
    options = {"simulations": 12, "max_new_tokens": 4, "seed": 3, **options}
    whole = mcts(case.models, case.prompts, **options)
    order = [3, 0, 4, 1, 2]
    given_prompts = [case.prompts[n] for n in order]
    other = mcts(case.models, given_prompts, batch_size=batch_size, **options)
    for place, number in enumerate(order):
        assert [(each.token_ids, each.score, each.details) for each in other[place]] == [
            (each.token_ids, each.score, each.details) for each in whole[number]
        ]


def test_seeds_decide_draws_by_visits() -> None:
    case = random_case(2, horizon=6, vocabulary=5, eos=None)

    def found(seed: int) -> str:
        results = mcts(case.models, case.prompts, 8, 6, temperature=1.0, seed=seed)
        return str([one.token_ids for one in results.best])

    assert found(1) == found(1)
    assert len({found(seed) for seed in range(5)}) > 1


def test_a_state_is_not_read_twice() -> None:
    case = random_case(6, prompts=1, sharpness=0.4)
    options: dict[str, Any] = {"emit": "response", "c_puct": 20.0}
    results = mcts(case.models, case.prompts, 1500, 3, **options)
    assert results.statistics["simulations"] == 1500
    assert results.statistics["expansions"] == case.tree.states


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    simulations=st.integers(1, 30),
    leaves=st.integers(1, 9),
    backup=st.sampled_from(["mean", "max", "soft"]),
    emit=st.sampled_from(["token", "response"]),
    rollouts=st.integers(0, 2),
    top_k=st.integers(1, 4),
)
def test_whatever_is_found_is_a_response_with_its_score(
    seed: int, simulations: int, leaves: int, backup: Any, emit: Any, rollouts: int, top_k: int
) -> None:
    case = random_case(seed % 7)
    results = mcts(
        case.models,
        case.prompts,
        simulations,
        3,
        leaves=leaves,
        backup=backup,
        emit=emit,
        rollouts=rollouts,
        top_k=top_k,
        seed=seed,
        trace=True,
    )
    totals = case.tree.totals(case.tables["policy"] - case.tables["reference"])
    for prompt, (one,) in enumerate(results):
        known = {case.tree.response(r): total for r, total in enumerate(totals[prompt])}
        assert one.score == pytest.approx(known[tuple(one.token_ids)])
        assert one.details["simulations"] >= simulations
    for (one,), trace in zip(results, results.traces, strict=True):
        assert trace is not None
        (chosen,) = [node for node in trace.nodes if node.rank == 1]
        assert [node.token for node in trace.path(chosen.number)] == one.token_ids
        # A token that was chosen is not visited again: the search goes on behind it.
        for node in trace.nodes if emit == "response" else []:
            theirs = [each.visits for each in trace.nodes if each.parent == node.number]
            # The visit that read it, and those of its continuations.
            # Rollouts and greedy ends are not visited.
            assert node.visits >= 1 + sum(theirs) or node.fate == "finished" or not node.visits


def test_progress_tells_of_every_token() -> None:
    case = random_case(1, horizon=5, eos=None)
    told: list[Progress] = []
    results = mcts(case.models, case.prompts, 6, 5, on_step=told.append)
    for prompt, one in enumerate(results.best):
        steps = [each for each in told if each.prompt == prompt]
        assert [each.token_ids for each in steps] == [one.token_ids[: n + 1] for n in range(5)]


def test_a_prefix_value_beside_a_likelihood_reads_the_reference() -> None:
    pair = small_pair()
    (one,) = mcts(pair, ["A warm film"], 8, 4, "likelihood", value=PrefixValue(0.5)).best
    assert one.log_ratio is not None
    likelihood = float(one.model_logps["policy"].sum())
    assert one.score == pytest.approx(likelihood + 0.5 * one.log_ratio, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulations": 0}, "simulations is 0; accepted: 1 or more"),
        ({"top_k": 0}, "top_k is 0; accepted: 1 or more"),
        ({"c_puct": -1.0}, "c_puct is -1.0; accepted: 0 or more"),
        ({"prior_temperature": 0.0}, "prior_temperature is 0.0; accepted: above 0"),
        ({"backup": "median"}, "backup is 'median'; accepted: mean, max, soft"),
        ({"emit": "word"}, "emit is 'word'; accepted: token, response"),
        ({"num_return_sequences": 2}, "accepted: 1 with emit='token'"),
        ({"score": None}, "score is None; accepted: a score, or a value beside it"),
        ({"value": lambda prefixes: []}, "value returned 0 numbers"),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    case = random_case(0, prompts=1)
    with pytest.raises(UserError, match=message):
        mcts(case.models, case.prompts, **options)


def test_a_bare_model_has_no_log_ratio() -> None:
    case = random_case(0)
    model = TabularModel(case.tree, case.tables["policy"])
    with pytest.raises(UserError, match="needs a reference"):
        mcts(model, case.prompts)
    assert mcts(model, case.prompts, score="likelihood", max_new_tokens=3).best
