"""Short training runs of tiny policies: supervised, and with any objective on pairs.

The loop is deliberately the smallest there is; `tokenq train` is the real one. Log-probabilities
come from the same packed forward and losses are the objectives of `tokenq.objectives`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from tokenq.models.logps import token_logps
from tokenq.objectives import SFT, Metrics, PairLogps, ResponseLogps, StepFeatures
from tokenq.reproduce.synthetic.policies import Ids, scores

PairLoss = Callable[[PairLogps], tuple[Tensor, Metrics]]
"""Any objective of kind "preference"."""

ONE_PACK = 1 << 20
"""Token budget of a training forward: the batches are small, one pack holds them."""


@dataclass(frozen=True)
class Schedule:
    """Length and pace of a run: AdamW, linear warm-up over a tenth, then linear to zero.

    steps:         optimiser steps
    batch_size:    rows of a step
    learning_rate: its highest value
    """

    steps: int
    batch_size: int
    learning_rate: float

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        warmup = max(1, self.steps // 10)
        return self.learning_rate * min((step + 1) / warmup, (self.steps - step) / self.steps)


@dataclass(frozen=True)
class Pairs:
    """Preference rows as token ids.

    chosen_edits, rejected_edits: per token, whether it differs from the other side; or None
    """

    prompts: list[Ids]
    chosen: list[Ids]
    rejected: list[Ids]
    chosen_edits: list[list[bool]] | None = None
    rejected_edits: list[list[bool]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)


class Reference(Protocol):
    """What the log-ratios of a run are taken against."""

    def logps(self, rows: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Per-token log-probs of the chosen and the rejected responses of these rows."""
        ...

    def follow(self, policy: LlamaForCausalLM, step: int) -> None:
        """Take notice of the policy after `step` steps."""
        ...


class FixedReference:
    """Scores that were computed once.

    chosen, rejected: [T_i] tensors, one a row of the pairs
    """

    def __init__(self, chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> None:
        self.sides = (list(chosen), list(rejected))

    @classmethod
    def of(cls, model: LlamaForCausalLM, pairs: Pairs) -> "FixedReference":
        """The scores of `model`."""
        return cls(
            scores(model, pairs.prompts, pairs.chosen),
            scores(model, pairs.prompts, pairs.rejected),
        )

    def logps(self, rows: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """See :class:`Reference`."""
        chosen, rejected = self.sides
        return [chosen[row] for row in rows], [rejected[row] for row in rows]

    def follow(self, policy: LlamaForCausalLM, step: int) -> None:
        """It stays where it is."""


class AveragedReference:
    """A model that moves towards the policy: soft updates of TR-DPO (arXiv 2404.09656).

    Each `every` steps `ref <- mixup * policy + (1 - mixup) * ref`, weight by weight.
    """

    def __init__(self, model: LlamaForCausalLM, pairs: Pairs, mixup: float, every: int) -> None:
        self.model = model
        self._pairs = pairs
        self._mixup = mixup
        self._every = every

    def logps(self, rows: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """See :class:`Reference`."""
        chosen = [self._pairs.chosen[row] for row in rows]
        rejected = [self._pairs.rejected[row] for row in rows]
        prompts = [self._pairs.prompts[row] for row in rows]
        both = scores(self.model, prompts * 2, chosen + rejected)
        return both[: len(rows)], both[len(rows) :]

    @torch.no_grad()
    def follow(self, policy: LlamaForCausalLM, step: int) -> None:
        """See :class:`Reference`."""
        if step % self._every == 0:
            for own, other in zip(self.model.parameters(), policy.parameters(), strict=True):
                own.lerp_(other, self._mixup)


def fit_responses(
    model: LlamaForCausalLM,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    schedule: Schedule,
    seed: int,
) -> None:
    """Supervised training in place."""
    objective = SFT()

    def loss(rows: Sequence[int]) -> Tensor:
        logps = token_logps(
            model,
            [prompts[row] for row in rows],
            [responses[row] for row in rows],
            token_budget=ONE_PACK,
        )
        return objective(ResponseLogps(*padded(logps)))[0]

    for _ in _steps(model, len(prompts), loss, schedule, seed):
        pass


def fit_pairs(
    model: LlamaForCausalLM,
    pairs: Pairs,
    objective: PairLoss,
    reference: Reference,
    schedule: Schedule,
    seed: int,
) -> Iterator[int]:
    """Preference training in place; yields the number of steps done after each of them."""

    def loss(rows: Sequence[int]) -> Tensor:
        return objective(pair_logps(model, pairs, reference, rows))[0]

    for step in _steps(model, len(pairs), loss, schedule, seed):
        reference.follow(model, step)
        yield step


def pair_logps(
    model: LlamaForCausalLM, pairs: Pairs, reference: Reference, rows: Sequence[int]
) -> PairLogps:
    """What an objective is called with for these rows, differentiable in `model`."""
    prompts = [pairs.prompts[row] for row in rows]
    responses = [side[row] for side in (pairs.chosen, pairs.rejected) for row in rows]
    both = token_logps(model, prompts * 2, responses, token_budget=ONE_PACK)
    ref_chosen, ref_rejected = reference.logps(rows)
    chosen, chosen_mask = padded(both[: len(rows)])
    rejected, rejected_mask = padded(both[len(rows) :])
    return PairLogps(
        chosen,
        rejected,
        padded(ref_chosen)[0],
        padded(ref_rejected)[0],
        chosen_mask,
        rejected_mask,
        _features(pairs.chosen_edits, rows),
        _features(pairs.rejected_edits, rows),
    )


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[T_i] rows as [B, T] and the [B, T] bool mask of what is real."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), mask


def _features(edits: list[list[bool]] | None, rows: Sequence[int]) -> StepFeatures:
    if edits is None:
        return StepFeatures()
    return StepFeatures(edits=padded([torch.tensor(edits[row]) for row in rows])[0])


def _steps(
    model: LlamaForCausalLM,
    count: int,
    loss: Callable[[Sequence[int]], Tensor],
    schedule: Schedule,
    seed: int,
) -> Iterator[int]:
    """Optimise `loss` over shuffled rows; yields the number of steps done after each."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    batches = _batches(count, schedule.batch_size, random.Random(seed))
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.zero_grad()
        loss(next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step + 1


def _batches(count: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    """Row numbers, shuffled anew in every pass; a pass leaves out what fills no batch."""
    while True:
        order = draw.sample(range(count), count)
        size = min(size, count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
