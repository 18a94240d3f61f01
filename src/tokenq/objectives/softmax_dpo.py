"""Softmax DPO: the best answer of a list against all others at once."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenq.objectives.base import REFERENCE, Metrics, Need, require_positive
from tokenq.objectives.batch import RankedLogps
from tokenq.objectives.ranking import (
    better_than,
    first_among_worse,
    list_rewards,
    mean_over_lists,
    number_of_lists,
    ranked_reward_metrics,
)


@dataclass(frozen=True)
class SoftmaxDPO:
    """Cross-entropy of the best answer in a softmax over implicit rewards.

    With `r_k = beta * sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))` of answer k and w the best,

        -log( exp(r_w) / sum_k exp(r_k) )

    "On Softmax Direct Preference Optimization for Recommendation" (S-DPO, arXiv 2406.09215), there
    written as -log sigmoid(-log sum_l exp(r_l - r_w)); the form of InfoNCE. The first factor of
    Plackett-Luce: how the others rank among themselves is not used. With two answers it is DPO.

    Ties: of several best answers each is set against all that are worse, and the list's loss is
    their mean. The mean is over lists that rank at least one answer above another.

    beta: strength of the KL constraint, > 0; rewards are in nats times beta
    """

    kind: ClassVar[Literal["ranked"]] = "ranked"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = REFERENCE

    beta: float = 1.0

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    def __call__(self, batch: RankedLogps) -> tuple[Tensor, Metrics]:
        rewards = list_rewards(batch, self.beta)
        better = better_than(batch.ranks)
        best = (batch.ranks >= 0) & ~better.any(-2)
        choices = torch.where(best, first_among_worse(rewards, better), 0)
        losses = choices.sum(-1) / best.sum(-1).clamp_min(1)
        return mean_over_lists(losses, batch), ranked_reward_metrics(rewards, batch)

    def weight(self, batch: RankedLogps) -> Tensor:
        """Number of lists that compare something."""
        return number_of_lists(batch)
