"""Random batches of every kind for tests of objectives, ordinary and hostile, all features filled.

`batch_for(objective, draw)` gives the batch that an objective is called with.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tokenq.objectives import (
    LabelledLogps,
    PairLogps,
    RankedLogps,
    ResponseLogps,
    StepFeatures,
)
from tokenq.objectives.batch import Batch

ANSWERS = 3
"""Answers to a prompt of a ranked batch."""


@dataclass(frozen=True)
class Draw:
    """How a batch is drawn.

    keep:      share of steps that are real
    log_ratio: if not 0, every step of a response has the log-ratio +log_ratio or -log_ratio
    empty:     every third row of each side has no real step
    identical: the answers of a row are the same
    poison:    what stands under a False mask is NaN or -inf
    """

    seed: int = 0
    dtype: torch.dtype = torch.float64
    rows: int = 8
    width: int = 6
    keep: float = 0.7
    log_ratio: float = 0.0
    empty: bool = False
    identical: bool = False
    poison: bool = False


ORDINARY = Draw()

HOSTILE: dict[str, Draw] = {
    "log-ratios of 1e4": Draw(log_ratio=1e4),
    "log-ratios of 1e4 in fp32": Draw(log_ratio=1e4, dtype=torch.float32),
    "log-ratios of 1e4 in bf16": Draw(log_ratio=1e4, dtype=torch.bfloat16),
    "bf16": Draw(dtype=torch.bfloat16),
    "empty responses": Draw(empty=True),
    "all masked": Draw(keep=0.0),
    "no steps": Draw(width=0),
    "no rows": Draw(rows=0),
    "one row": Draw(rows=1),
    "identical answers": Draw(identical=True, keep=1.0),
    "NaN under the mask": Draw(poison=True),
    "empty, NaN under the mask": Draw(poison=True, empty=True),
}


def random_responses(draw: Draw = ORDINARY) -> ResponseLogps:
    """One response per row."""
    return _side(draw, 0)


def random_pair(draw: Draw = ORDINARY) -> PairLogps:
    """Two responses per row; the rejected side is two steps wider unless they are identical."""
    wider = draw if draw.identical or not draw.width else replace(draw, width=draw.width + 2)
    return _pair(_side(draw, 0), _side(wider, 1))


def pair_of(chosen: list[list[float]], rejected: list[list[float]]) -> PairLogps:
    """Pairs with these log-ratios of the tokens of each response, in fp64."""

    def side(log_ratios: list[list[float]]) -> ResponseLogps:
        width = max(map(len, log_ratios))
        rows = [[*row, *[math.nan] * (width - len(row))] for row in log_ratios]
        ratios = torch.tensor(rows, dtype=torch.float64)
        ref_logps = torch.arange(ratios.numel(), dtype=torch.float64).view_as(ratios) / -8 - 9
        return ResponseLogps((ref_logps + ratios).requires_grad_(), ~ratios.isnan(), ref_logps)

    return _pair(side(chosen), side(rejected))


def random_labelled(draw: Draw = ORDINARY) -> LabelledLogps:
    """Responses with bool labels, good and bad in turn, and mismatched ones."""
    labels = torch.arange(draw.rows) % 2 == 0
    return LabelledLogps(_side(draw, 0), labels, _side(draw, 1))


def random_ranked(draw: Draw = ORDINARY) -> RankedLogps:
    """`ANSWERS` responses per row: lists without ties, with a tie, and with an absent answer."""
    answers = _side(replace(draw, rows=draw.rows * ANSWERS), 0)
    if draw.identical:
        answers = _rows(answers, torch.arange(draw.rows).repeat_interleave(ANSWERS))
    patterns = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 0, 1], [-1, 1, 0]])
    ranks = patterns[torch.arange(draw.rows) % len(patterns)]
    mask = answers.mask & (ranks >= 0).flatten()[:, None]
    return RankedLogps(replace(answers, mask=mask), ranks)


def batch_for(objective: Any, draw: Draw = ORDINARY) -> Batch:
    """Return a batch of the objective's kind."""
    make = {
        "sft": random_responses,
        "preference": random_pair,
        "unpaired": random_labelled,
        "ranked": random_ranked,
    }
    return make[objective.kind](draw)


def policy_tensors(batch: Any) -> list[Tensor]:
    """All that a policy's gradient flows through: log-probs, and the features kl and logits."""
    return [
        tensor
        for side in _sides(batch)
        for tensor in (side.logps, side.features.kl, side.features.logits)
        if tensor is not None
    ]


