"""LiPO-lambda: all pairs of a list, each weighted by what swapping the two would change."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.ranking import Listwise, better_than


@dataclass(frozen=True)
class LiPO(Listwise):
    """Sigmoid loss over all pairs of a list, with the lambda weights of learning to rank.

    With `r_k = beta * sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`, the loss of a list is

        sum over i ranked above j of  lambda_ij * log(1 + exp(r_j - r_i))

        lambda_ij = |G_i - G_j| * |1 / D(p_i) - 1 / D(p_j)|
        G_i = 2^(psi_i) - 1,   D(p) = log(1 + p)

    "LiPO: Listwise Preference Optimization through Learning-to-Rank" (arXiv 2402.01878), the
    method LiPO-lambda: lambda_ij is the change of the list's discounted gain if i and j changed
    places. p_i is the place of answer i by the policy's own rewards, 1 the highest; equal rewards
    keep the order of the row. Places are whole numbers, so lambda takes no gradient.

    The paper's labels psi are shares of comparisons won according to a reward model. From ranks,
    psi_i = (number of answers below i + half the number tied with i) / (K - 1), in [0, 1], with K
    the answers present. Tied answers are not compared. The default of beta is reconstructed.

    The mean is over lists that rank at least one answer above another. With two answers every pair
    has the same lambda, 1 / log 2 - 1 / log 3 = 0.53: DPO up to that factor.
    """

    beta: float = 0.05

    def losses(self, rewards: Tensor, ranks: Tensor) -> Tensor:
        """Return the loss [B] of lists with these rewards and ranks [B, K]."""
        ahead = rewards[:, None, :] - rewards[:, :, None]
        weighted = -swap_gains(rewards, ranks) * logsigmoid(-ahead)
        return torch.where(better_than(ranks), weighted, 0).sum((-1, -2))


def swap_gains(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Change of the discounted gain if answers i and j changed places: [B, K, K], 0 or above."""
    gains = torch.exp2(share_won(ranks).to(rewards)) - 1
    discounts = 1 / torch.log1p(places(rewards, ranks).to(rewards))
    return _distance(gains) * _distance(discounts)


def share_won(ranks: Tensor) -> Tensor:
    """Share of the other answers of the list below each answer, a tie as half: [B, K] in [0, 1]."""
    present = ranks >= 0
    better = better_than(ranks)
    below, above = better.sum(-1), better.sum(-2)
    others = present.sum(-1, keepdim=True) - 1
    won = (below + others - above) / 2
    return torch.where(present, won / others.clamp_min(1), 0)


def places(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Place of each answer by its reward, 1 the highest, absent ones last: [B, K] int64."""
    present = torch.where(ranks >= 0, rewards, -math.inf)
    order = present.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1) + 1


def _distance(values: Tensor) -> Tensor:
    return (values[:, :, None] - values[:, None, :]).abs()
