"""Stochastic beam search: samples of which no two are the same, and what they say of the law.

Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them" (arXiv 1903.06059). Every
response has a Gumbel number added to its log-probability; the k with the greatest sums are a
sample without replacement, and a beam finds them without looking at the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import Frontier, Moves
from tokenq.search.decoding import Decoding, DecodingOptions, whole
from tokenq.search.results import SearchResult, SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.target import Given, Prompt, Target
from tokenq.search.warping import Warping

Noise = Callable[[int, Sequence[Sequence[int]], int], Tensor]
"""Takes a prompt's number in the batch, responses so far [R] and the number of tokens V; returns
Gumbel numbers [R, V], one for each continuation. For no response, (), and V = 1: the root's."""


@dataclass(frozen=True)
class StochasticBeamOptions:
    """What decides a stochastic beam search; see :func:`stochastic_beam_search`."""

    num_beams: int = 5
    warping: Warping = field(default_factory=Warping)
    seed: int = 0

    def __post_init__(self) -> None:
        whole("num_beams", self.num_beams, 1)
        whole("seed", self.seed, 0)


def stochastic_beam_search(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    num_beams: int = 5,
    max_new_tokens: int = 64,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Return `num_beams` different responses to each prompt, sampled without replacement.

    pair_or_model: a pair; a bare model, for prompts that are lists of token ids; or
                   {"policy": model, ...}
    prompts:       texts, lists of messages, or lists of token ids
    num_beams:     how many; fewer are returned where the law has no more
    temperature, top_k, top_p, min_p: the law of each token, see :class:`Warping`; the policy's own
                   unless given
    seed:          the responses depend on it and on the prompt, not on what is searched beside it
    decoding:      see :class:`Decoding`

    Responses come in the order in which sampling without replacement draws them. A result's score
    is its perturbed log-probability; details hold "sampled_logp", the log-probability under the law
    that was sampled, "inclusion", the probability of standing above the threshold (the first
    perturbed log-probability that is not returned), and "weight", the former over the latter; see
    :func:`expectation`. Raises UserError for options out of range and prompts that the models
    cannot read.
    """
    options = StochasticBeamOptions(num_beams, Warping(temperature, top_k, top_p, min_p), seed)
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model)
    return run(target, prompts, settings, lambda batch: _search(batch, options))


def expectation(
    found: Sequence[SearchResult], values: Sequence[float], *, normalised: bool = False
) -> float:
    """Estimate the mean of a function of responses, from a sample without replacement.

    found:      the results of one prompt
    values:     the function at each
    normalised: divide by the sum of the weights: a little bias, often much less variance

    The importance-weighted estimator of arXiv 1903.06059: the sum of `weight * value`, unbiased
    under the law that was sampled (max_new_tokens being part of it).
    """
    weights = np.array([one.details["weight"] for one in found])
    total = float(weights @ np.asarray(values, dtype=np.float64))
    return total / float(weights.sum()) if normalised else total


def perturbed_children(parents: Tensor, free: Tensor) -> Tensor:
    """[R, m] perturbed log-probabilities of continuations, so that each row's greatest is its
    parent's. They keep the order of `free`.

    parents: [R] perturbed log-probabilities of what is continued
    free:    [R, m] log-probabilities of the continuations as wholes plus Gumbel numbers, float64;
             the greatest of all continuations must be among them

    Gumbel numbers given their maximum (appendix B of arXiv 1903.06059).
    """
    greatest = free.amax(-1, keepdim=True)
    above = parents[:, None]
    shift = above - free + _log1mexp(free - greatest)
    return above - shift.clamp_min(0) - torch.log1p(torch.exp(-shift.abs()))


@dataclass(eq=False)
class _Leaf:
    """A response that has ended: its log-probability under the sampled law and itself."""

    logp: float
    found: Found


@dataclass(eq=False)
class _Lot:
    """One prompt's responses that stand above all others so far; those that have not ended first.

    rows:      of the frontier where the open ones stand
    logps:     their log-probabilities under the sampled law; perturbed: with the Gumbel numbers
    trace:     their trace nodes
    leaves:    the ended ones
    """

    rows: slice
    logps: list[float]
    perturbed: list[float]
    trace: list[int]
    leaves: list[_Leaf] = field(default_factory=list)


def _search(
    batch: Batch, options: StochasticBeamOptions, noise: Noise | None = None
) -> list[list[Found]]:
    noise = noise or gumbels(batch, options.seed)
    branches = batch.branches
    frontier = branches.open()
    lots = [
        _Lot(slice(p, p + 1), [0.0], [float(noise(p, (), 1))], [-1])
        for p in range(len(batch.prompts))
    ]
    step = 0
    while any(lot.logps for lot in lots):
        step += 1
        allowed = batch.rules.allowed(branches, frontier.nodes, frontier.searched)
        _check_possible(batch, frontier.prompts, allowed, step - 1)
        law = torch.log_softmax(options.warping(allowed).double(), -1)
        going: list[Tensor] = []
        for prompt, lot in enumerate(lots):
            if lot.logps:
                going.append(_step(batch, prompt, lot, frontier, law, noise, step, options))
        nodes = torch.cat(going)
        if len(nodes):
            branches.retain(nodes)
            frontier = branches.read(nodes)
        start = 0
        for lot in lots:
            lot.rows = slice(start, start + len(lot.logps))
            start += len(lot.logps)
    return [_weighted(lot, options.num_beams) for lot in lots]


def gumbels(batch: Batch, seed: int) -> Noise:
    """Fresh Gumbel numbers for every continuation, by the prompt's own generator."""
    generators = batch.generators(seed)

    def draw(prompt: int, responses: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
        size = (max(len(responses), 1), vocabulary)
        return -torch.from_numpy(generators[prompt].standard_exponential(size)).log()

    return draw


def _step(
    batch: Batch,
    prompt: int,
    lot: _Lot,
    frontier: Frontier,
    law: Tensor,
    noise: Noise,
    step: int,
    options: StochasticBeamOptions,
) -> Tensor:
    """One token more for a prompt's open responses; returns the nodes of those that go on."""
    tree = batch.branches.tree
    here = law[lot.rows]
    written = [tree.response(node) for node in frontier.nodes[lot.rows].tolist()]
    logps = here.new_tensor(lot.logps)[:, None] + here
    free = logps + noise(prompt, written, here.shape[1]).to(here)
    # One more than is wanted: the first that is left out is the threshold of the weights.
    width = options.num_beams + 1
    likely = free.topk(min(width, free.shape[1]), dim=-1)
    children = perturbed_children(here.new_tensor(lot.perturbed), likely.values).flatten()
    best = torch.topk(children, min(width, len(children)))
    possible = best.values > -torch.inf
    values, index = best.values[possible], best.indices[possible]
    # Ended responses compete with the open ones.
    ended = sorted((leaf.found.score for leaf in lot.leaves), reverse=True)
    both = sorted([*values.tolist(), *ended], reverse=True)
    least = both[width - 1] if len(both) >= width else -math.inf
    values, index = values[values >= least], index[values >= least]
    lot.leaves = [leaf for leaf in lot.leaves if leaf.found.score >= least]
    rows = torch.div(index, likely.indices.shape[1], rounding_mode="floor")
    tokens = likely.indices.flatten()[index]
    moves = frontier.moves(lot.rows.start + rows, tokens)
    nodes = batch.branches.place(moves)
    return _divide(
        batch, prompt, lot, moves, nodes, values, logps[rows, tokens], rows, written, step
    )


def _divide(
    batch: Batch,
    prompt: int,
    lot: _Lot,
    moves: Moves,
    nodes: Tensor,
    perturbed: Tensor,
    logps: Tensor,
    rows: Tensor,
    written: Sequence[list[int]],
    step: int,
) -> Tensor:
    """Put what ends among the leaves and keep what goes on; returns the nodes of the latter."""
    going, best = [], None
    trace = _traced(batch, prompt, lot.trace, rows.tolist(), moves, perturbed)
    for place, (row, token) in enumerate(zip(rows.tolist(), moves.tokens.tolist(), strict=True)):
        response = [*written[row], token]
        finish = batch.rules.finish(response)
        if finish is None:
            best = best or (response, float(perturbed[place]))
            going.append(place)
            continue
        path = batch.branches.path(int(nodes[place]))
        found = Found(path, float(perturbed[place]), finish, {}, trace[place])
        lot.leaves.append(_Leaf(float(logps[place]), found))
        if batch.traces is not None:
            batch.traces[prompt].nodes[trace[place]].fate = "finished"
    lot.logps, lot.perturbed = logps[going].tolist(), perturbed[going].tolist()
    lot.trace = [trace[place] for place in going]
    if best is not None:
        batch.tell(prompt, step, *best)
    return nodes[torch.tensor(going, dtype=torch.long)]


def _weighted(lot: _Lot, num_beams: int) -> list[Found]:
    """The leaves with their weights, the greatest perturbed log-probability first."""
    leaves = sorted(lot.leaves, key=lambda leaf: -leaf.found.score)
    threshold = leaves[num_beams].found.score if len(leaves) > num_beams else -math.inf
    found = []
    for leaf in leaves[:num_beams]:
        inclusion = log_inclusion(leaf.logp, threshold)
        details = {
            "sampled_logp": leaf.logp,
            "inclusion": math.exp(inclusion),
            "weight": math.exp(leaf.logp - inclusion),
        }
        found.append(replace(leaf.found, details=details))
    return found


def log_inclusion(logp: float, threshold: float) -> float:
    """log P(logp + Gumbel > threshold) = log(1 - exp(-exp(logp - threshold)))."""
    rate = logp - threshold
    # Where the rate is tiny the probability is the rate itself, and 1 - exp would round to 0.
    return rate if rate < -30 else math.log(-math.expm1(-math.exp(min(rate, 30.0))))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact at both ends."""
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _traced(
    batch: Batch, prompt: int, parents: list[int], rows: list[int], moves: Moves, values: Tensor
) -> list[int]:
    if batch.traces is None:
        return [-1] * len(rows)
    trace = batch.traces[prompt]
    return [
        trace.add(parents[row], int(moves.tokens[n]), float(values[n]), float(moves.searched[n]))
        for n, row in enumerate(rows)
    ]


def _check_possible(batch: Batch, prompts: Tensor, allowed: Tensor, step: int) -> None:
    """Raise UserError where nothing may follow a row; allowed: [R, V], of prompts [R]."""
    dead = (allowed.amax(-1) == -torch.inf).nonzero()
    if len(dead):
        number = batch.numbers[int(prompts[int(dead[0])])]
        raise UserError(
            f"prompt {number}: every token is forbidden after {step} of the response; accepted: "
            "options (bad_words_ids, no_repeat_ngram_size, min_new_tokens, logits_processor) that "
            "leave one"
        )
