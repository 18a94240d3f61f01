"""Where a pair's answers part: which tokens have got the probability that moved there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenq.models.head import Head, Predictions
from tokenq.monitor.distributions import Array, log_softmax_, logits
from tokenq.monitor.readings import Gain


@dataclass(frozen=True, eq=False)
class Moved:
    """Mass at F forks; see `ForkReading`, which has a row for pairs without a fork too.

    other, toward: [F]
    gains:         per fork
    """

    other: Array
    toward: Array
    gains: list[list[Gain]]


def moved_mass(
    head: Head,
    hidden: Tensor,
    reference: Predictions,
    tokens: Tensor,
    table: Tensor,
    gains: int,
) -> Moved:
    """Compare the policy's `head` with the reference at the states [F, H] where pairs part.

    tokens: [F, 2] the chosen and the rejected token there
    table:  [V, H] the reference's output embeddings
    gains:  most tokens to tell of each fork; only such that grew
    """
    found: list[tuple[Sequence[float], Sequence[float]]] = []
    grown: list[list[Gain]] = []
    tokens = tokens.to(hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for part, ours, theirs in logits(head, hidden, reference):
            assert theirs is not None
            pi, _ = log_softmax_(ours)
            pi_ref, _ = log_softmax_(theirs)
            change = pi - pi_ref
            grown += _gains(change, pi_ref, pi, gains)
            change.scatter_(1, tokens[part], 0.0)
            nearer = _nearer(table, tokens[part]).to(change)
            other, toward = change.sum(-1), torch.linalg.vecdot(change, nearer)
            found += zip(other.tolist(), toward.tolist(), strict=True)
    columns = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return Moved(columns[0], columns[1], grown)


def _nearer(table: Tensor, tokens: Tensor) -> Tensor:
    """[F, V] 1 where a token's row of the table, taken from the mean row, has the greater cosine
    with the chosen token's, -1 where with the rejected one's, 0 where with both the same."""
    # Rows have much in common, by which nearly all of them would be nearer to the same one.
    common = table.mean(0, dtype=torch.promote_types(table.dtype, torch.float32))
    rows = table[tokens.to(table.device)].double() - common
    sides = torch.nn.functional.normalize(rows, dim=-1)
    # The length of the token's own row is in both cosines.
    apart = (sides[:, 0] - sides[:, 1]).to(common)
    return (apart.to(table.dtype) @ table.T - (apart @ common)[:, None]).sign()


def _gains(change: Tensor, pi_ref: Tensor, pi: Tensor, count: int) -> list[list[Gain]]:
    greatest = change.topk(min(count, change.shape[-1]), dim=-1)
    before = pi_ref.gather(1, greatest.indices).tolist()
    after = pi.gather(1, greatest.indices).tolist()
    rows = zip(greatest.indices.tolist(), before, after, strict=True)
    return [[gain for gain in zip(*row, strict=True) if gain[2] > gain[1]] for row in rows]
