"""Chunk-level beam search against a plain one on exact MDPs, best-of-n, and the exact best."""

from typing import Any

import numpy as np
import pytest
from small_pairs import random_model, small_pair
from tabular_search import Case, random_case

from tokenq.errors import UserError
from tokenq.search import chunk_beam_search, sample
from tokenq.search.running import Batch
from tokenq.search.tabular import TabularModel

Tokens = tuple[int, ...]


def tables_with_base(seed: int, **shape: Any) -> Case:
    """A policy, a reference, and a base that chunks are drawn from."""
    case, other = random_case(seed, **shape), random_case(seed + 1000, **shape)
    return Case(case.tree, {**case.tables, "base": other.tables["policy"]})


def logp(case: Case, name: str, prompt: int, tokens: Tokens) -> float:
    table = case.tables[name]
    return sum(
        float(table[case.tree.state(prompt, tokens[:t]), token]) for t, token in enumerate(tokens)
    )


def is_whole(case: Case, tokens: Tokens) -> bool:
    return tokens[-1:] == (case.tree.eos,) or len(tokens) == case.tree.horizon


def plain_search(
    case: Case, prompt: int, chances: Any, width: int, count: int, length: int
) -> list[tuple[float, Tokens]]:
    """The algorithm of the paper, sequence by sequence, by inversion of the base's law."""
    beams: list[Tokens] = [()]
    for start in range(0, case.tree.horizon, length):
        made = [beam for beam in beams if is_whole(case, beam)]
        walker = 0
        for beam in beams:
            if is_whole(case, beam):
                continue
            for _ in range(count if start else width * count):
                tokens = beam
                for step in range(start, min(start + length, case.tree.horizon)):
                    if is_whole(case, tokens):
                        break
                    law = np.exp(case.tables["base"][case.tree.state(prompt, tokens)])
                    reached = np.cumsum(law) / law.sum()
                    token = int(np.searchsorted(reached, chances[walker, step], side="right"))
                    tokens = (*tokens, token)
                made.append(tokens)
                walker += 1
        scored = {
            tokens: logp(case, "policy", prompt, tokens) - logp(case, "reference", prompt, tokens)
            for tokens in made
        }
        beams = sorted(scored, key=lambda tokens: -scored[tokens])[:width]
    return [(scored[tokens], tokens) for tokens in beams]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("width", "count", "length"), [(1, 3, 2), (2, 2, 1), (3, 2, 2), (2, 4, 9)])
def test_it_is_the_plain_algorithm(
    seed: int, width: int, count: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tables_with_base(seed, horizon=5)
    numbers: dict[int, Any] = {}
    draw = Batch.generators

    def remembered(batch: Batch, seed: int) -> Any:
        for prompt, generator in zip(batch.prompts, draw(batch, seed), strict=True):
            numbers[prompt[0]] = generator.random((width * count, 5))
        return draw(batch, seed)

    monkeypatch.setattr(Batch, "generators", remembered)
    results = chunk_beam_search(
        case.models,
        case.prompts,
        width,
        5,
        chunks_per_beam=count,
        chunk_length=length,
        seed=seed,
    )
    for prompt, found in enumerate(results):
        expected = plain_search(case, prompt, numbers[prompt], width, count, length)
        assert [tuple(each.token_ids) for each in found] == [tokens for _, tokens in expected]
        assert [each.score for each in found] == pytest.approx([score for score, _ in expected])
        for each in found:
            assert each.log_ratio == pytest.approx(each.score, abs=1e-5)
            tokens = tuple(each.token_ids)
            assert float(each.logps.sum()) == pytest.approx(
                logp(case, "base", prompt, tokens), abs=1e-5
            )


@pytest.mark.parametrize("seed", [0, 7])
def test_one_beam_of_whole_responses_is_best_of_n(seed: int) -> None:
    pair = small_pair()
    prompts: list[Any] = ["A warm film", "The plot is", "A warm film"]
    law = {"temperature": 0.8, "top_k": 50, "seed": seed, "max_new_tokens": 6}
    drawn = sample(pair, prompts, 7, **law)
    results = chunk_beam_search(pair, prompts, 1, chunks_per_beam=7, chunk_length=6, **law)
    for samples, (one,) in zip(drawn, results, strict=True):
        best = max(samples, key=lambda each: each.log_ratio or -np.inf)
        assert one.token_ids == best.token_ids
        assert one.score == pytest.approx(best.log_ratio, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_wide_beams_of_short_chunks_find_the_greatest_log_ratio(seed: int) -> None:
    case = random_case(seed, sharpness=0.7)
    results = chunk_beam_search(
        case.models, case.prompts, 40, 3, chunks_per_beam=60, chunk_length=1, seed=seed
    )
    totals = case.tree.totals(case.tables["policy"] - case.tables["reference"])
    for row, found in zip(totals, results, strict=True):
        assert tuple(found[0].token_ids) == case.tree.response(int(row.argmax()))


def test_scores_fall_and_no_beam_stands_twice() -> None:
    case = random_case(1, horizon=4)
    for found in chunk_beam_search(case.models, case.prompts, 6, 4, chunk_length=2):
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(each.token_ids) for each in found}) == len(found)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_change_nothing(batch_size: int) -> None:
    case = random_case(5, horizon=4, prompts=5)
    options: dict[str, Any] = {"chunk_length": 2, "num_beams": 2, "max_new_tokens": 4, "seed": 3}
    whole = chunk_beam_search(case.models, case.prompts, **options)
    order = [3, 0, 4, 1, 2]
    given = [case.prompts[n] for n in order]
    other = chunk_beam_search(case.models, given, batch_size=batch_size, **options)
    for place, number in enumerate(order):
        assert [(each.token_ids, each.score) for each in other[place]] == [
            (each.token_ids, each.score) for each in whole[number]
        ]


