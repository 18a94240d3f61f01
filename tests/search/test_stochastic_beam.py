"""Sampling without replacement: the exact Gumbel-top-k of all responses, and unbiased estimates."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sharp_models import sharp
from tabular_search import Case, random_case
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.pair import Pair
from tokenq.search import stochastic_beam
from tokenq.search.decoding import Decoding
from tokenq.search.running import run
from tokenq.search.sampling import sample
from tokenq.search.stochastic_beam import (
    StochasticBeamOptions,
    expectation,
    log_inclusion,
    perturbed_children,
    stochastic_beam_search,
)
from tokenq.search.target import Target

V = 24
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [20, 3, 21, 4, 9]]


@pytest.mark.parametrize("seed", range(5))
def test_responses_are_the_gumbel_top_k_of_all_responses(seed: int) -> None:
    """Given a Gumbel number for every leaf, the beam must find the k greatest sums without having
    seen the others: inner noise is what the greatest leaf below each child leaves."""
    case = random_case(seed, vocabulary=4, horizon=4)
    generator = np.random.default_rng(100 + seed)
    sums = [
        {response: logp + generator.gumbel() for response, logp in law.items()}
        for law in case.law()
    ]

    def greatest(prompt: int, prefix: tuple[int, ...]) -> float:
        length = len(prefix)
        return max(g for response, g in sums[prompt].items() if response[:length] == prefix)

    def noise(prompt: int, responses: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
        if not responses:
            return torch.tensor([greatest(prompt, ())], dtype=torch.float64)
        rows = []
        for response in responses:
            logp = total(case, prompt, response)
            state = case.tree.state(prompt, tuple(response))
            rows.append(
                [
                    greatest(prompt, (*response, a)) - logp - case.tables["policy"][state, a]
                    for a in range(vocabulary)
                ]
            )
        return torch.tensor(rows, dtype=torch.float64)

    for k in (1, 3, 8):
        options = StochasticBeamOptions(num_beams=k)
        results = run(
            Target.of(case.models),
            case.prompts,
            Decoding(max_new_tokens=4),
            lambda batch, options=options: stochastic_beam._search(batch, options, noise),
        )
        for theirs, law, row in zip(sums, case.law(), results, strict=True):
            want = sorted(theirs.items(), key=lambda each: -each[1])
            assert [tuple(one.token_ids) for one in row] == [each[0] for each in want[:k]]
            threshold = want[k][1]
            for one, (response, perturbed) in zip(row, want, strict=False):
                assert one.score == pytest.approx(perturbed, abs=1e-9)
                assert one.details["sampled_logp"] == pytest.approx(law[response], abs=1e-9)
                above = 1 - math.exp(-math.exp(law[response] - threshold))
                assert one.details["inclusion"] == pytest.approx(above, rel=1e-9)
                weight = math.exp(law[response]) / above
                assert one.details["weight"] == pytest.approx(weight, rel=1e-9)


def total(case: Case, prompt: int, response: Sequence[int]) -> float:
    table, tree = case.tables["policy"], case.tree
    return sum(
        float(table[tree.state(prompt, tuple(response[:t])), token])
        for t, token in enumerate(response)
    )


def repeated(case: Case, k: int, runs: int, **options: Any) -> list[list[Any]]:
    """Independent searches behind one prompt: equal prompts get numbers of their own."""
    results = stochastic_beam_search(
        case.models, [[0]] * runs, k, case.tree.horizon, batch_size=runs, **options
    )
    return list(results)


def test_the_order_is_that_of_sampling_without_replacement() -> None:
    case = random_case(2, vocabulary=3, horizon=2, prompts=1)
    (law,) = case.law()
    chances = {response: math.exp(logp) for response, logp in law.items()}
    runs = 1500
    seen = Counter(tuple(tuple(one.token_ids) for one in row) for row in repeated(case, 2, runs))
    expected = {
        (one, two): chances[one] * chances[two] / (1 - chances[one])
        for one, two in itertools.permutations(chances, 2)
    }
    assert sum(expected.values()) == pytest.approx(1)
    found = np.array([seen[pair] for pair in expected])
    wanted = runs * np.array(list(expected.values()))
    often = wanted >= 5
    assert set(seen) <= set(expected)
    found = np.append(found[often], found[~often].sum())
    wanted = np.append(wanted[often], wanted[~often].sum())
    assert chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


@pytest.mark.parametrize("k", [1, 2, 4])
def test_estimates_are_unbiased(k: int) -> None:
    case = random_case(5, vocabulary=3, horizon=3, prompts=1, sharpness=1.5)
    (law,) = case.law()
    value = {response: math.sin(3.0 * n) for n, response in enumerate(law)}
    truth = sum(math.exp(logp) * value[response] for response, logp in law.items())
    estimates = np.array(
        [
            expectation(row, [value[tuple(one.token_ids)] for one in row])
            for row in repeated(case, k, 700, seed=k)
        ]
    )
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) < 4 * error
    assert error < 0.08


def test_with_every_response_the_estimate_is_exact() -> None:
    case = random_case(6, vocabulary=3, horizon=3, prompts=1)
    (law,) = case.law()
    (row,) = repeated(case, len(law) + 5, 1)
    assert {tuple(one.token_ids) for one in row} == set(law)
    values = [float(n) for n in range(len(row))]
    exact = sum(math.exp(law[tuple(one.token_ids)]) * v for one, v in zip(row, values, strict=True))
    assert expectation(row, values) == pytest.approx(exact, abs=1e-12)
    assert expectation(row, values, normalised=True) == pytest.approx(exact, abs=1e-12)


def test_children_never_stand_above_their_parent_and_one_stands_level() -> None:
    generator = torch.Generator().manual_seed(1)
    logps = torch.log_softmax(5 * torch.randn(50, 30, generator=generator).double(), -1) - 200
    logps[:, 3] = -torch.inf
    noise = -torch.empty(50, 30, dtype=torch.float64).exponential_(generator=generator).log()
    parents = torch.linspace(-203, -190, 50, dtype=torch.float64)
    free = logps + noise
    children = perturbed_children(parents, free)
    torch.testing.assert_close(children.amax(-1), parents, rtol=0, atol=1e-12)
    assert (children[:, 3] == -torch.inf).all()
    assert not children.isnan().any()
    assert torch.equal(children.argsort(-1), free.argsort(-1))
    few = free.topk(4, -1).values
    want = children.topk(4, -1).values
    torch.testing.assert_close(perturbed_children(parents, few), want, rtol=0, atol=0)
    # The textbook form, where it does not overflow.
    near = torch.tensor([-0.3], dtype=torch.float64)
    row = torch.log(torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64))
    shake = torch.tensor([[0.4, -1.0, 1.7]], dtype=torch.float64)
    z = (row + shake).amax()
    plain = -torch.log(torch.exp(-near) - torch.exp(-z) + torch.exp(-(row + shake)))
    torch.testing.assert_close(perturbed_children(near, row + shake), plain, rtol=0, atol=1e-12)


def test_inclusion_keeps_its_precision() -> None:
    assert log_inclusion(-800.0, 3.0) == pytest.approx(-803.0)
    assert log_inclusion(-2.0, -math.inf) == 0
    assert log_inclusion(-1.0, -0.5) == pytest.approx(math.log(1 - math.exp(-math.exp(-0.5))))
    assert log_inclusion(-29.9, 0.1) == pytest.approx(-30.0, abs=1e-9)


def test_responses_differ_and_depend_on_seed_and_prompt_alone(pair: Pair) -> None:
    model = sharp("llama", V, 1)

    def found(prompts: list[Any], **options: Any) -> list[list[list[int]]]:
        results = stochastic_beam_search(model, prompts, 5, 8, **{"seed": 2, **options})
        return [[one.token_ids for one in row] for row in results]

    want = found(PROMPTS)
    assert all(len({tuple(ids) for ids in row}) == 5 for row in want)
    assert found(PROMPTS[::-1]) == want[::-1]
    assert found(PROMPTS, batch_size=1) == want
    assert found(PROMPTS, seed=3) != want
    texts = stochastic_beam_search(pair, ["A warm"], 3, 6, trace=True, top_k=5)
    assert len({one.text for one in texts[0]}) >= 2
    trace = texts.traces[0]
    assert trace is not None
    assert sum(node.fate == "chosen" for node in trace.nodes) == 3
    assert all(one.details["sampled_logp"] > float(one.logps.sum()) for one in texts[0])


def test_one_beam_is_an_ordinary_sample() -> None:
    case = random_case(7, vocabulary=3, horizon=3, prompts=1)
    runs = 1000
    ours = Counter(tuple(row[0].token_ids) for row in repeated(case, 1, runs, temperature=0.7))
    drawn = sample(case.models, [[0]], runs, 3, temperature=0.7)[0]
    law = {tuple(one.token_ids): one.details["sampled_logp"] for one in drawn}
    often = [response for response, logp in law.items() if runs * math.exp(logp) >= 5]
    wanted = np.array([runs * math.exp(law[response]) for response in often])
    found = np.array([ours[response] for response in often])
    rest = (runs - found.sum(), runs - wanted.sum())
    assert chisquare(np.append(found, rest[0]), np.append(wanted, rest[1])).pvalue > 1e-3


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="num_beams is 0; accepted: 1 or more"):
        stochastic_beam_search(sharp("llama", V, 1), PROMPTS, 0)


def test_a_prompt_behind_which_nothing_may_follow_is_named() -> None:
    def forbid(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(
            torch.tensor([row == PROMPTS[1] for row in ids.tolist()])[:, None], -torch.inf
        )

    with pytest.raises(UserError, match="prompt 1: every token is forbidden after 0 of"):
        stochastic_beam_search(
            sharp("llama", V, 1), PROMPTS, 3, max_new_tokens=4, logits_processor=[forbid]
        )
