"""What might tell before training how much a pair will displace its chosen answer.

All are read from the start; the higher, the more displacement is predicted.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from random import Random
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tokenq.data.prefix import common_prefix_length
from tokenq.models.forward import response_hidden
from tokenq.models.reference import scoring
from tokenq.monitor.similarity import pair_similarities
from tokenq.reproduce.mass_displacement.answers import Pair
from tokenq.reproduce.mass_displacement.bench import DisplacementBench

PREDICTORS = {
    "CHES": "<sum h+, sum h-> - |sum h+|^2",
    "CHES of means": "the same of mean hidden states",
    "head gradients": "first-order fall of log pi(y+) if only the head moved",
    "head cosine": "cosine of both answers' gradients for the head",
    "fork geometry": "first-order fall of the first differing token if its hidden state moved",
    "last state": "<h+, h-> of the last tokens",
    "own gradients": "first-order fall of log pi(y+) for the weights that are trained",
    "token overlap": "share of tokens in common, in order (less edit distance)",
    "shorter rejected": "tokens of chosen less tokens of rejected",
    "likelier rejected": "log pi(y-) - log pi(y+)",
    "likely chosen": "log pi(y+), which says how far it could still rise",
    "random": "a number drawn at random",
}
"""Name and meaning."""


def predictors(bench: DisplacementBench, pairs: Sequence[Pair], seed: int) -> list[dict[str, Any]]:
    """What :data:`PREDICTORS` names, without `own gradients`, which takes a backward pass, and
    `likely chosen`, which the record of a run has anyway.
    """
    draw = Random(f"random {seed}")
    prompts = [bench.training[pair.prompt] for pair in pairs]
    chosen = [bench.ids(p, pair.chosen) for p, pair in zip(prompts, pairs, strict=True)]
    rejected = [bench.ids(p, pair.rejected) for p, pair in zip(prompts, pairs, strict=True)]
    questions = [ids for ids, _ in chosen]
    ours, theirs = [ids for _, ids in chosen], [ids for _, ids in rejected]
    similar = pair_similarities(bench.model, questions, ours, theirs, gradients=True)
    with scoring(bench.model) as model:
        states = response_hidden(model, questions * 2, ours + theirs)
        likely = [
            bench.sums(model, prompts, [getattr(pair, side) for pair in pairs])
            for side in ("chosen", "rejected")
        ]
    head: Any = bench.model.get_output_embeddings()
    rows = []
    for i, found in enumerate(similar):
        assert found.gradients is not None
        own, other = states[i], states[len(pairs) + i]
        rows.append(
            {
                "CHES": found.ches,
                "CHES of means": found.ches_normalised,
                "head gradients": -found.gradients.chosen_change,
                "head cosine": found.gradients.cosine,
                "fork geometry": -fork_change(head.weight.detach(), own, ours[i], theirs[i]),
                "last state": float(own[-1] @ other[-1]),
                "token overlap": SequenceMatcher(None, ours[i], theirs[i], False).ratio(),
                "shorter rejected": float(len(ours[i]) - len(theirs[i])),
                "likelier rejected": float(likely[1][i] - likely[0][i]),
                "random": draw.random(),
            }
        )
    return rows


def fork_change(
    weight: Tensor, states: Tensor, chosen: Sequence[int], rejected: Sequence[int]
) -> float:
    """Change of log pi of the first differing chosen token if the state before it moved freely.

    The margin's gradient in that state is W+ - W-, so log pi(y+) changes by
    <W+ - E_pi W, W+ - W-> per unit of step (single tokens, section 4 of 2410.08847).

    weight: [V, H] output embeddings; states: [T, H] that the chosen tokens are predicted from
    """
    at = common_prefix_length(list(chosen), list(rejected))
    direction = (weight[chosen[at]] - weight[rejected[at]]).double()
    probabilities = torch.softmax(states[at] @ weight.T, dim=-1).double()
    # <E_pi W, d> without a copy of W in fp64.
    pulls = (weight @ direction.to(weight.dtype)).double()
    return float(weight[chosen[at]].double() @ direction - probabilities @ pulls)


def own_gradients(
    bench: DisplacementBench, policy: PeftModel, weights: Sequence[nn.Parameter], pair: Pair
) -> float:
    """Nats that log pi(y+) loses for a nat of margin, at first: -<g+, g+ - g-> / |g+ - g-|^2."""
    prompt = bench.training[pair.prompt]
    ours, theirs = (
        torch.autograd.grad(bench.sums(policy, [prompt], [answer])[0], weights)
        for answer in (pair.chosen, pair.rejected)
    )
    product = sum(float((a * (a - b)).sum()) for a, b in zip(ours, theirs, strict=True))
    size = sum(float(((a - b) ** 2).sum()) for a, b in zip(ours, theirs, strict=True))
    return -product / size
