"""Softmax DPO: the best answer of a list against all others at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenq.objectives.ranking import Listwise, better_than, first_among_worse


@dataclass(frozen=True)
class SoftmaxDPO(Listwise):
    """Cross-entropy of the best answer in a softmax over implicit rewards.

    With `r_k = beta * sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))` of answer k and w the best,

        -log( exp(r_w) / sum_k exp(r_k) )

    "On Softmax Direct Preference Optimization for Recommendation" (S-DPO, arXiv 2406.09215), there
    written as -log sigmoid(-log sum_l exp(r_l - r_w)); the form of InfoNCE. The first factor of
    Plackett-Luce: how the others rank among themselves is not used. With two answers it is DPO.

    Ties: of several best answers each is set against all that are worse, and the list's loss is
    their mean. The mean is over lists that rank at least one answer above another.
    """

    beta: float = 1.0

    def losses(self, rewards: Tensor, ranks: Tensor) -> Tensor:
        """Return the loss [B] of lists with these rewards and ranks [B, K]."""
        better = better_than(ranks)
        best = (ranks >= 0) & ~better.any(-2)
        choices = torch.where(best, first_among_worse(rewards, better), 0)
        return choices.sum(-1) / best.sum(-1).clamp_min(1)
