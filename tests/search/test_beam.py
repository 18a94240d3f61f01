"""Beam search: the sequences and scores of transformers, and the truth on tabular MDPs."""

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reading import plain_logps
from sharp_models import END, sharp
from small_pairs import small_tokenizer
from transformers import LogitsProcessor, PreTrainedModel

from tokenq.errors import UserError
from tokenq.mdp.arrays import log_softmax
from tokenq.mdp.token_mdp import Solution, TokenMDP
from tokenq.mdp.tree import PrefixTree
from tokenq.models.logps import token_logps
from tokenq.models.pair import Pair, load_pair
from tokenq.search import Progress, Score, SearchResults, beam_search
from tokenq.search.tabular import TabularModel, tabular_models

V = 24
PAD = 1  # with 0, transformers would fill up with the end token
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [20, 3, 21, 4, 9]]
LENGTH_PENALTIES = (1.0, 0.0, -0.5, 2.0)
STOPPING = (False, True, "never")


@cache
def model_of(family: str, seed: int) -> PreTrainedModel:
    return sharp(family, V, seed)


def transformers_beams(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], num_beams: int, **options: Any
) -> list[list[tuple[list[int], float]]]:
    """Sequences, padded to one length, and scores of `generate`; prompts are padded left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    options = {"num_return_sequences": num_beams} | options
    found = model.generate(
        ids,
        attention_mask=mask,
        num_beams=num_beams,
        do_sample=False,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    width = options["num_return_sequences"]
    rows = [
        (sequence[longest:].tolist(), score)
        for sequence, score in zip(found.sequences, found.sequences_scores.tolist(), strict=True)
    ]
    return [rows[start : start + width] for start in range(0, len(rows), width)]


def tokens_of(results: SearchResults) -> list[list[list[int]]]:
    return [[result.token_ids for result in row] for row in results]


def assert_same(ours: SearchResults, theirs: list[list[tuple[list[int], float]]]) -> None:
    assert len(ours) == len(theirs)
    for row, expected in zip(ours, theirs, strict=True):
        assert len(row) == len(expected)
        for result, (tokens, score) in zip(row, expected, strict=True):
            length = len(result.token_ids)
            assert result.token_ids == tokens[:length]
            assert set(tokens[length:]) <= {PAD}
            assert result.score == pytest.approx(score, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("early_stopping", STOPPING)
def test_padded_batches_give_the_beams_of_transformers(
    family: str, seed: int, early_stopping: Any
) -> None:
    model = model_of(family, seed)
    finished = set()
    for width, penalty in itertools.product((2, 5), LENGTH_PENALTIES):
        eos = [END] if width == 2 else [2, 5, 9]
        options = {
            "max_new_tokens": 12,
            "length_penalty": penalty,
            "early_stopping": early_stopping,
            "eos_token_id": eos,
        }
        ours = beam_search(model, PROMPTS, width, **options)  # type: ignore[arg-type]
        assert_same(ours, transformers_beams(model, PROMPTS, width, **options))
        finished |= {result.finish for row in ours for result in row}
    assert finished == {"eos", "length"}


class Shout(LogitsProcessor):
    """Favours even tokens, the more the longer the text is."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        gain = torch.zeros(scores.shape[-1])
        gain[::2] = 0.3 * input_ids.shape[1]
        return scores + gain


@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.7},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [8], [13, 13], [19], [21], [22, 22]]},
        {"min_new_tokens": 6},
        {"min_new_tokens": 4, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
        {"logits_processor": [Shout()]},
        {"logits_processor": [Shout()], "min_new_tokens": 5, "repetition_penalty": 1.3},
    ],
    ids=lambda rules: "+".join(rules),
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rules_of_what_may_be_said_are_those_of_transformers(
    family: str, rules: dict[str, Any]
) -> None:
    # Its repetition penalty counts the padding of a batch as text: prompts go to it one by one.
    changed = False
    for seed, width, penalty in ((0, 3, 1.0), (1, 5, 0.0), (2, 4, 1.0)):
        model = model_of(family, seed)
        options: dict[str, Any] = {
            "max_new_tokens": 12,
            "length_penalty": penalty,
            "eos_token_id": [2, 5, 9],
        }
        free = beam_search(model, PROMPTS, width, **options)
        ours = beam_search(model, PROMPTS, width, **options, **rules)
        theirs = [
            transformers_beams(model, [prompt], width, **options, **rules)[0] for prompt in PROMPTS
        ]
        assert_same(ours, theirs)
        changed |= tokens_of(ours) != tokens_of(free)
    assert changed


