"""KTO and the unpaired APO-zero: responses that are each called good or bad by themselves."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenq.objectives.base import REFERENCE, Metrics, Need, batch_mean, require_positive
from tokenq.objectives.batch import LabelledLogps
from tokenq.objectives.unpaired import (
    label_probabilities,
    labelled_reward_metrics,
    summed_log_ratio,
)


@dataclass(frozen=True)
class Prospect:
    """What both share: the loss of a response by how far its reward lies above a point.

    beta:               scale of the log-ratio, > 0
    desirable_weight:   weight of good responses, > 0
    undesirable_weight: weight of bad responses, > 0
    """

    kind: ClassVar[Literal["unpaired"]] = "unpaired"

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        require_positive(
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )

    def losses(self, above: Tensor, good: Tensor) -> Tensor:
        """Return the loss [B] of responses whose rewards are `above` [B] the point.

        good: [B] probability of the label good
        """
        desirable = self.desirable_weight * good * torch.sigmoid(-above)
        return desirable + self.undesirable_weight * (1 - good) * torch.sigmoid(above)

    def weight(self, batch: LabelledLogps) -> Tensor:
        """Number of responses."""
        return batch.responses.logps.new_tensor(len(batch))


@dataclass(frozen=True)
class KTO(Prospect):
    """Value of a response measured from the KL of the policy to its reference.

    With `r = sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`, the loss of a response is

        good: desirable_weight   * (1 - sigmoid(beta * (r - z)))
        bad:  undesirable_weight * (1 - sigmoid(beta * (z - r)))

    eqs. 7 and 8 of "KTO: Model Alignment as Prospect Theoretic Optimization" (arXiv 2402.01306).
    The KL point `z = max(0, mean r')` is estimated from the mismatched responses of the batch
    (answers to other prompts) and takes no gradient. A label between 0 and 1 is the probability of
    good: the loss is the mean over both labels. An unbalanced data set wants weights such that
    desirable_weight * (number of good) over undesirable_weight * (number of bad) is 1 to 4/3.

    The mean is over responses, as in TRL; `z` belongs to the rows that are scored together.
    """

    couples_rows: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "mismatched"})

    def __call__(self, batch: LabelledLogps) -> tuple[Tensor, Metrics]:
        if batch.mismatched is None:
            raise ValueError("the batch has no mismatched responses, which this objective needs")
        log_ratio = summed_log_ratio(batch.responses)
        kl = batch_mean(summed_log_ratio(batch.mismatched).detach()).clamp(min=0)
        good = label_probabilities(batch, log_ratio)
        losses = self.losses(self.beta * (log_ratio - kl), good)
        metrics = labelled_reward_metrics(self.beta * log_ratio, good)
        return batch_mean(losses), metrics | {"kl": kl}


@dataclass(frozen=True)
class APOZeroUnpaired(Prospect):
    """KTO with the KL point at 0: good responses up, bad ones down, each by itself.

    With `r = sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`, the loss of a response is

        good: desirable_weight   * (1 - sigmoid(beta * r))
        bad:  undesirable_weight * sigmoid(beta * r)

    The unpaired form of APO-zero, "Anchored Preference Optimization" (arXiv 2408.06266, eq. 7), as
    TRL's KTOTrainer has it. It needs no mismatched responses, and no row depends on another. For
    data whose good responses are better than what the model writes.
    """

    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = REFERENCE

    def __call__(self, batch: LabelledLogps) -> tuple[Tensor, Metrics]:
        rewards = self.beta * summed_log_ratio(batch.responses)
        good = label_probabilities(batch, rewards)
        return batch_mean(self.losses(rewards, good)), labelled_reward_metrics(rewards, good)
