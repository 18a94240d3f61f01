"""Samples follow the exact law of the responses, and depend on nothing but seed and prompt."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sharp_models import END, sharp
from tabular_search import random_case
from torch import Tensor
from transformers import LogitsProcessor

from tokenq.errors import UserError
from tokenq.models.branching.tree import TokenTree
from tokenq.models.logps import token_logps
from tokenq.models.pair import Pair
from tokenq.search import Progress, SearchResults, beam_search, greedy, sample
from tokenq.search.sampling import drawn_tokens
from tokenq.search.warping import Warping

V = 24
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [20, 3, 21, 4, 9]]


def tokens(results: SearchResults) -> list[list[list[int]]]:
    return [[one.token_ids for one in row] for row in results]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.0, "top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.3},
    ],
    ids=str,
)
def test_samples_follow_the_exact_law(options: dict[str, Any]) -> None:
    case = random_case(1, vocabulary=4, horizon=3, prompts=1)
    warping = Warping(**options)
    laws = case.law(
        warped=lambda table: torch.log_softmax(warping(torch.from_numpy(table)), -1).numpy()
    )
    count = 2000
    results = sample(case.models, case.prompts, count, max_new_tokens=3, seed=5, **options)
    for law, row in zip(laws, results, strict=True):
        seen = Counter(tuple(one.token_ids) for one in row)
        possible = {response: p for response, p in law.items() if p > -np.inf}
        assert set(seen) <= set(possible)
        expected = np.array([count * np.exp(p) for p in possible.values()])
        found = np.array([seen[response] for response in possible])
        often = expected >= 5
        rest = (found[~often].sum(), expected[~often].sum())
        if rest[1] > 0:
            found, expected = np.append(found[often], rest[0]), np.append(expected[often], rest[1])
        assert chisquare(found, expected).pvalue > 1e-3
        for one in row:
            told = one.details["sampled_logp"]
            assert told == pytest.approx(law[tuple(one.token_ids)], abs=1e-9)


def test_log_probabilities_are_the_policys_own_whatever_the_law(pair: Pair) -> None:
    results = sample(pair, ["A warm film", "The plot"], 5, 12, temperature=0.5, top_k=8, seed=1)
    for row in results:
        prompts = [one.prompt_ids for one in row]
        want = token_logps(pair.policy, prompts, [one.token_ids for one in row])
        for one, logps in zip(row, (each.detach() for each in want), strict=True):
            torch.testing.assert_close(one.logps, logps, rtol=0, atol=2e-5)
            assert one.score == pytest.approx(float(logps.sum()), abs=1e-4)
            assert one.details["sampled_logp"] > one.score
            assert one.log_ratio is not None


def test_samples_depend_on_seed_and_prompt_alone() -> None:
    model = sharp("llama", V, 1)
    options: dict[str, Any] = {"max_new_tokens": 10, "seed": 3}
    want = tokens(sample(model, PROMPTS, 6, **options))
    assert tokens(sample(model, PROMPTS[::-1], 6, **options)) == want[::-1]
    assert tokens(sample(model, PROMPTS, 6, batch_size=1, **options)) == want
    assert tokens(sample(model, PROMPTS, 4, **options)) == [row[:4] for row in want]
    assert tokens(sample(model, PROMPTS, 6, max_new_tokens=10, seed=4)) != want


def test_equal_prompts_have_samples_of_their_own() -> None:
    model = sharp("llama", V, 1)
    first, second = tokens(sample(model, [PROMPTS[0], PROMPTS[0]], 6, 10))
    assert first != second


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_that_of_transformers_and_beam_search_of_width_1(seed: int) -> None:
    model = sharp("llama" if seed % 2 else "gpt2", V, seed)
    ours = greedy(model, PROMPTS, 12)
    for prompt, (one,) in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        assert one.token_ids == theirs[0, len(prompt) :].tolist()
        assert one.finish == ("eos" if one.token_ids[-1] == END else "length")
    assert tokens(ours) == tokens(beam_search(model, PROMPTS, 1, 12))


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}], ids=str)
def test_a_law_with_one_token_is_greedy(options: dict[str, Any]) -> None:
    model = sharp("llama", V, 2)
    results = sample(model, PROMPTS, 3, 12, **options)
    assert tokens(results) == [[one.token_ids] * 3 for one in greedy(model, PROMPTS, 12).best]
    assert all(one.details["sampled_logp"] == 0 for row in results for one in row)


class Banned(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, banned: Sequence[int]) -> None:
        self.banned = list(banned)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.banned] = -torch.inf
        return scores


def test_options_that_forbid_tokens_hold_for_samples() -> None:
    model = sharp("llama", V, 1)
    banned = list(range(5, V))
    results = sample(
        model, PROMPTS, 8, 6, min_new_tokens=4, logits_processor=[Banned(banned)], seed=2
    )
    for row in results:
        for one in row:
            assert not set(one.token_ids) & set(banned)
            assert len(one.token_ids) >= 4
            assert one.details["sampled_logp"] > one.score


class Forbidden:
    """Nothing may follow these sequences."""

    def __init__(self, *sequences: list[int]) -> None:
        self.sequences = sequences

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        for row, sequence in enumerate(ids.tolist()):
            if sequence in self.sequences:
                scores[row] = -torch.inf
        return scores


def test_a_prompt_behind_which_nothing_may_follow_has_no_response() -> None:
    model, dead = sharp("llama", V, 1), Forbidden(PROMPTS[0])
    for method in (greedy, sample):
        expected = method(model, PROMPTS[1:], max_new_tokens=6)
        found = method(model, PROMPTS, max_new_tokens=6, logits_processor=[dead])
        assert found[0] == []
        assert [row[0].token_ids for row in found[1:]] == [row[0].token_ids for row in expected]
    assert list(greedy(model, PROMPTS[:1], 6, logits_processor=[Banned(range(V))])) == [[]]


def test_a_response_that_cannot_go_on_is_left_out() -> None:
    model = sharp("llama", V, 1)
    whole = sample(model, PROMPTS, 8, 6, min_new_tokens=4, seed=2)
    lost = whole[1][3].token_ids[:3]
    found = sample(
        model,
        PROMPTS,
        8,
        6,
        min_new_tokens=4,
        seed=2,
        logits_processor=[Forbidden([*PROMPTS[1], *lost])],
    )
    kept = [[one for one in row if one.token_ids[:3] != lost] for row in whole]
    assert len(kept[1]) < 8
    assert [[one.token_ids for one in row] for row in found] == [
        [one.token_ids for one in row] for row in kept
    ]


class Counting:
    """A model that counts the rows that it is asked."""

    def __init__(self, model: Any) -> None:
        self.model, self.rows = model, [0]
        self.vocabulary, self.eos_token_ids = model.vocabulary, model.eos_token_ids

    def open(self, tree: TokenTree) -> Tensor:
        self.rows[0] += len(tree.prompts)
        result: Tensor = self.model.open(tree)
        return result

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        self.rows.append(len(nodes))
        result: Tensor = self.model.read(tree, nodes)
        return result

    def retain(self, tree: TokenTree) -> None:
        self.model.retain(tree)

    def close(self) -> None:
        self.model.close()


def test_a_prompt_is_read_once_and_ended_responses_are_not_read() -> None:
    case = random_case(3, vocabulary=3, horizon=5)
    model = Counting(case.models["policy"])
    (row, _) = results = sample({"policy": model}, case.prompts, 20, 5)
    lengths = [len(one.token_ids) for row in results for one in row]
    assert len(row) == 20
    # What ends by its last token, or at most tokens, is never read.
    assert model.rows == [2] + [sum(n > step for n in lengths) for step in range(1, 5)]


def test_partial_results_stream_and_the_trace_holds_every_sample() -> None:
    case = random_case(4, vocabulary=4, horizon=4, prompts=1)
    told: list[Progress] = []
    results = sample(case.models, case.prompts, 30, 4, on_step=told.append, trace=True)
    first = results[0][0].token_ids
    for progress in told[: len(first)]:
        assert progress.token_ids == first[: progress.step]
    trace = results.traces[0]
    assert trace is not None
    assert sum(node.visits for node in trace.nodes if node.parent < 0) == 30
    leaves = [node for node in trace.nodes if node.fate == "chosen"]
    walked = {tuple(step.token for step in trace.path(leaf.number)) for leaf in leaves}
    assert walked == {tuple(one.token_ids) for one in results[0]}


def test_what_cannot_happen_is_never_drawn() -> None:
    logps = torch.tensor([[-torch.inf, 0.0, -torch.inf, -0.5, -torch.inf]])
    edges = torch.tensor([[0.0, 0.5, np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    drawn, law = drawn_tokens(logps, edges)
    assert drawn.tolist() == [[1, 1, 3]]
    total = np.log(1 + np.exp(-0.5))
    np.testing.assert_allclose(law[0], [-total, -total, -0.5 - total], atol=1e-7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_return_sequences": 0}, "num_return_sequences is 0; accepted: 1 or more"),
        ({"num_return_sequences": 1.5}, "num_return_sequences is 1.5; accepted: a whole number"),
        ({"seed": -1}, "seed is -1; accepted: 0 or more"),
        ({"temperature": 0.0}, "temperature is 0.0; accepted: above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        sample(sharp("llama", V, 1), PROMPTS, **options)
