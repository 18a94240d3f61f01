"""Direct preference optimisation as token-level inverse Q-learning."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import (
    REFERENCE,
    Metrics,
    Need,
    batch_mean,
    require_positive,
    reward_metrics,
)
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
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = REFERENCE

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        chosen = self.beta * batch.chosen_side.log_ratios.sum(-1)
        rejected = self.beta * batch.rejected_side.log_ratios.sum(-1)
        margin = chosen - rejected
        e = self.label_smoothing
        loss = -batch_mean((1 - e) * logsigmoid(margin) + e * logsigmoid(-margin))
        return loss, reward_metrics(chosen, rejected)

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch.chosen))
