"""Greedy decoding and sampling: several responses to a prompt that is read once.

Finished responses leave the batch, so a step costs what its open ones cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from tokenq.search.decoding import Decoding, DecodingOptions, whole
from tokenq.search.results import SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.target import Given, Prompt, Target
from tokenq.search.warping import Warping

Choose = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Takes log-probabilities [R, V] of what may follow, the numbers [N] of the open responses and the
step (from 0); N = R * m, m responses behind each row. Returns tokens [N] and their
log-probabilities [N] under the law that they were chosen by."""


@dataclass(frozen=True)
class SampleOptions:
    """What decides a sample; see :func:`sample`."""

    num_return_sequences: int = 1
    warping: Warping = field(default_factory=Warping)
    seed: int = 0

    def __post_init__(self) -> None:
        whole("num_return_sequences", self.num_return_sequences, 1)
        whole("seed", self.seed, 0)


def greedy(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Return one response to each prompt, of the likeliest token at every step.

    pair_or_model: a pair; a bare model, for prompts that are lists of token ids; or
                   {"policy": model, ...}
    prompts:       texts, lists of messages, or lists of token ids
    decoding:      see :class:`Decoding`

    It is beam search of width 1, and, without processors, greedy `generate` of `transformers`. A
    processor whose result depends on the scale of what it is shown, such as a repetition penalty,
    acts here on log-probabilities, there on logits. A result's score is its log-probability. A
    prompt has no result where every token is forbidden before its response has ended. Raises
    UserError for options out of range and prompts that the models cannot read.
    """
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model)
    return run(target, prompts, settings, lambda batch: grow(batch, 1, _likeliest))


def sample(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    num_return_sequences: int = 1,
    max_new_tokens: int = 64,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Return `num_return_sequences` independent samples for each prompt, in the order drawn.

    pair_or_model: a pair; a bare model, for prompts that are lists of token ids; or
                   {"policy": model, ...}
    prompts:       texts, lists of messages, or lists of token ids
    temperature, top_k, top_p, min_p: the law of each token, see :class:`Warping`; the policy's own
                   unless given. The names are those of `transformers`, where top_k is 50 unless
                   switched off
    seed:          the samples of a prompt depend on it and on the prompt, not on the other prompts,
                   `batch_size`, or how many samples are drawn: more only adds to them
    decoding:      see :class:`Decoding`

    `score` and `logps` of a result are the policy's own; details["sampled_logp"] is the response's
    log-probability under the law that it was drawn from, nats. Samples that come to where every
    token is forbidden are left out. Raises UserError for options out of range and prompts that the
    models cannot read.
    """
    options = SampleOptions(num_return_sequences, Warping(temperature, top_k, top_p, min_p), seed)
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model)
    return run(target, prompts, settings, lambda batch: samples(batch, options))


def samples(batch: Batch, options: SampleOptions) -> list[list[Found]]:
    """Draw samples behind each prompt of a batch; see :func:`sample`."""
    count = options.num_return_sequences
    size = (count, batch.rules.decoding.max_new_tokens)
    drawn = [generator.random(size) for generator in batch.generators(options.seed)]
    chances = torch.from_numpy(np.concatenate(drawn))

    def choose(logps: Tensor, responses: Tensor, step: int) -> tuple[Tensor, Tensor]:
        here = chances[responses, step].view(len(logps), -1)
        tokens, law = drawn_tokens(options.warping(logps), here)
        return tokens.flatten(), law.flatten()

    return grow(batch, count, choose)


