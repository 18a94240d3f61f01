"""Direct preference optimisation as token-level inverse Q-learning."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import Metrics, masked_sum
from tokenq.objectives.batch import PairLogps


@dataclass(frozen=True)
class DPO:
    """Sigmoid preference loss over summed per-step implicit rewards.

    With the implicit reward (equal to the optimal advantage) of a step
    `r_t = beta * (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`, the loss of a pair is

        -log sigmoid(sum_t r_t(chosen) - sum_t r_t(rejected))

    eq. 9 of "From r to Q*" (arXiv 2404.12358), the same as eq. 7 of DPO (arXiv 2305.18290) since
    the log-probability of a response is the sum over its tokens. With `label_smoothing` e the
    labels are taken to be flipped with probability e (conservative DPO):
    `-(1-e) log sigmoid(m) - e log sigmoid(-m)`.

    beta:            strength of the KL constraint, > 0; rewards are in nats times beta
    label_smoothing: in [0, 0.5)
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        chosen = self.beta * masked_sum(batch.chosen - batch.ref_chosen, batch.chosen_mask)
        rejected = self.beta * masked_sum(batch.rejected - batch.ref_rejected, batch.rejected_mask)
        margin = chosen - rejected
        e = self.label_smoothing
        loss = -((1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)).mean()
        return loss, {
            "rewards/chosen": chosen.detach().mean(),
            "rewards/rejected": rejected.detach().mean(),
            "rewards/margins": margin.detach().mean(),
            "rewards/accuracies": (margin.detach() > 0).to(margin.dtype).mean(),
        }

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch.chosen))
