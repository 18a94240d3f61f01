"""Best-first search against all responses of exact MDPs: what comes first is the best there is."""

from typing import Any

import numpy as np
import pytest
from small_pairs import small_pair
from tabular_search import Case, random_case

from tokenq.errors import UserError
from tokenq.mdp.token_mdp import TokenMDP
from tokenq.search.a_star import best_first
from tokenq.search.scores import Score
from tokenq.search.tabular import tabular_models
from tokenq.search.values import ScoredPrefix, TabularValue

SEEDS = range(12)
FULL = {"top_k": 10, "memory": None, "max_new_tokens": 4}


def ranked(case: Case, steps: Any, prompt: int) -> list[tuple[float, tuple[int, ...]]]:
    """All responses to a prompt with the sum of their steps, best first."""
    totals = case.tree.totals(steps)[prompt]
    return sorted(
        ((float(total), case.tree.response(r)) for r, total in enumerate(totals)), reverse=True
    )


def steps_of(case: Case, score: Score) -> Any:
    return case.tables["policy"] - score.reference * case.tables["reference"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("leaves", [1, 5])
def test_likelihood_search_is_exact_without_a_value(seed: int, leaves: int) -> None:
    case = random_case(seed, horizon=4, sharpness=1.5)
    results = best_first(
        case.models,
        case.prompts,
        expansions=1000,
        leaves=leaves,
        num_return_sequences=3,
        **FULL,
    )
    for prompt, found in enumerate(results):
        expected = ranked(case, case.tables["policy"], prompt)[:3]
        assert [tuple(each.token_ids) for each in found] == [response for _, response in expected]
        assert [each.score for each in found] == pytest.approx([total for total, _ in expected])
        assert all(each.details["proved"] == 1 for each in found)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("score", ["likelihood", 0.4, "log_ratio"])
def test_what_is_best_to_come_leads_straight_to_the_best(seed: int, score: Any) -> None:
    case = random_case(seed, horizon=4)
    steps = steps_of(case, Score.of(score))
    value = TabularValue.best_to_come(case.tree, steps)
    results = best_first(case.models, case.prompts, score=score, value=value, leaves=1, **FULL)
    for prompt, (one,) in enumerate(results):
        best, response = ranked(case, steps, prompt)[0]
        assert tuple(one.token_ids) == response
        assert one.score == pytest.approx(best)
        # The prompt and every token but the last were read, and nothing else.
        assert one.details == {"proved": 1, "expansions": len(response)}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_exact_promise_is_constant_along_the_best_response(seed: int) -> None:
    case = random_case(seed, horizon=4)
    steps = steps_of(case, Score(1.0))
    value = TabularValue.best_to_come(case.tree, steps)
    results = best_first(
        case.models, case.prompts, score="log_ratio", value=value, leaves=1, trace=True, **FULL
    )
    for prompt, trace in enumerate(results.traces):
        assert trace is not None
        best, _ = ranked(case, steps, prompt)[0]
        assert [node.score for node in trace.nodes] == pytest.approx([best] * len(trace.nodes))


@pytest.mark.parametrize("seed", SEEDS)
def test_optimal_value_search_of_the_reference_is_likelihood_search_of_the_policy(
    seed: int,
) -> None:
    """Eq. 12 = eq. 13: sum of r + beta log pi_ref, plus V*, is V*(s_0) + beta sum log pi*."""
    beta = 0.7
    case = random_case(seed, horizon=4)
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(case.tree.states, case.tree.vocabulary))
    solution = TokenMDP(case.tree, reward, case.tables["reference"]).solve(beta)
    so_far = case.tree.prefix_sums(reward)

    def reward_and_value(prefixes: Any) -> list[float]:
        """(rewards so far + V*) / beta, to be added to the reference's log-probability."""
        return [eq_12(prefix) for prefix in prefixes]

    def eq_12(prefix: ScoredPrefix) -> float:
        *before, last = prefix.response_ids or (None,)
        if last is None:
            return float(solution.v[prefix.prompt_ids[0]]) / beta
        if prefix.finish is None:
            state = case.tree.state(prefix.prompt_ids[0], prefix.response_ids)
            return float(so_far[state] + solution.v[state]) / beta
        state = case.tree.state(prefix.prompt_ids[0], tuple(before))
        return float(so_far[state] + reward[state, last]) / beta

    reference = tabular_models(case.tree, policy=case.tables["reference"])
    policy = tabular_models(case.tree, policy=solution.log_policy)
    by_value = best_first(reference, case.prompts, 1000, value=reward_and_value, **FULL)
    by_likelihood = best_first(policy, case.prompts, 1000, **FULL)
    for prompt, ((one,), (other,)) in enumerate(zip(by_value, by_likelihood, strict=True)):
        assert one.token_ids == other.token_ids
        start = float(solution.v[prompt])
        assert beta * one.score == pytest.approx(start + beta * other.score)
        assert one.details["proved"] == 1


