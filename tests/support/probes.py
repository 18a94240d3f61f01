"""Pairs and models for tests of the prober, and plain forwards to check it against."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenq.models.forward import causal_lm
from tokenq.monitor.readings import ProbePair, ProbeSet

END = 2


def held_out() -> list[ProbePair]:
    """Pairs that share a beginning, none, a prompt, and one whose answer begins with the other."""
    return [
        ProbePair("held_out", 3, [5, 6, 7], [20, 21, 22, END], [20, 23, END]),
        ProbePair("held_out", 8, [8, 9, 10, 11], [30, 31, END], [32, 33, 34, 35, END]),
        ProbePair("held_out", 9, [5, 6, 7], [40, 41], [40, 41, 42, 44, END]),
    ]


def trained() -> list[ProbePair]:
    """Answers without an end, equal ones, and ones that differ in their end only."""
    return [
        ProbePair("train", 0, [12, 13], [50, 51, 52, 53], [54, 55]),
        ProbePair("train", 1, [14, 15, 16], [60, 61, END], [60, 61, END]),
        ProbePair("train", 4, [17], [70, END], [70, 71]),
    ]


def moved(model: nn.Module, size: float = 0.05, seed: int = 7) -> nn.Module:
    """A copy whose trainable weights have moved."""
    return move(copy.deepcopy(model), size, seed)


def move(model: nn.Module, size: float = 0.05, seed: int = 7) -> nn.Module:
    """Move the trainable weights in place, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)
    return model


def plain_states(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """[T, H] what each token is predicted from, by a plain forward."""
    inner = causal_lm(model)
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        states: Tensor = inner.base_model(ids).last_hidden_state[0]
    return states[len(prompt) - 1 : -1]


def plain_logps(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """[T, V] log pi(. | state) before each token of the answer, by a plain forward."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([[*prompt, *answer]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)


def row_facts(ours: Tensor, theirs: Tensor, answer: Sequence[int]) -> dict[str, np.ndarray]:
    """Per token, from two [T, V] tables of log-probabilities, all that a probe tells of it."""
    at = torch.arange(len(answer)), torch.tensor(list(answer))
    facts: dict[str, Any] = {
        "logps": ours[at],
        "ref_logps": theirs[at],
        "entropy": -(ours.exp() * ours).sum(-1),
        "peak": ours.max(-1).values,
        "collision": (ours.exp() ** 2).sum(-1),
        "taken": ours[at].exp(),
        "divergence": (theirs.exp() * (theirs - ours)).sum(-1),
        "reverse": (ours.exp() * (ours - theirs)).sum(-1),
    }
    return {name: value.numpy() for name, value in facts.items()}


def pair_rows(probe: ProbeSet) -> list[list[tuple[Sequence[int], Sequence[int]]]]:
    """[2][N] (prompt, answer) by side."""
    return [
        [(pair.prompt, answer) for pair, answer in zip(probe.pairs, side, strict=True)]
        for side in (
            [pair.chosen for pair in probe.pairs],
            [pair.rejected for pair in probe.pairs],
        )
    ]
