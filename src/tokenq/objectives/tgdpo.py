"""TGDPO: DPO whose beta differs from token to token, by the rewards of another model."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenq.objectives.base import Need, require_not_negative, require_positive
from tokenq.objectives.batch import PairLogps, ResponseLogps
from tokenq.objectives.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class TGDPO(BradleyTerry):
    """DPO with token weights that grow with how much a token is to be praised or blamed.

    With a token reward `g_t` from a model that is not being trained, and
    `u_t = log pi(a_t|s_t) - log pi_ref(a_t|s_t)`, the loss of a pair is

        -log sigmoid( sum_t beta (1 + alpha g_t) u_t  -  sum_t beta (1 - alpha g_t) u_t )
                            over the chosen response       over the rejected one

    "TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization"
    (arXiv 2506.14574), the form of its released code, where `g_t` is the implicit reward
    `beta log pi_dpo / pi_ref` of a model trained by DPO. A chosen token with a high reward and a
    rejected one with a low reward may leave the reference further.

    A weight below 0 would turn a preference round, so weights are held at `min_weight`; the
    released code has no such limit, and with rewards of the usual size (|alpha g_t| < 1) it does
    nothing.

    beta:        strength of the KL constraint, > 0; rewards are in nats times beta
    tgdpo_alpha: alpha, how much the token rewards change beta, >= 0; 0 is DPO
    min_weight:  least factor on beta, > 0
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "rewards"})

    beta: float = 0.1
    tgdpo_alpha: float = 0.5
    min_weight: float = 0.01

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, min_weight=self.min_weight)
        require_not_negative(tgdpo_alpha=self.tgdpo_alpha)

    def scores(self, batch: PairLogps) -> tuple[Tensor, Tensor]:
        """Return the weighted implicit rewards of both sides."""
        return (
            self._score(batch.chosen_side, self.tgdpo_alpha),
            self._score(batch.rejected_side, -self.tgdpo_alpha),
        )

    def _score(self, side: ResponseLogps, alpha: float) -> Tensor:
        weights = (1 + alpha * side.feature("rewards").detach()).clamp_min(self.min_weight)
        return self.beta * (weights * side.log_ratios).sum(-1)