def test_stop_strings_end_the_beams_that_transformers_ends() -> None:
    tokenizer = small_tokenizer()
    prompt = tokenizer("The plot is").input_ids
    kinds = []
    for seed in range(4):
        model = sharp("llama", len(tokenizer), seed)
        pair = load_pair(model, tokenizer=tokenizer)
        free = str(beam_search(pair, [prompt], 4, 16).best[0].text)
        pieces = [free[at : at + 2] for at in range(len(free) - 1)]
        readable = [piece for piece in pieces if "\ufffd" not in piece] or ["xyz"]
        for stops in (readable[len(readable) // 2][0], [readable[-1], "xyz"]):
            options = {"max_new_tokens": 16, "length_penalty": 0.0, "stop_strings": stops}
            ours = beam_search(pair, [prompt], 4, **options)  # type: ignore[arg-type]
            theirs = transformers_beams(model, [prompt], 4, tokenizer=tokenizer, **options)
            assert_same(ours, theirs)
            kinds += [result.finish for result in ours[0]]
            for result in ours[0]:
                assert result.text is not None
                assert not any(each in result.text for each in stops)
                whole = tokenizer.decode(result.token_ids, skip_special_tokens=True)
                assert whole.startswith(result.text)
                assert (result.finish == "stop") == (whole != result.text)
    assert set(kinds) == {"stop", "eos", "length"}


def test_the_length_limit_is_that_of_transformers() -> None:
    model = model_of("llama", 1)
    prompt = PROMPTS[1]
    theirs = transformers_beams(model, [prompt], 4, max_length=len(prompt) + 9)
    assert_same(beam_search(model, [prompt], 4, 9), theirs)
    assert_same(
        beam_search(model, [prompt], 4, 9, min_new_tokens=9),
        transformers_beams(model, [prompt], 4, max_length=len(prompt) + 9, min_new_tokens=9),
    )


def test_fewer_sequences_than_beams_are_the_first_ones() -> None:
    model = model_of("gpt2", 2)
    three = beam_search(model, PROMPTS, 5, 10, num_return_sequences=3)
    assert_same(
        three, transformers_beams(model, PROMPTS, 5, max_new_tokens=10, num_return_sequences=3)
    )
    five = beam_search(model, PROMPTS, 5, 10)
    assert [[r.token_ids for r in row[:3]] for row in five] == [
        [r.token_ids for r in row] for row in three
    ]


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["llama", "gpt2"]),
    seed=st.integers(0, 3),
    prompts=st.lists(
        st.lists(st.integers(1, V - 1), min_size=1, max_size=9), min_size=1, max_size=4
    ),
    width=st.integers(2, 8),
    eos=st.sets(st.integers(1, V - 1), min_size=1, max_size=4),
    penalty=st.floats(-1, 2),
    early_stopping=st.sampled_from(STOPPING),
    least=st.integers(0, 5),
)
def test_any_options_together_give_the_beams_of_transformers(
    family: str,
    seed: int,
    prompts: list[list[int]],
    width: int,
    eos: set[int],
    penalty: float,
    early_stopping: Any,
    least: int,
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "min_new_tokens": least,
        "length_penalty": penalty,
        "early_stopping": early_stopping,
        "eos_token_id": sorted(eos),
    }
    model = model_of(family, seed)
    ours = beam_search(model, prompts, width, **options)
    assert_same(ours, transformers_beams(model, prompts, width, **options))


# The truth, by enumeration of all responses.

TREE = PrefixTree(vocabulary=3, horizon=4, eos=0, prompts=2)
BETA = 0.7
EVERYTHING: dict[str, Any] = {
    "num_beams": TREE.responses,
    "length_penalty": 0.0,
    "early_stopping": "never",
}
LIKELIEST: dict[str, Any] = {"length_penalty": 0.0, "early_stopping": "never"}


