"""Training on one pair until its margin has grown by so much, and what the chosen answer lost."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tokenq.reproduce.mass_displacement.answers import KINDS, Pair, drawn_pair
from tokenq.reproduce.mass_displacement.bench import DisplacementBench, fresh
from tokenq.reproduce.mass_displacement.predictors import own_gradients, predictors
from tokenq.reproduce.mass_displacement.settings import LEVELS

TOP = 5


def drawn_pairs(bench: DisplacementBench, seed: int) -> list[Pair]:
    """The single pairs of a seed, on training prompts drawn without repetition."""
    draw = Random(f"single {seed}")
    settings = bench.settings
    counts = [getattr(settings, kind) for kind in KINDS]
    kinds = [kind for kind, count in zip(KINDS, counts, strict=True) for _ in range(count)]
    numbers = draw.choices(range(len(bench.training)), k=len(kinds))
    return [
        drawn_pair(number, bench.training[number].right, kind, draw)
        for number, kind in zip(numbers, kinds, strict=True)
    ]


def single_runs(bench: DisplacementBench, policy: PeftModel, seed: int) -> list[dict[str, Any]]:
    """One record a pair: its predictors at the start, and the readings of its run."""
    pairs = drawn_pairs(bench, seed)
    fresh(policy, seed)
    found = predictors(bench, pairs, seed)
    records = []
    for number, (pair, values) in enumerate(zip(pairs, found, strict=True)):
        weights = fresh(policy, 1000 * seed + number)
        values["own gradients"] = own_gradients(bench, policy, weights, pair)
        records.append(
            {
                "kind": pair.kind,
                "right": pair.right,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "predictors": values,
                **trained_on(bench, policy, weights, pair),
            }
        )
    return records


def trained_on(
    bench: DisplacementBench, policy: PeftModel, weights: Sequence[nn.Parameter], pair: Pair
) -> dict[str, Any]:
    """DPO on one pair until the last of `LEVELS` is reached, or for the most steps allowed.

    Returns `curve`: rows of (margin grown, log-ratio of chosen, mass of right words, mass of
    opposite words), one a step; `gains`: the first tokens that gained most, with their change of
    probability; `chosen_logp`: at the start, nats.
    """
    settings = bench.settings
    prompt = bench.training[pair.prompt]
    optimizer = torch.optim.AdamW(weights, lr=settings.single_rate, weight_decay=0.0)
    start: Tensor | None = None
    start_first = first = bench.first(policy, [prompt])
    curve: list[list[float]] = []
    for _ in range(settings.single_steps + 1):
        logps = bench.sums(policy, [prompt, prompt], [pair.chosen, pair.rejected])
        if start is None:
            start = logps.detach()
        ratios = logps - start
        margin = ratios[0] - ratios[1]
        first = bench.first(policy, [prompt])
        masses = bench.masses(first, [prompt])
        now = (margin.item(), ratios[0].item(), masses.right.item(), masses.opposite.item())
        curve.append(list(now))
        if curve[-1][0] >= LEVELS[-1]:
            break
        optimizer.zero_grad()
        (-logsigmoid(settings.beta * margin)).backward()
        optimizer.step()
    change = first[0].exp() - start_first[0].exp()
    top = change.topk(TOP)
    tokens = [bench.bench.tokenizer.decode([i]) for i in top.indices.tolist()]
    assert start is not None
    return {
        "chosen_logp": float(start[0]),
        "curve": curve,
        "gains": list(zip(tokens, top.values.tolist(), strict=True)),
    }
