"""What objectives over single labelled responses share: rewards, labels and their metrics."""

import torch
from torch import Tensor

from tokenq.objectives.base import Metrics
from tokenq.objectives.batch import LabelledLogps, ResponseLogps


def summed_log_ratio(responses: ResponseLogps) -> Tensor:
    """log pi / pi_ref of each response, nats: [B]."""
    return responses.log_ratios.sum(-1)


def label_probabilities(batch: LabelledLogps, like: Tensor) -> Tensor:
    """Probability that each response is good, in the type of `like`: [B]."""
    return batch.labels.to(like)


def mean_of(values: Tensor, shares: Tensor) -> Tensor:
    """Mean of [B] values weighted by [B] shares, 0-dim; 0 where the shares add up to 0."""
    total = shares.sum()
    return (values * shares).sum() / torch.where(total > 0, total, torch.ones_like(total))


def labelled_reward_metrics(rewards: Tensor, good: Tensor) -> Metrics:
    """Mean reward of good and of bad responses, and what lies between. Names as TRL has them."""
    rewards = rewards.detach()
    chosen, rejected = mean_of(rewards, good), mean_of(rewards, 1 - good)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
    }
