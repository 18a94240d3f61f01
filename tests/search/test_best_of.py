"""Best of n: the judge's choice among the samples, and what its expected score must be."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sharp_models import sharp
from tabular_search import random_case

from tokenq.errors import UserError
from tokenq.models.pair import Pair
from tokenq.search import SearchResult, best_of_n, sample
from tokenq.search.best_of import ResultJudge, kl_bound

V = 24
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [20, 3, 21, 4, 9]]


def test_with_enough_samples_it_is_the_best_of_all_responses() -> None:
    case = random_case(1, vocabulary=3, horizon=3)
    ours, theirs = case.law("policy"), case.law("reference")
    for judge, truth in (
        (
            "implicit_reward",
            [{r: p[r] - q[r] for r in p} for p, q in zip(ours, theirs, strict=True)],
        ),
        ("likelihood", ours),
    ):
        results = best_of_n(case.models, case.prompts, 600, 3, judge)  # type: ignore[arg-type]
        for scores, row in zip(truth, results, strict=True):
            best = max(scores, key=lambda response: scores[response])
            assert tuple(row[0].token_ids) == best
            assert row[0].score == pytest.approx(scores[best], abs=1e-6)
            assert [one.score for one in row] == sorted([one.score for one in row], reverse=True)


def test_the_expected_best_is_that_of_order_statistics() -> None:
    """E max of n draws = sum over responses of v * (F(v)^n - F(v-)^n)."""
    case = random_case(3, vocabulary=3, horizon=3, prompts=1)
    (law,) = case.law()
    value = {response: math.cos(2.0 * number) for number, response in enumerate(law)}

    def judge(prompts: Sequence[Any], responses: Sequence[Sequence[int]]) -> list[float]:
        return [value[tuple(response)] for response in responses]

    by_value = sorted(law, key=lambda response: value[response])
    reached = np.cumsum([math.exp(law[response]) for response in by_value])
    before = np.concatenate([[0.0], reached[:-1]])
    for n in (1, 4, 16):
        chances = reached**n - before**n
        truth = float(chances @ np.array([value[response] for response in by_value]))
        runs = 500
        rows = best_of_n(case.models, [[0]] * runs, n, 3, judge, seed=n, batch_size=runs)
        scores = np.array([row[0].score for row in rows])
        error = scores.std() / math.sqrt(runs)
        assert abs(scores.mean() - truth) < 4 * error + 1e-3
        assert error < 0.05
        # The law of the best is never further from the policy's than the bound says.
        kl = float(
            sum(c * math.log(c / math.exp(law[r])) for c, r in zip(chances, by_value, strict=True))
        )
        assert kl <= kl_bound(n) + 1e-12
    assert kl_bound(1) == 0
    assert kl_bound(16) == pytest.approx(math.log(16) - 15 / 16)


def test_samples_are_those_of_sampling_and_equal_scores_keep_their_order(pair: Pair) -> None:
    prompts = ["A warm film", "The plot"]
    drawn = sample(pair, prompts, 6, 8, seed=4, temperature=0.8)
    ranked = best_of_n(
        pair, prompts, 6, 8, lambda _, texts: [1.0] * len(texts), seed=4, temperature=0.8
    )
    for before, after in zip(drawn, ranked, strict=True):
        assert [one.details["drawn"] for one in after] == list(range(6))
        assert [one.token_ids for one in after] == [one.token_ids for one in before]
    by_reward = best_of_n(pair, prompts, 6, 8, seed=4, temperature=0.8, num_return_sequences=2)
    for before, after in zip(drawn, by_reward, strict=True):
        ratios = [one.log_ratio or 0.0 for one in before]
        order = sorted(range(6), key=lambda place: -ratios[place])[:2]
        assert [int(one.details["drawn"]) for one in after] == order
        assert [one.score for one in after] == [ratios[place] for place in order]


def test_equal_responses_are_judged_once() -> None:
    case = random_case(2, vocabulary=2, horizon=2, prompts=2)
    asked: list[tuple[Any, Any]] = []

    def judge(prompts: Sequence[Any], responses: Sequence[Any]) -> list[float]:
        asked.extend(zip(prompts, map(tuple, responses), strict=True))
        return [float(len(each)) for each in responses]

    results = best_of_n(case.models, case.prompts, 40, 2, judge)
    assert all(len(row) == 40 for row in results)
    told = [(tuple(prompt), response) for prompt, response in asked]
    assert len(told) == len(set(told)) <= 6
    for row in results:
        assert all(one.score == len(one.token_ids) for one in row)


def test_judges_see_prompts_and_texts_as_they_were_given(pair: Pair) -> None:
    prompts: list[Any] = ["A warm film", [{"role": "user", "content": "The plot"}]]
    seen: list[Any] = []

    def judge(given: Sequence[Any], texts: Sequence[str]) -> list[float]:
        seen.extend(given)
        return [float(len(text)) for text in texts]

    results = best_of_n(pair, prompts, 3, 6, judge)
    assert all(one in prompts for one in seen)
    for row in results:
        assert [one.score for one in row] == [len(one.text or "") for one in row]

    def kindness(found: Sequence[SearchResult]) -> list[float]:
        return [-float(one.logps[0]) for one in found]

    for row in best_of_n(pair, prompts, 3, 6, ResultJudge(kindness)):
        assert row[0].score == max(-float(one.logps[0]) for one in row)


def test_length_penalty_one_ranks_by_the_mean_of_a_token() -> None:
    model = sharp("llama", V, 1)
    for row in best_of_n(model, PROMPTS, 8, 10, "likelihood", length_penalty=1.0):
        means = [float(one.logps.mean()) for one in row]
        assert [one.score for one in row] == pytest.approx(means, abs=1e-5)
        assert means == pytest.approx(sorted(means, reverse=True), abs=1e-5)


def test_the_trace_ranks_what_is_given_back_and_what_it_took_is_told(pair: Pair) -> None:
    def judge(prompts: Sequence[Any], texts: Sequence[str]) -> list[float]:
        return [float(sum(map(ord, text)) % 97) for text in texts]

    options: dict[str, Any] = {"max_new_tokens": 5, "seed": 4, "trace": True}
    found = best_of_n(pair, ["A warm film"], 6, judge=judge, num_return_sequences=3, **options)
    (row,), (trace,) = found, found.traces
    assert trace is not None
    assert row[0].details["drawn"] > 0
    ranked = {node.rank: node for node in trace.nodes if node.fate == "chosen"}
    assert sorted(ranked) == [1, 2, 3]
    for rank, one in enumerate(row, 1):
        assert [node.token for node in trace.path(ranked[rank].number)] == one.token_ids
    ended = [node for node in trace.nodes if node.fate == "finished"]
    drawn = sample(pair, ["A warm film"], 6, **options)
    assert len(ended) == len({tuple(one.token_ids) for one in drawn[0]}) - 3
    assert all(node.rank == 0 for node in ended)
    assert found.statistics["expansions"] == drawn.statistics["expansions"] > 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n": 0}, "n is 0; accepted: 1 or more"),
        ({"judge": "kind"}, "judge is 'kind'; accepted: implicit_reward, likelihood, or a func"),
        ({}, "judge is 'implicit_reward', which needs a reference"),
        ({"judge": len, "length_penalty": 1.0}, "length_penalty is 1.0 with a judge"),
        ({"judge": "likelihood", "num_return_sequences": 17}, "accepted: 1 to 16"),
        ({"judge": lambda prompts, texts: [1.0]}, "judge returned 1 numbers for"),
        ({"judge": lambda prompts, texts: None}, "judge returned None; accepted: a number for"),
        ({"judge": lambda prompts, texts: ["good"] * len(texts)}, "accepted: a number for each of"),
        ({"n": 2.5}, "n is 2.5; accepted: a whole number"),
        ({"judge": "likelihood", "length_penalty": "a"}, "length_penalty is 'a'; accepted: a fin"),
        ({"judge": lambda prompts, texts: [math.nan] * len(texts)}, "judge returned nan for"),
    ],
)
def test_what_cannot_be_ranked_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        best_of_n(sharp("llama", V, 1), PROMPTS, **{"max_new_tokens": 4, **options})
