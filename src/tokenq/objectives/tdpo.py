"""TDPO: DPO with a KL divergence at every state of both responses."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenq.objectives.base import (
    Metrics,
    Need,
    batch_mean,
    require_not_negative,
    require_one_of,
    require_positive,
)
from tokenq.objectives.batch import PairLogps
from tokenq.objectives.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class TDPO(BradleyTerry):
    """DPO whose margin also counts how far the policy has moved along each response.

    With `u(y) = sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))` and the sequential KL divergence
    `D(y) = sum_t KL(pi_ref(.|s_t) || pi(.|s_t))`, the loss of a pair is

        -log sigmoid( beta * ( u(chosen) - u(rejected) - delta ) )

        tdpo1: delta = D(rejected) - D(chosen)
        tdpo2: delta = alpha * ( D(rejected) - sg D(chosen) )

    "Token-level Direct Preference Optimization" (arXiv 2404.11999), checked against its released
    code. tdpo1 follows from a KL constraint on every token; sg is a stop-gradient: tdpo2 does not
    let the chosen side diverge in order to win the pair, and holds the rejected side near the
    reference. The reward of a response is `beta * (u + D)`, under tdpo2 `beta * (u + alpha D)`, so
    that `rewards/margins` is what the loss sees; the released code logs it without alpha.
    `kl/chosen` and `kl/rejected` are the mean D, in nats a response.

    beta:       strength of the KL constraint, > 0; rewards are in nats times beta
    tdpo_alpha: weight alpha of the divergences, >= 0; 0 is DPO. No part of tdpo1, where it is 1
    tdpo_form:  tdpo1 or tdpo2
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "kl"})

    beta: float = 0.1
    tdpo_alpha: float = 0.5
    tdpo_form: Literal["tdpo1", "tdpo2"] = "tdpo2"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_not_negative(tdpo_alpha=self.tdpo_alpha)
        require_one_of(("tdpo1", "tdpo2"), tdpo_form=self.tdpo_form)

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        """Return the mean loss of the pairs, their rewards, and the divergences of both sides."""
        loss, metrics = super().__call__(batch)
        for side, divergence in zip(("chosen", "rejected"), _divergences(batch), strict=True):
            metrics[f"kl/{side}"] = batch_mean(divergence.detach())
        return loss, metrics

    def scores(self, batch: PairLogps) -> tuple[Tensor, Tensor]:
        """Return beta times (log-ratio plus weighted divergence) of both sides."""
        chosen, rejected = _divergences(batch)
        if self.tdpo_form == "tdpo2":
            chosen, rejected = self.tdpo_alpha * chosen.detach(), self.tdpo_alpha * rejected
        return (
            self.beta * (batch.chosen_side.log_ratios.sum(-1) + chosen),
            self.beta * (batch.rejected_side.log_ratios.sum(-1) + rejected),
        )


def _divergences(batch: PairLogps) -> tuple[Tensor, Tensor]:
    """Sequential KL divergence of both sides, nats: [B], [B]."""
    return batch.chosen_side.feature("kl").sum(-1), batch.rejected_side.feature("kl").sum(-1)