def plain_beam(case: Case, prompt: int, width: int) -> tuple[float, tuple[int, ...]]:
    """The best response of a beam that keeps `width` open prefixes of each length, and all ends."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for depth in range(case.tree.horizon):
        going: list[tuple[float, tuple[int, ...]]] = []
        for total, tokens in beams:
            row = case.tables["policy"][case.tree.state(prompt, tokens)]
            for token, logp in enumerate(row):
                last = token == case.tree.eos or depth + 1 == case.tree.horizon
                (ended if last else going).append((total + float(logp), (*tokens, token)))
        beams = sorted(going, reverse=True)[:width]
    return max(ended)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_width_makes_it_beam_search_that_stops_early(seed: int, width: int) -> None:
    case = random_case(seed, vocabulary=5, horizon=5)
    options = {**FULL, "max_new_tokens": 5}
    results = best_first(case.models, case.prompts, 10_000, width=width, leaves=1, **options)
    for prompt, (one,) in enumerate(results):
        total, response = plain_beam(case, prompt, width)
        assert tuple(one.token_ids) == response
        assert one.score == pytest.approx(total)
        assert one.details["expansions"] <= 1 + 4 * width


def test_a_search_that_runs_out_says_that_nothing_is_proved() -> None:
    case = random_case(3, vocabulary=5, horizon=6, eos=None, sharpness=0.1)
    options = {**FULL, "max_new_tokens": 6}
    results = best_first(case.models, case.prompts, expansions=3, trace=True, **options)
    for prompt, (one,) in enumerate(results):
        trace = results.traces[prompt]
        assert trace is not None
        (chosen,) = [node for node in trace.nodes if node.fate == "chosen"]
        assert [node.token for node in trace.path(chosen.number)] == one.token_ids
        assert one.details["proved"] == 0
        assert len(one.token_ids) == 6
        law = dict(enumerate(case.tree.totals(case.tables["policy"])[prompt]))
        known = {case.tree.response(r): float(total) for r, total in law.items()}
        assert one.score == pytest.approx(known[tuple(one.token_ids)])


def test_dropping_from_memory_gives_up_the_proof() -> None:
    case = random_case(4, horizon=4, sharpness=0.2)
    options = {**FULL, "memory": 2}
    results = best_first(case.models, case.prompts, 1000, **options)
    assert all(one.details["proved"] == 0 for (one,) in results)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_change_nothing(batch_size: int) -> None:
    case = random_case(5, horizon=4, prompts=5)
    options = {**FULL, "score": "log_ratio", "expansions": 9, "num_return_sequences": 2}
    whole = best_first(case.models, case.prompts, **options)
    order = [3, 0, 4, 1, 2]
    other = best_first(
        case.models, [case.prompts[n] for n in order], batch_size=batch_size, **options
    )
    for place, number in enumerate(order):
        assert [(each.token_ids, each.score, each.details) for each in other[place]] == [
            (each.token_ids, each.score, each.details) for each in whole[number]
        ]


def test_a_value_sees_texts_and_is_asked_once_for_a_prefix() -> None:
    pair = small_pair()
    seen: list[tuple[int, ...]] = []

    def fewest_letters_e(prefixes: Any) -> list[float]:
        seen.extend(prefix.response_ids for prefix in prefixes)
        assert all(isinstance(prefix.text, str) for prefix in prefixes)
        return [-float(prefix.text.count("e")) for prefix in prefixes]

    results = best_first(
        pair, ["A warm film", "The plot"], 40, 5, score=None, value=fewest_letters_e, top_k=4
    )
    assert all("e" not in str(one.text) for one in results.best)
    assert len(seen) > len(set(seen)) - 1
    assert results.statistics["value_calls"] >= 1
    assert results.statistics["expansions"] <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expansions": 0}, "expansions is 0; accepted: 1 or more"),
        ({"width": 0}, "width is 0; accepted: 1 or more"),
        ({"score": None}, "score is None; accepted: a score, or a value beside it"),
        ({"score": "best"}, "score is 'best'; accepted"),
        ({"value": lambda prefixes: [0.0]}, "value returned 1 numbers for 4 prefixes"),
        ({"value": lambda prefixes: [np.nan] * len(prefixes)}, "value returned nan; accepted"),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    case = random_case(0, prompts=1)
    with pytest.raises(UserError, match=message):
        best_first(case.models, case.prompts, **options)
