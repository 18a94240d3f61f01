"""What list-wise objectives share: a mean over lists, who is compared, the odds of being first.

A tie is a missing comparison: answers of equal rank never meet. An absent answer meets none.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenq.objectives.base import REFERENCE, Metrics, Need, require_positive, reward_metrics
from tokenq.objectives.batch import RankedLogps


@dataclass(frozen=True)
class Listwise(ABC):
    """Mean of `losses(rewards, ranks)` over the lists that rank any answer above another.

    A subclass says in `losses` what it makes of the implicit rewards of a list; that is its whole
    equation.

    beta: strength of the KL constraint, > 0; rewards are in nats times beta
    """

    kind: ClassVar[Literal["ranked"]] = "ranked"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = REFERENCE

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    def __call__(self, batch: RankedLogps) -> tuple[Tensor, Metrics]:
        """Return the mean loss of the lists and the metrics of all their pairs."""
        rewards = list_rewards(batch, self.beta)
        loss = mean_over_lists(self.losses(rewards, batch.ranks), batch)
        return loss, ranked_reward_metrics(rewards, batch)

    @abstractmethod
    def losses(self, rewards: Tensor, ranks: Tensor) -> Tensor:
        """Return the loss [B] of lists, 0 where nothing is compared; rewards and ranks [B, K]."""

    def weight(self, batch: RankedLogps) -> Tensor:
        """Number of lists that compare something."""
        return number_of_lists(batch)


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