def problem(seed: int) -> tuple[TokenMDP, Solution, Mapping[str, TabularModel]]:
    mdp = TokenMDP.random(TREE, np.random.default_rng(seed), ref_scale=1.5)
    solution = mdp.solve(BETA)
    models = tabular_models(TREE, policy=solution.log_policy, reference=mdp.ref_logps)
    return mdp, solution, models


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_full_beam_lists_all_responses_in_order(seed: int, weight: float) -> None:
    mdp, solution, models = problem(seed)
    results = beam_search(models, [[0], [1]], max_new_tokens=4, score=weight, **EVERYTHING)
    steps = solution.log_policy - weight * mdp.ref_logps
    totals = TREE.totals(steps)
    for prompt, row in enumerate(results):
        order = np.argsort(-totals[prompt])
        assert [tuple(r.token_ids) for r in row] == [TREE.response(int(i)) for i in order]
        np.testing.assert_allclose([r.score for r in row], totals[prompt][order], atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_score_is_the_return_and_what_is_left_of_the_prior(seed: int, weight: float) -> None:
    # Eqs. 12-13 for weight 0, the learned reward itself for weight 1: with the telescoping of the
    # return, beta * score + V*(s0) = sum r + (1 - weight) * beta * sum log pi_ref.
    mdp, solution, models = problem(seed)
    results = beam_search(models, [[0], [1]], max_new_tokens=4, score=weight, **EVERYTHING)
    priors = TREE.totals(np.broadcast_to(mdp.ref_logps, mdp.reward.shape))
    wanted = mdp.returns + (1 - weight) * BETA * priors
    numbers = {TREE.response(index): index for index in range(TREE.responses)}
    for prompt, row in enumerate(results):
        assert numbers[tuple(row[0].token_ids)] == int(wanted[prompt].argmax())
        for result in row:
            np.testing.assert_allclose(
                BETA * result.score + solution.v[prompt],
                wanted[prompt, numbers[tuple(result.token_ids)]],
                atol=1e-12,
            )


def test_likelihood_and_log_ratio_search_differ() -> None:
    firsts = set()
    for seed in range(6):
        _, _, models = problem(seed)
        likely, liked = (
            beam_search(models, [[0]], max_new_tokens=4, score=score, **EVERYTHING).best[0]
            for score in ("likelihood", "log_ratio")
        )
        firsts.add(likely.token_ids == liked.token_ids)
    assert False in firsts


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_search_is_optimal_value_search_at_every_depth(
    seed: int, weight: float, depth: int
) -> None:
    # Eqs. 12-13 at weight 0, with what is left of the prior at others.
    mdp, solution, models = problem(seed)
    wide = EVERYTHING | {"num_beams": min(TREE.responses, 3**depth)}
    found = beam_search(models, [[0]], max_new_tokens=depth, score=weight, **wide).best[0]
    best = (-np.inf, ())
    for length in range(1, depth + 1):
        for tokens in itertools.product(range(3), repeat=length):
            ended = tokens[-1] == TREE.eos or length == TREE.horizon
            if TREE.eos in tokens[:-1] or not (ended or length == depth):
                continue
            states = [TREE.state(0, tokens[:t]) for t in range(length)]
            steps = mdp.reward + (1 - weight) * BETA * mdp.ref_logps
            gained = sum(float(steps[s, a]) for s, a in zip(states, tokens, strict=True))
            later = 0.0 if ended else float(solution.v[TREE.state(0, tokens)])
            best = max(best, (gained + later, tokens))
    assert tuple(found.token_ids) == best[1]
    assert BETA * found.score + float(solution.v[0]) == pytest.approx(best[0], abs=1e-12)


def plain_beams(model: TabularModel, prompt: int, width: int, horizon: int) -> list[Any]:
    """Beam search as in the textbook: nothing is pruned but by the width."""
    opened, whole = [(0.0, ())], []  # type: ignore[var-annotated]
    for length in range(1, horizon + 1):
        grown = [
            (score + float(logp), (*tokens, token))
            for score, tokens in opened
            for token, logp in enumerate(model.log_policy[model.state([prompt], tokens)])
        ]
        ranked = sorted(grown, reverse=True)
        ends = [each[1][-1] in model.eos_token_ids or length == horizon for each in ranked]
        top = list(zip(ranked, ends, strict=True))
        whole = sorted([*whole, *(e for e, end in top[:width] if end)], reverse=True)[:width]
        opened = [each for each, end in top if not end][:width]
    return whole


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 9),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
    eos=st.sampled_from([None, 0, 2]),
)
def test_without_a_length_penalty_it_is_textbook_beam_search(
    seed: int, width: int, scale: float, eos: int | None
) -> None:
    tree = PrefixTree(3, 4, eos, prompts=2)
    draws = np.random.default_rng(seed).standard_normal((tree.states, 3))
    model = TabularModel(tree, log_softmax(scale * draws))
    results = beam_search(model, [[0], [1]], width, 4, **LIKELIEST)
    for prompt, row in enumerate(results):
        expected = plain_beams(model, prompt, width, 4)
        assert [tuple(r.token_ids) for r in row] == [tokens for _, tokens in expected]
        np.testing.assert_allclose([r.score for r in row], [score for score, _ in expected])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.floats(0, 1))
