"""BMC: DPO that weighs the tokens in which the two responses of a pair differ."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenq.objectives.base import Need, require_not_negative, require_one_of, require_positive
from tokenq.objectives.batch import PairLogps, ResponseLogps
from tokenq.objectives.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class BMC(BradleyTerry):
    """DPO with more weight on edited tokens, the more the less likely the policy finds them.

    For pairs whose responses are edits of one another ("bridged" pairs). The loss of a pair is

        -log sigmoid( beta sum_t w_t u_t (chosen) - beta sum_t w_t u_t (rejected) )

        u_t = log pi(a_t|s_t) - log pi_ref(a_t|s_t)
        w_t = 1 + min( sg 1/pi(a_t|s_t), delta )   on an edited token,   1 elsewhere

    eqs. 4 to 6 of "Bridging and Modeling Correlations in Pairwise Data for Direct Preference
    Optimization" (arXiv 2408.07471; the numbers are from reviews, the formula from the released
    code); sg is a stop-gradient. 1/pi is at least 1, so an edited token weighs from
    1 + min(1, delta) to 1 + delta.

    bmc_form "paper" has this one weight, of the policy, for the whole log-ratio. "released" is what
    the released code computes: the same rule is applied to the reference's log-probability with the
    reference's own confidence, so that the terms are `w_t(pi) log pi - w_t(pi_ref) log pi_ref`, and
    a token on which policy and reference differ is not weighed alike on both sides of the ratio.
    Both agree where policy and reference do. Which tokens count as edited is the data's affair; the
    released code leaves English stop words out.

    The paper sets beta 0.05 and delta 3.0 for question answering, 0.05 and 2.5 for mathematics,
    0.01 and 1.5 to 2.0 for instructions.

    beta:     strength of the KL constraint, > 0; rewards are in nats times beta
    delta:    most extra weight of an edited token, >= 0; 0 is DPO
    bmc_form: paper or released
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "edits"})

    beta: float = 0.05
    delta: float = 3.0
    bmc_form: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_not_negative(delta=self.delta)
        require_one_of(("paper", "released"), bmc_form=self.bmc_form)

    def scores(self, batch: PairLogps) -> tuple[Tensor, Tensor]:
        """Return the weighted implicit rewards of both sides."""
        return self._score(batch.chosen_side), self._score(batch.rejected_side)

    def _score(self, side: ResponseLogps) -> Tensor:
        edits = side.feature("edits").bool()
        logps = side.log_probs
        weights = edit_weights(logps, edits, self.delta)
        if self.bmc_form == "paper":
            return self.beta * (weights * side.log_ratios).sum(-1)
        ref_logps = (logps - side.log_ratios).detach()
        ref_weights = edit_weights(ref_logps, edits, self.delta)
        return self.beta * (weights * logps - ref_weights * ref_logps).sum(-1)


def edit_weights(logps: Tensor, edits: Tensor, delta: float) -> Tensor:
    """Return [B, T] `1 + min(1/p, delta)` on edited steps and 1 elsewhere, without gradient.

    logps: [B, T] log p of the taken steps, nats
    edits: [B, T] bool
    """
    extra = torch.exp(-logps.detach()).clamp_max(delta)
    return torch.where(edits, 1 + extra, torch.ones_like(extra))
