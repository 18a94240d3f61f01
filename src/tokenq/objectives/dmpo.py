"""DMPO: DPO for dialogues and agents, in which early turns count more than late ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenq.objectives.base import Need, require_positive
from tokenq.objectives.batch import PairLogps, ResponseLogps
from tokenq.objectives.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class DMPO(BradleyTerry):
    """DPO with a discount over turns that is normalised by their number.

    A response is a trajectory of n turns, numbered from 0 by the feature `segments`; what the
    environment or the user says between them is masked. With
    `u_t = log pi(a_t|s_t) - log pi_ref(a_t|s_t)` of the tokens, the loss of a pair is

        -log sigmoid( beta sum_j phi(j, n) sum_{t in turn j} u_t  (chosen)  -  the same (rejected) )

        phi(j, n) = gamma^j (1 - gamma^(n - j)) / (1 - gamma^n)

    "Direct Multi-Turn Preference Optimization for Language Agents" (arXiv 2406.14868), checked
    against its released code. phi comes of a constraint on the state-action occupancy, which
    discounts, and of a length-normalised Bradley-Terry model, in which the partition function
    cancels though the trajectories differ in length. It falls from 1 at the first turn to about
    gamma^(n-1) (1 - gamma) at the last; at gamma = 1 it is (n - j) / n. One turn alone is DPO. All
    tokens of a turn have its weight, and each side of a pair is weighed by its own number of turns.

    0.7 is the released code's default gamma.

    beta:       strength of the KL constraint, > 0; rewards are in nats times beta
    dmpo_gamma: discount of a turn, in (0, 1]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "segments"})

    beta: float = 0.1
    dmpo_gamma: float = 0.7

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        if not 0 < self.dmpo_gamma <= 1:
            raise ValueError(f"dmpo_gamma must be in (0, 1], got {self.dmpo_gamma}")

    def scores(self, batch: PairLogps) -> tuple[Tensor, Tensor]:
        """Return the weighted implicit rewards of both sides."""
        return self._score(batch.chosen_side), self._score(batch.rejected_side)

    def _score(self, side: ResponseLogps) -> Tensor:
        log_ratios = side.log_ratios
        turns = side.feature("segments").to(log_ratios.dtype)
        return self.beta * (turn_weights(turns, self.dmpo_gamma) * log_ratios).sum(-1)


def turn_weights(turns: Tensor, gamma: float) -> Tensor:
    """Return phi(j, n) of every step: [B, T].

    turns: [B, T] number j of the step's turn, as a floating-point tensor, 0 where masked; a row has
           n = max + 1 of them
    """
    if not turns.numel():
        return turns
    number = turns.amax(-1, keepdim=True) + 1
    if gamma == 1:
        return (number - turns) / number
    rate = math.log(gamma)
    return (
        torch.exp(turns * rate) * torch.expm1((number - turns) * rate) / torch.expm1(number * rate)
    )