def test_seeds_decide() -> None:
    case = random_case(2, horizon=6, vocabulary=5, eos=None)

    def found(seed: int) -> list[list[int]]:
        results = chunk_beam_search(case.models, case.prompts, 1, 6, chunk_length=3, seed=seed)
        return [one.token_ids for one in results.best]

    assert found(1) == found(1)
    assert len({str(found(seed)) for seed in range(5)}) > 1


def test_a_large_model_is_searched_by_a_small_pair() -> None:
    pair = small_pair()
    base = random_model("gpt2", len(pair.tokenizer), 9)
    results = chunk_beam_search(pair, ["A warm film"], 2, 6, base=base, chunk_length=3)
    for one in results[0]:
        assert set(one.model_logps) == {"policy", "reference", "base"}
        assert one.logps.tolist() == one.model_logps["base"].tolist()
        assert one.score == pytest.approx(one.log_ratio, abs=1e-4)


def test_one_beam_ranked_by_a_value_is_blockwise_search() -> None:
    case = random_case(3, horizon=4)
    wanted = case.tree.vocabulary - 1

    def count_wanted(prefixes: Any) -> list[float]:
        return [float(prefix.response_ids.count(wanted)) for prefix in prefixes]

    options: dict[str, Any] = {"score": None, "chunks_per_beam": 30, "chunk_length": 1}
    results = chunk_beam_search(
        case.models, case.prompts, 1, 4, value=count_wanted, trace=True, **options
    )
    assert all(one.token_ids == [wanted] * 4 for one in results.best)
    assert [one.score for one in results.best] == [4.0] * len(case.prompts)
    for trace in results.traces:
        assert trace is not None
        (chosen,) = [node for node in trace.nodes if node.fate == "chosen"]
        assert [node.token for node in trace.path(chosen.number)] == [wanted] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; accepted: 1 or more"),
        ({"chunks_per_beam": 0}, "chunks_per_beam is 0; accepted: 1 or more"),
        ({"chunk_length": 1.5}, "chunk_length is 1.5; accepted: a whole number"),
        ({"num_return_sequences": 9}, "num_return_sequences is 9; accepted: 1 to 4"),
        ({"temperature": 0.0}, "temperature is 0.0; accepted: above 0"),
        ({"score": None}, "score is None; accepted: a score, or a value beside it"),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    case = random_case(0, prompts=1)
    with pytest.raises(UserError, match=message):
        chunk_beam_search(case.models, case.prompts, **options)


def test_a_bare_model_cannot_rank_by_the_log_ratio() -> None:
    case = random_case(0)
    model = TabularModel(case.tree, case.tables["policy"])
    with pytest.raises(UserError, match="needs a reference"):
        chunk_beam_search(model, case.prompts)