def test_nothing_beats_a_beam_that_sees_everything(seed: int, weight: float) -> None:
    _, _, models = problem(seed)
    full = beam_search(models, [[0]], max_new_tokens=4, score=weight, **EVERYTHING).best[0]
    scores = [
        beam_search(models, [[0]], width, 4, weight, **LIKELIEST).best[0].score
        for width in (1, 2, 3, 5, 8, 13, 24)
    ]
    assert max(scores) <= full.score + 1e-12
    # 24 prefixes are the widest level, so no end is out of reach.
    assert scores[-1] == pytest.approx(full.score, abs=1e-12)


def test_a_wider_beam_may_find_worse() -> None:
    # Greedy goes by token 0 (.55), whose next tokens are even, and then is certain. Two beams
    # drop it for the two halves of token 1 (.45), which then scatter: .183 against .074.
    tree = PrefixTree(3, 3)
    even, sure = np.full(3, 1 / 3), np.array([0.998, 0.001, 0.001])
    policy = np.tile(even, (tree.states, 1))
    policy[tree.state(0)] = [0.55, 0.449, 0.001]
    policy[tree.state(0, (1,))] = [0.499, 0.499, 0.002]
    policy[tree.state(0, (0, 0))] = sure
    policy[tree.state(0, (0, 0))] /= sure.sum()
    model = TabularModel(tree, np.log(policy))
    one, two, all_ = (
        beam_search(model, [[0]], width, 3, **LIKELIEST).best[0] for width in (1, 2, 27)
    )
    assert one.token_ids == [0, 0, 0]
    assert np.exp(one.score) == pytest.approx(0.55 / 3 * 0.998)
    assert np.exp(two.score) == pytest.approx(0.449 * 0.499 / 3)
    assert all_.token_ids == one.token_ids


# What stays the same whatever stands beside it.


def summary(results: SearchResults) -> list[Any]:
    return [[(r.token_ids, r.score, r.finish, r.text) for r in row] for row in results]


