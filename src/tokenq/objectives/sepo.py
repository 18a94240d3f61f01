"""SePO: a preference between the best tokens of one response and the worst of the other."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenq.objectives.base import Need, masked_mean, require_positive
from tokenq.objectives.batch import PairLogps, ResponseLogps
from tokenq.objectives.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class SePO(BradleyTerry):
    """Bradley-Terry loss over the mean log-probability of selected tokens, without a reference.

    A model that is not being trained gives each token a reward. K(chosen) are the tokens of the
    chosen response with the highest rewards, K(rejected) those of the rejected response with the
    lowest. The loss of a pair is

        -log sigmoid( s(chosen) - s(rejected) )

        s(y) = beta / |K(y)| * sum_{t in K(y)} log pi(a_t|s_t)

    "Selective Preference Optimization via Token-Level Reward Function Estimation"
    (arXiv 2408.13518), the form of its released code, where the rewards are the log-ratios of a
    small model trained by DPO and beta is 1. A share k of a response of n tokens is floor(k n) of
    them, at least 1 where the released code would divide by 0; of equal rewards the earlier token
    is taken. With both shares 1 it is SimPO without its margin.

    beta:           scale of the mean log-probability, > 0
    chosen_ratio:   share of the chosen tokens that are trained on, in (0, 1]
    rejected_ratio: share of the rejected tokens that are trained on, in (0, 1]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"rewards"})

    beta: float = 1.0
    chosen_ratio: float = 0.3
    rejected_ratio: float = 0.3

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        for name in ("chosen_ratio", "rejected_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")

    def scores(self, batch: PairLogps) -> tuple[Tensor, Tensor]:
        """Return beta times the mean log-probability of the selected tokens of both sides."""
        chosen, rejected = batch.chosen_side, batch.rejected_side
        best = greatest(chosen.feature("rewards"), chosen.mask, self.chosen_ratio)
        worst = greatest(-rejected.feature("rewards"), rejected.mask, self.rejected_ratio)
        return self._score(chosen, best), self._score(rejected, worst)

    def _score(self, side: ResponseLogps, selected: Tensor) -> Tensor:
        return self.beta * masked_mean(side.log_probs, selected)


def greatest(values: Tensor, mask: Tensor, ratio: float) -> Tensor:
    """Return [B, T] bool: the `ratio` of each row's unmasked steps with the greatest values.

    floor(ratio * number of steps), at least one of a row that has any; the earlier of equal values.
    """
    count = (ratio * mask.sum(-1, keepdim=True).double()).floor().clamp_min(1)
    candidates = torch.where(mask, values, torch.full_like(values, -torch.inf))
    order = candidates.argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(dim=-1)
    return mask & (place < count)
