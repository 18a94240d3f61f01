"""Implicit process rewards: an outcome loss whose log-ratios are rewards of every step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from tokenq.objectives.base import REFERENCE, Metrics, Need, batch_mean, require_positive
from tokenq.objectives.batch import LabelledLogps
from tokenq.objectives.unpaired import (
    label_probabilities,
    labelled_reward_metrics,
    summed_log_ratio,
)


@dataclass(frozen=True)
class ImplicitPRM:
    """Cross-entropy of right and wrong answers, with the log-ratio as the logit.

    With the outcome reward `r(y) = beta sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))` and the
    label l of a response, 1 for right, the loss is

        -( l log sigmoid(r(y)) + (1 - l) log(1 - sigmoid(r(y))) )

    "Free Process Rewards without Process Labels" (arXiv 2412.01981), its cross-entropy form; beta
    as in its released script. It trains a verifier, not a policy to sample from: whatever the
    training data, the prefix sums of the log-ratios of any model are exactly

        q_t = sum_{i <= t} beta log pi/pi_ref (a_i|s_i)
            = beta log E_{y ~ pi_ref after a_t} exp( r(y) / beta )

    the soft value of the outcome under the reference, so that no label of a step is needed; the
    reward of a step is the difference of two of them. A label between 0 and 1 is the probability of
    right.

    beta: scale of the log-ratio, > 0
    """

    kind: ClassVar[Literal["unpaired"]] = "unpaired"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = REFERENCE

    beta: float = 0.05

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    def __call__(self, batch: LabelledLogps) -> tuple[Tensor, Metrics]:
        rewards = self.beta * summed_log_ratio(batch.responses)
        good = label_probabilities(batch, rewards)
        losses = binary_cross_entropy_with_logits(rewards, good, reduction="none")
        right = ((rewards > 0) == (good > 0.5)).to(rewards.dtype)
        metrics = labelled_reward_metrics(rewards, good)
        return batch_mean(losses), metrics | {"rewards/accuracies": batch_mean(right)}

    def weight(self, batch: LabelledLogps) -> Tensor:
        """Number of responses."""
        return batch.responses.logps.new_tensor(len(batch))
