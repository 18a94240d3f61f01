"""Q-RM: a token-level reward model whose logits are the Q-values."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import (
    Metrics,
    Need,
    batch_mean,
    require_not_negative,
    require_positive,
    reward_metrics,
)
from tokenq.objectives.batch import PairLogps, ResponseLogps


@dataclass(frozen=True)
class QRM:
    """Bradley-Terry loss over the mean logit of the tokens of a response, with a margin to reach.

    With the raw logit `Z(s, a)` of the taken token and `z(y) = (1/|y|) sum_t Z(s_t, a_t)`, the loss
    of a pair is

        -log sigmoid( beta * (z(chosen) - z(rejected)) - q_rm_gamma )

    "Discriminative Policy Optimization for Token-Level Reward Models" (arXiv 2505.23363), the form
    of its released code. The softmax of Z is a discriminative policy; the paper shows that the
    optimal Z is linear in Q*. The model that comes out is a reward model, not one to sample from:
    its token reward is the logit of the taken token. There is no reference.

    Logits are free up to a number per state, and this loss does not ignore it: it fixes the gauge
    in which the mean logit is the score. `rewards/*` are `beta * z`.

    beta:       scale of the mean logit, > 0
    q_rm_gamma: margin to reach, >= 0, in units of the score (beta included)
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    beta: float = 0.2
    q_rm_gamma: float = 2.0

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_not_negative(q_rm_gamma=self.q_rm_gamma)

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        chosen, rejected = self._score(batch.chosen_side), self._score(batch.rejected_side)
        loss = -batch_mean(logsigmoid(chosen - rejected - self.q_rm_gamma))
        return loss, reward_metrics(chosen, rejected)

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch))

    def _score(self, side: ResponseLogps) -> Tensor:
        return self.beta * side.feature("logits").sum(-1) / side.lengths.clamp_min(1)
