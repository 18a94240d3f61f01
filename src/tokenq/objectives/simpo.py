"""SimPO, a margin between length-normalised log-probabilities, and AlphaPO, its other shapes."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenq.objectives.base import (
    NOTHING,
    Metrics,
    Need,
    batch_mean,
    require_label_smoothing,
    require_not_negative,
    require_positive,
    reward_metrics,
    smoothed_sigmoid,
)
from tokenq.objectives.batch import PairLogps, ResponseLogps
from tokenq.objectives.f_divergence import divergence_score
from tokenq.objectives.reference_free import mean_log_prob


@dataclass(frozen=True)
class SimPO:
    """Sigmoid preference loss over mean log-probabilities, with a margin to reach.

    With the reward of a response `r(y) = (beta / |y|) sum_t log pi(a_t|s_t)`, the loss of a pair is

        -log sigmoid(r(chosen) - r(rejected) - simpo_gamma)

    eq. 6 of "SimPO: Simple Preference Optimization with a Reference-Free Reward"
    (arXiv 2405.14734). `label_smoothing` e takes labels to be flipped with probability e; the
    margin stays on the side of the label, as in TRL: `-e log sigmoid(-(r_w - r_l - simpo_gamma))`.
    The paper gives beta 2.0 to 2.5 and a ratio simpo_gamma / beta of 0.1 to 0.8, and advises to
    begin at 0.5.

    beta:            scale of the mean log-probability, > 0
    simpo_gamma:     margin to reach, >= 0, in units of the reward (beta included)
    label_smoothing: in [0, 0.5)
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = NOTHING

    beta: float = 2.0
    simpo_gamma: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_not_negative(simpo_gamma=self.simpo_gamma)
        require_label_smoothing(self.label_smoothing)

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        chosen, rejected = self.reward(batch.chosen_side), self.reward(batch.rejected_side)
        logits = chosen - rejected - self.simpo_gamma
        loss = batch_mean(smoothed_sigmoid(logits, self.label_smoothing))
        return loss, reward_metrics(chosen, rejected)

    def reward(self, side: ResponseLogps) -> Tensor:
        """Return the reward [B] of each response, beta included."""
        return self.beta * mean_log_prob(side)

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch))


@dataclass(frozen=True)
class AlphaPO(SimPO):
    """SimPO with another shape of the reward: a power of the probability in place of its log.

    With the length-normalised probability `p(y) = exp((1/|y|) sum_t log pi(a_t|s_t))`,

        r(y) = beta * (1 - p(y)^(-alpha)) / alpha
        loss = -log sigmoid(r(chosen) - r(rejected) - simpo_gamma)

    "AlphaPO: Reward Shape Matters for LLM Alignment" (arXiv 2501.03884). alpha -> 0 is SimPO. With
    alpha > 0 an unlikely response costs more than its log-probability says, which pulls an unlikely
    chosen response up; with alpha < 0 it costs less. The defaults are the paper's for
    Mistral-Instruct.

    `p^(-alpha)` overflows for very unlikely responses. Where its exponent
    `-alpha * mean log pi` is above 25 it goes on as the tangent at 25, so that loss and gradients
    stay finite; below, loss and gradients are those of the paper and of TRL's CPO with
    `loss_type="alphapo"`. TRL also lets alpha act on the other losses of CPO; here it does not.

    beta:  scale of the reward, > 0
    alpha: shape of AlphaPO's reward, any finite number; 0 is SimPO
    """

    beta: float = 2.5
    simpo_gamma: float = 0.1
    alpha: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number, got {self.alpha}")

    def reward(self, side: ResponseLogps) -> Tensor:
        """Return the reward [B] of each response, beta included."""
        return self.beta * shaped_reward(mean_log_prob(side), self.alpha)


def shaped_reward(log_prob: Tensor, alpha: float) -> Tensor:
    """`(1 - exp(-alpha * log_prob)) / alpha` of log-probabilities in nats; `log_prob` at alpha 0.

    The score of f-DPO under the alpha divergence of order `1 - alpha` to a uniform reference.
    """
    return divergence_score(log_prob, "alpha_divergence", 1 - alpha)