def close(ours: SearchResults, theirs: SearchResults) -> None:
    for row, other in zip(ours, theirs, strict=True):
        assert [(r.token_ids, r.finish, r.text) for r in row] == [
            (r.token_ids, r.finish, r.text) for r in other
        ]
        for one, two in zip(row, other, strict=True):
            assert one.score == pytest.approx(two.score, abs=1e-4)
            torch.testing.assert_close(one.logps, two.logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("early_stopping", STOPPING)
def test_one_beam_is_greedy(family: str, early_stopping: Any) -> None:
    for seed in range(3):
        model = model_of(family, seed)
        results = beam_search(model, PROMPTS, 1, 8, early_stopping=early_stopping)
        for prompt, (result,) in zip(PROMPTS, results, strict=True):
            tokens: list[int] = []
            while len(tokens) < 8 and END not in tokens:
                tokens.append(int(plain_logps(model, prompt + tokens).argmax()))
            assert result.token_ids == tokens
            assert result.finish == ("eos" if END in tokens else "length")
            logps = token_logps(model, [prompt], [tokens])[0]
            assert result.score == pytest.approx(float(logps.detach().mean()), abs=1e-5)


def test_order_batches_and_copies_of_prompts_change_nothing(pair: Pair) -> None:
    prompts = ["A warm film", "The plot is a dull mess", "A warm film", "One", "An uneven debut"]
    whole = beam_search(pair, prompts, 3, 8, "log_ratio")
    order = [3, 0, 4, 2, 1]
    for batch_size in (1, 2, 16):
        permuted = beam_search(
            pair, [prompts[n] for n in order], 3, 8, "log_ratio", batch_size=batch_size
        )
        close(SearchResults([permuted[order.index(n)] for n in range(5)]), whole)
    close(SearchResults([whole[0]]), SearchResults([whole[2]]))


@pytest.mark.parametrize("score", ["likelihood", "log_ratio", 0.4])
def test_results_say_what_the_models_say(pair: Pair, score: Any) -> None:
    prompts = [pair.tokenizer(text).input_ids for text in ("A warm film", "The plot")]
    results = beam_search(pair, prompts, 3, 8, score, length_penalty=0.0)
    for prompt, row in zip(prompts, results, strict=True):
        assert sorted(row, key=lambda r: -r.score) == row
        for result in row:
            ours, theirs = (
                token_logps(model, [prompt], [result.token_ids])[0]
                for model in (pair.policy, pair.reference)
            )
            torch.testing.assert_close(result.logps, ours, rtol=0, atol=1e-4)
            assert result.ref_logps is not None
            torch.testing.assert_close(result.ref_logps, theirs, rtol=0, atol=1e-4)
            weight = Score.of(score).reference
            expected = float((ours - weight * theirs).sum())
            assert result.score == pytest.approx(expected, abs=1e-3)
            assert result.log_ratio == pytest.approx(float((ours - theirs).sum()), abs=1e-3)
            if score == "likelihood":
                assert result.kl is None
                continue
            assert result.kl is not None
            for position, kl in enumerate(result.kl):
                ids = prompt + result.token_ids[:position]
                p, q = (plain_logps(model, ids) for model in (pair.policy, pair.reference))
                assert float(kl) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-3)


def test_watching_changes_nothing(pair: Pair) -> None:
    prompts = ["A warm film", "The plot", "One", "A"]
    seen: list[Progress] = []
    plain = beam_search(pair, prompts, 3, 8, "log_ratio", batch_size=2)
    watched = beam_search(
        pair, prompts, 3, 8, "log_ratio", batch_size=2, on_step=seen.append, trace=True
    )
    assert summary(plain) == summary(watched)
    assert plain.traces == [None] * 4
    for number, row in enumerate(watched):
        steps = [each.step for each in seen if each.prompt == number]
        assert steps == sorted(steps)
        assert steps[0] == 1
        last = [each for each in seen if each.prompt == number][-1]
        assert (last.token_ids, last.score, last.text) == (
            row[0].token_ids,
            pytest.approx(row[0].score, abs=1e-6),
            row[0].text,
        )


@pytest.mark.parametrize("score", ["likelihood", "log_ratio"])
def test_a_trace_holds_the_tree_that_was_searched(pair: Pair, score: str) -> None:
    results = beam_search(pair, ["A warm film", "The plot"], 3, 8, score, trace=True)
    for row, trace in zip(results, results.traces, strict=True):
        assert trace is not None
        assert [node.number for node in trace.nodes] == list(range(len(trace.nodes)))
        assert all(-1 <= node.parent < node.number for node in trace.nodes)
        chosen = [node.number for node in trace.nodes if node.fate == "chosen"]
        paths = {tuple(node.token for node in trace.path(number)): number for number in chosen}
        assert sorted(paths) == sorted(tuple(result.token_ids) for result in row)
        for result in row:
            path = trace.path(paths[tuple(result.token_ids)])
            torch.testing.assert_close(
                torch.tensor([node.logp for node in path]), result.logps, rtol=0, atol=1e-6
            )
            assert path[-1].score / len(path) == pytest.approx(result.score, abs=1e-5)
            assert all(node.fate == "open" for node in path[:-1])
            if score == "log_ratio":
                assert result.ref_logps is not None
                assert [n.ref_logp for n in path] == pytest.approx(result.ref_logps.tolist())
        parents = {node.parent for node in trace.nodes}
        assert not any(node.number in parents for node in trace.nodes if node.fate == "pruned")


