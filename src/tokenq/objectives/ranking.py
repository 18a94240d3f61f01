"""What list-wise objectives share: who is compared with whom, and the odds of being first.

A tie is a missing comparison: answers of equal rank never meet. An absent answer meets none.
"""

import torch
from torch import Tensor

from tokenq.objectives.base import Metrics, reward_metrics
from tokenq.objectives.batch import RankedLogps


def list_rewards(batch: RankedLogps, beta: float) -> Tensor:
    """Implicit reward of each answer, `beta * sum_t log pi/pi_ref`: [B, K], 0 for an absent one."""
    return beta * batch.per_answer(batch.answers.log_ratios.sum(-1))


def better_than(ranks: Tensor) -> Tensor:
    """[B, K, K] bool, answer i is ranked above answer j, both present."""
    first, second = ranks[:, :, None], ranks[:, None, :]
    return (first >= 0) & (first < second)


def number_of_lists(batch: RankedLogps) -> Tensor:
    """Number of rows in which any answer is ranked above another; 0-dim."""
    return better_than(batch.ranks).any(-1).any(-1).sum().to(torch.float32)


def mean_over_lists(losses: Tensor, batch: RankedLogps) -> Tensor:
    """Mean of losses [B] over `number_of_lists`; a row that compares nothing must have loss 0."""
    return losses.sum() / number_of_lists(batch).clamp_min(1)


def first_among_worse(rewards: Tensor, better: Tensor) -> Tensor:
    """`-log( exp(r_i) / (exp(r_i) + sum over worse j of exp(r_j)) )` of rewards [B, K]: [B, K]."""
    itself = torch.eye(rewards.shape[-1], dtype=torch.bool, device=rewards.device)
    ahead = rewards[:, None, :] - rewards[:, :, None]
    return torch.where(better | itself, ahead, -torch.inf).logsumexp(-1)


def ranked_reward_metrics(rewards: Tensor, batch: RankedLogps) -> Metrics:
    """`reward_metrics` of rewards [B, K] over all pairs of a list, what a pair loss would log."""
    better, worse = batch.pair_indices()
    flat = rewards.flatten()
    return reward_metrics(flat[better], flat[worse])
