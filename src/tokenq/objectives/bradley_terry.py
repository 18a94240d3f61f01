"""What the token-level pair objectives share: two scores, and the Bradley-Terry likelihood of both.

A subclass says in `scores` how the steps of a response add up; that is its whole equation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import Metrics, batch_mean, reward_metrics
from tokenq.objectives.batch import PairLogps


@dataclass(frozen=True)
class BradleyTerry(ABC):
    """Mean over pairs of `-log sigmoid(score(chosen) - score(rejected))`.

    Metrics are those of the scores: `rewards/margins` is what the loss sees.
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    couples_rows: ClassVar[bool] = False

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        """Return the mean loss of the pairs and TRL's metrics of their scores."""
        chosen, rejected = self.scores(batch)
        return -batch_mean(logsigmoid(chosen - rejected)), reward_metrics(chosen, rejected)

    @abstractmethod
    def scores(self, batch: PairLogps) -> tuple[Tensor, Tensor]:
        """Return the scores [B] of the chosen and of the rejected responses."""

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch))