def drawn_tokens(logps: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [R, m] at which each row's cumulative probability passes `chances`, and their
    log-probabilities [R, m] in the normalised law.

    logps:   [R, V] up to a number a row; -inf: never drawn
    chances: [R, m] uniform numbers in [0, 1)
    """
    reached = logps.exp().cumsum(-1, dtype=torch.float64)
    total = reached[:, -1:]
    # Rounded up to the total, a number would lie behind every token.
    wanted = torch.minimum(
        chances.to(reached) * total, torch.nextafter(total, torch.zeros_like(total))
    )
    tokens = torch.searchsorted(reached, wanted, right=True)
    return tokens, logps.gather(1, tokens) - total.log()


def grow(batch: Batch, count: int, choose: Choose) -> list[list[Found]]:
    """`count` responses behind each prompt, a token each at every step, until all have ended.

    Response number p * count + j is the j-th behind prompt p of the batch. Those that come to where
    every token is forbidden are left out.
    """
    branches, rules = batch.branches, batch.rules
    frontier = branches.open()
    going = torch.arange(len(batch.prompts) * count)
    rows = going // count
    state = _Responses(batch, count)
    step = 0
    while len(going):
        allowed = rules.allowed(branches, frontier.nodes, frontier.searched)
        dead = allowed.amax(-1) == -torch.inf
        if dead.any():
            possible = ~dead.cpu()[rows]
            going, rows, allowed = going[possible], rows[possible], allowed[~dead]
            if not len(going):
                break
        tokens, logps = choose(allowed, going, step)
        step += 1
        moves = frontier.moves(rows, tokens)
        nodes = branches.place(moves)
        state.append(going.tolist(), moves.tokens.tolist(), moves.searched.tolist(), logps.tolist())
        open_places = state.end(going.tolist(), nodes.tolist())
        state.tell(step)
        some_ended = len(open_places) < len(going)
        going, nodes = going[open_places], nodes[open_places]
        if len(going):
            if some_ended:
                branches.retain(nodes)
            frontier = branches.read(nodes)
            rows = torch.arange(len(going))
    return state.found()


class _Responses:
    """The responses of a batch as they grow, in plain lists: what is asked of each at every step
    must cost little."""

    def __init__(self, batch: Batch, count: int) -> None:
        total = len(batch.prompts) * count
        self.batch, self.count = batch, count
        self.tokens: list[list[int]] = [[] for _ in range(total)]
        self.logps = [0.0] * total
        self.chosen_logps = [0.0] * total
        self.traced = [-1] * total
        self.ended: list[Found | None] = [None] * total
        self._numbers: list[dict[tuple[int, int], int]] = [{} for _ in batch.prompts]

    def append(
        self, numbers: list[int], tokens: list[int], logps: list[float], chosen: list[float]
    ) -> None:
        """Put a token behind each of the responses `numbers`."""
        for number, token, logp, chosen_logp in zip(numbers, tokens, logps, chosen, strict=True):
            self.tokens[number].append(token)
            self.logps[number] += logp
            self.chosen_logps[number] += chosen_logp
            if self.batch.traces is not None:
                self._trace(number, token, logp)

    def end(self, numbers: list[int], nodes: list[int]) -> list[int]:
        """Take out the responses that end here; return the places of those that go on."""
        going = []
        for place, (number, node) in enumerate(zip(numbers, nodes, strict=True)):
            finish = self.batch.rules.finish(self.tokens[number])
            if finish is None:
                going.append(place)
                continue
            self.ended[number] = Found(
                self.batch.branches.path(node),
                self.logps[number],
                finish,
                {"sampled_logp": self.chosen_logps[number]},
                self.traced[number],
            )
        return going

    def tell(self, step: int) -> None:
        """Report the first response of each prompt that took this step."""
        if self.batch.rules.decoding.on_step is None:
            return
        for prompt in range(len(self.batch.prompts)):
            theirs = range(prompt * self.count, (prompt + 1) * self.count)
            first = next((n for n in theirs if len(self.tokens[n]) == step), None)
            if first is not None:
                self.batch.tell(prompt, step, list(self.tokens[first]), self.logps[first])

    def found(self) -> list[list[Found]]:
        """The ended responses of each prompt."""
        return [
            [one for one in self.ended[start : start + self.count] if one is not None]
            for start in range(0, len(self.ended), self.count)
        ]

    def _trace(self, number: int, token: int, logp: float) -> None:
        """Responses that begin alike share nodes; `visits` says how many go through each."""
        assert self.batch.traces is not None
        prompt = number // self.count
        trace, numbers = self.batch.traces[prompt], self._numbers[prompt]
        key = (self.traced[number], token)
        if key not in numbers:
            numbers[key] = trace.add(*key, self.logps[number], logp)
        self.traced[number] = numbers[key]
        trace.nodes[numbers[key]].visits += 1


def _likeliest(logps: Tensor, responses: Tensor, step: int) -> tuple[Tensor, Tensor]:
    best = logps.max(-1)
    return best.indices, best.values
