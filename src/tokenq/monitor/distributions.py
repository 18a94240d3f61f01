"""One pass over the vocabulary: what a model predicts at given positions, beside its reference.

The head runs over chunks of positions, so that one chunk of logits is alive at a time. Policy and
reference go through the same operations: equal models have log-ratios and divergences of exactly 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.head import Head, Predictions
from tokenq.models.packing import Ids

Array = NDArray[np.float64]

ELEMENTS = 2**24
"""Logits that exist at the same time, of the policy and of the reference each."""

_ROWS = 16
"""Positions of a chunk that are swept together: few enough to stay in the cache."""


@dataclass(frozen=True, eq=False)
class Distributions:
    """What a model pi predicts at P positions where tokens y follow; nats, in fp64.

    logps:      [P] log pi(y)
    entropy:    [P] entropy of pi
    peak:       [P] log-probability of pi's most probable token
    collision:  [P] sum_a pi(a)^2
    ref_logps:  [P] log pi_ref(y); this and the next two are nan without a reference
    divergence: [P] KL(pi_ref || pi)
    reverse:    [P] KL(pi || pi_ref)
    """

    logps: Array
    entropy: Array
    peak: Array
    collision: Array
    ref_logps: Array
    divergence: Array
    reverse: Array

    @property
    def taken(self) -> Array:
        """[P] pi(y)."""
        return np.exp(self.logps)

    def at(self, rows: slice) -> "Distributions":
        """A part of the positions."""
        return Distributions(*(getattr(self, field.name)[rows] for field in fields(self)))


def distributions(
    head: Head, hidden: Tensor, tokens: Ids, reference: Predictions | None = None
) -> Distributions:
    """Read the model's `head` at hidden states [P, H] behind which `tokens` [P] follow.

    Raises UserError where policy and reference score different numbers of tokens.
    """
    targets = torch.tensor(list(tokens), dtype=torch.long, device=hidden.device)[:, None]
    columns = []
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for part, ours, theirs in logits(head, hidden, reference):
            for start in range(0, len(ours), _ROWS):
                block = slice(start, start + _ROWS)
                reference_rows = None if theirs is None else theirs[block]
                columns.append(_swept_(ours[block], targets[part][block], reference_rows))
    if not columns:
        return Distributions(*np.empty((len(fields(Distributions)), 0)))
    return Distributions(*torch.cat(columns, dim=1).cpu().double().numpy())


def logits(
    head: Head, hidden: Tensor, reference: Predictions | None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield (part, logits [n, V], the reference's [n, V] or None) chunk by chunk; to be used up."""
    if not len(hidden):
        return
    size = max(1, ELEMENTS // head.logits(hidden[:1]).shape[-1])
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        ours = head.logits(hidden[part])
        theirs = None if reference is None else reference.logits(part).to(ours)
        if theirs is not None and theirs.shape != ours.shape:
            raise UserError(
                f"the reference scores {theirs.shape[-1]} tokens, the policy {ours.shape[-1]}; "
                "accepted: one vocabulary"
            )
        yield part, ours, theirs


def log_softmax_(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits [n, V] into log-probabilities in place; return probabilities [n, V] and the
    greatest log-probability [n]."""
    rows.sub_(rows.amax(-1, keepdim=True))
    weights = rows.exp()
    total = weights.sum(-1, keepdim=True)
    log_total = total.log()
    rows.sub_(log_total)
    return weights.div_(total), -log_total.squeeze(-1)


def _swept_(ours: Tensor, targets: Tensor, theirs: Tensor | None) -> Tensor:
    """The columns of :class:`Distributions`, [7, n], of rows of logits [n, V], which it uses up."""
    weights, peak = log_softmax_(ours)
    columns = [
        ours.gather(-1, targets).squeeze(-1),
        -torch.linalg.vecdot(weights, ours),
        peak,
        torch.linalg.vecdot(weights, weights),
    ]
    if theirs is None:
        columns += [torch.full_like(peak, torch.nan)] * 3
        return torch.stack(columns)
    expected, _ = log_softmax_(theirs)
    columns.append(theirs.gather(-1, targets).squeeze(-1))
    ratios = theirs.sub_(ours)
    columns += [torch.linalg.vecdot(expected, ratios), -torch.linalg.vecdot(weights, ratios)]
    return torch.stack(columns)