def take_rows(batch: Any, index: Tensor) -> Any:
    """Return the batch of these rows alone; differentiable."""
    match batch:
        case ResponseLogps():
            return _rows(batch, index)
        case PairLogps():
            return _pair(_rows(batch.chosen_side, index), _rows(batch.rejected_side, index))
        case LabelledLogps():
            mismatched = None if batch.mismatched is None else _rows(batch.mismatched, index)
            return LabelledLogps(_rows(batch.responses, index), batch.labels[index], mismatched)
        case RankedLogps():
            width = batch.ranks.shape[1]
            answers = (index[:, None] * width + torch.arange(width)).flatten()
            return RankedLogps(_rows(batch.answers, answers), batch.ranks[index])
    raise TypeError(type(batch))


def without_features(batch: Any, keep: frozenset[str]) -> Any:
    """Return the batch with only those step features that `keep` names."""

    def bare(side: ResponseLogps) -> ResponseLogps:
        kept = {name: value for name, value in vars(side.features).items() if name in keep}
        return replace(side, features=StepFeatures(**kept))

    match batch:
        case ResponseLogps():
            return bare(batch)
        case PairLogps():
            return _pair(bare(batch.chosen_side), bare(batch.rejected_side))
        case LabelledLogps():
            mismatched = None if batch.mismatched is None else bare(batch.mismatched)
            return LabelledLogps(bare(batch.responses), batch.labels, mismatched)
        case RankedLogps():
            return RankedLogps(bare(batch.answers), batch.ranks)
    raise TypeError(type(batch))


def assert_finite(objective: Any, batch: Any) -> None:
    """The loss, its metrics and its gradients hold neither NaN nor inf."""
    loss, metrics = objective(batch)
    assert loss.isfinite(), f"loss {loss}"
    for name, value in metrics.items():
        assert value.isfinite(), f"{name} {value}"
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, policy_tensors(batch), allow_unused=True)
        for gradient in gradients:
            assert gradient is None or gradient.isfinite().all(), gradient


def _side(draw: Draw, number: int) -> ResponseLogps:
    generator = torch.Generator().manual_seed(1000 * draw.seed + number * (not draw.identical))
    shape = (draw.rows, draw.width)

    def uniform(low: float, high: float) -> Tensor:
        values = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return values.to(draw.dtype)

    mask = torch.rand(shape, generator=generator) < draw.keep
    if draw.empty:
        mask[number::3] = False
    logps, ref_logps, kl = uniform(-3, 0), uniform(-3, 0), uniform(0, 3)
    if draw.log_ratio:
        up = (torch.rand(draw.rows, 1, generator=generator) < 0.5).expand(shape)
        logps = torch.where(up, logps.new_zeros(()), -draw.log_ratio).to(draw.dtype)
        ref_logps = torch.where(up, -draw.log_ratio, logps.new_zeros(())).to(draw.dtype)
        kl = kl + draw.log_ratio
    logits = (1 + draw.log_ratio) * uniform(-5, 5)
    segments = torch.cumsum(torch.rand(shape, generator=generator) < 0.4, dim=-1)
    features = StepFeatures(
        kl=kl,
        collision=uniform(-3, 0),
        logits=logits,
        rewards=uniform(-1, 1),
        edits=torch.rand(shape, generator=generator) < 0.3,
        segments=segments,
    )
    side = ResponseLogps(logps, mask, ref_logps, features)
    if draw.poison:
        side = _poisoned(side)
    for tensor in policy_tensors(side):
        tensor.requires_grad_()
    return side


def _poisoned(side: ResponseLogps) -> ResponseLogps:
    def poison(values: Tensor | None, with_what: float) -> Tensor | None:
        if values is None or not values.is_floating_point():
            return values
        return torch.where(side.mask, values, with_what).to(values.dtype)

    features = {
        field.name: poison(getattr(side.features, field.name), torch.nan)
        for field in fields(StepFeatures)
    }
    logps, ref_logps = poison(side.logps, -torch.inf), poison(side.ref_logps, torch.nan)
    assert logps is not None
    return ResponseLogps(logps, side.mask, ref_logps, StepFeatures(**features))


def _sides(batch: Any) -> list[ResponseLogps]:
    match batch:
        case ResponseLogps():
            return [batch]
        case PairLogps():
            return [batch.chosen_side, batch.rejected_side]
        case LabelledLogps():
            return [batch.responses, *([] if batch.mismatched is None else [batch.mismatched])]
        case RankedLogps():
            return [batch.answers]
    raise TypeError(type(batch))


def _pair(chosen: ResponseLogps, rejected: ResponseLogps) -> PairLogps:
    assert chosen.ref_logps is not None
    assert rejected.ref_logps is not None
    return PairLogps(
        chosen.logps, rejected.logps, chosen.ref_logps, rejected.ref_logps,
        chosen.mask, rejected.mask, chosen.features, rejected.features,
    )  # fmt: skip


def _rows(side: ResponseLogps, index: Tensor) -> ResponseLogps:
    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index]

    features = {
        field.name: take(getattr(side.features, field.name)) for field in fields(StepFeatures)
    }
    return ResponseLogps(
        side.logps[index], side.mask[index], take(side.ref_logps), StepFeatures(**features)
    )