def test_implausible_tokens_are_left_out(pair: Pair) -> None:
    prompts = ["A warm film", "The plot"]
    for row in beam_search(pair, prompts, 3, 6, "log_ratio", plausibility=0.3):
        for result in row:
            for position, token in enumerate(result.token_ids):
                logps = plain_logps(pair.policy, result.prompt_ids + result.token_ids[:position])
                assert float(logps[token] - logps.max()) >= np.log(0.3) - 1e-4
    greedy = beam_search(pair, prompts, 1, 6)
    sure = beam_search(pair, prompts, 3, 6, "log_ratio", plausibility=1.0)
    assert [r.token_ids for r in sure.best] == [r.token_ids for r in greedy.best]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_give_float32_results_near_the_plain_forward(dtype: torch.dtype) -> None:
    model = sharp("llama", V, 1).to(dtype)
    for result in beam_search(model, [PROMPTS[0]], 3, 8, length_penalty=0.0)[0]:
        assert result.logps.dtype == torch.float32
        expected = token_logps(model, [PROMPTS[0]], [result.token_ids])[0].float()
        tolerance = 1e-4 if dtype == torch.float64 else 0.3
        torch.testing.assert_close(result.logps, expected, rtol=0, atol=tolerance)


def test_models_are_left_as_they_were(adapter_pair: Pair) -> None:
    policy = adapter_pair.policy
    policy.train()
    policy.get_base_model().lm_head.eval()
    training = {name: module.training for name, module in policy.named_modules()}
    grads = {name: weight.requires_grad for name, weight in policy.named_parameters()}
    assert any(grads.values())
    results = beam_search(adapter_pair, ["A warm film"], 3, 6, "log_ratio")
    assert {name: module.training for name, module in policy.named_modules()} == training
    assert {name: weight.requires_grad for name, weight in policy.named_parameters()} == grads
    assert policy.active_adapters == ["default"]
    policy.eval()
    close(beam_search(adapter_pair, ["A warm film"], 3, 6, "log_ratio"), results)
    with policy.disable_adapter():
        base = token_logps(policy, [results[0][0].prompt_ids], [results[0][0].token_ids])[0]
    ref_logps = results[0][0].ref_logps
    assert ref_logps is not None
    torch.testing.assert_close(ref_logps, base, rtol=0, atol=1e-4)
    assert abs(results[0][0].log_ratio or 0.0) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; accepted: 1 or more"),
        ({"num_beams": 2.5}, "num_beams is 2.5; accepted: a whole number, 1 or more"),
        (
            {"num_beams": 3, "num_return_sequences": 4},
            "num_return_sequences is 4; accepted: 1 to 3",
        ),
        ({"num_beams": V + 1, "max_new_tokens": 1}, f"num_beams is {V + 1}; accepted: up to {V}"),
        ({"early_stopping": "sometimes"}, "early_stopping is 'sometimes'; accepted: True, False"),
        ({"early_stopping": 1}, "early_stopping is 1; accepted"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; accepted: a finite number"),
        ({"plausibility": 1.5}, "plausibility is 1.5; accepted: 0 to 1"),
        ({"score": "reward"}, "score is 'reward'; accepted: likelihood, log_ratio"),
        ({"score": 1.5}, "score is 1.5; accepted: likelihood, log_ratio"),
        ({"score": "log_ratio"}, "this score needs a reference; accepted: a pair"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        beam_search(model_of("llama", 0), PROMPTS, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="max_length"):
        beam_search(model_of("llama", 0), PROMPTS, max_length=20)  # type: ignore[call-arg]


def test_the_bundled_model_gives_the_beams_of_transformers(bundled_model: Path) -> None:
    pair = load_pair(str(bundled_model))
    prompt = pair.tokenizer("Once upon a time, a small robot").input_ids
    theirs = transformers_beams(
        pair.policy,  # type: ignore[arg-type]
        [prompt],
        5,
        max_new_tokens=12,
    )
    for ours, (tokens, score) in zip(beam_search(pair, [prompt], 5, 12)[0], theirs[0], strict=True):
        assert ours.token_ids == tokens[: len(ours.token_ids)]
        assert ours.score == pytest.approx(score, abs=1e-4)
        assert ours.text == pair.tokenizer.decode(ours.token_ids, skip_special_tokens=True)
