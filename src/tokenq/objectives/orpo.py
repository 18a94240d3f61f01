"""ORPO: fine-tuning on the chosen response with a penalty on the odds of the rejected one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import (
    NOTHING,
    Metrics,
    Need,
    batch_mean,
    require_positive,
    reward_metrics,
)
from tokenq.objectives.batch import PairLogps
from tokenq.objectives.reference_free import mean_log_prob


@dataclass(frozen=True)
class ORPO:
    """Negative log-likelihood of the chosen response plus an odds-ratio preference loss.

    With the length-normalised probability `p(y) = exp((1/|y|) sum_t log pi(a_t|s_t))` and
    `odds(y) = p(y) / (1 - p(y))`, the loss of a pair is

        -log p(chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected))

    eqs. 4, 6 and 7 of "ORPO: Monolithic Preference Optimization without Reference Model"
    (arXiv 2403.07691), whose lambda is `beta`, as in TRL.

    The likelihood term covers the response, each response a mean over its own tokens. TRL's covers
    prompt and response, a mean over all tokens of a micro-batch; the odds-ratio term is the same.
    Probabilities closer to 1 than the precision of their type count as if that close, without
    gradient: odds stay finite for a response of probability 1, and for an empty one.

    beta: weight of the odds-ratio term, > 0 (lambda of the paper)
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = NOTHING

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        chosen = mean_log_prob(batch.chosen_side)
        rejected = mean_log_prob(batch.rejected_side)
        log_odds_ratio = log_odds(chosen) - log_odds(rejected)
        nll, fit = batch_mean(-chosen), batch_mean(logsigmoid(log_odds_ratio))
        metrics = reward_metrics(self.beta * chosen, self.beta * rejected) | {
            "nll_loss": nll.detach(),
            "log_odds_ratio": fit.detach(),
            "log_odds_chosen": batch_mean(log_odds_ratio).detach(),
        }
        return nll - self.beta * fit, metrics

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch))


def log_odds(log_prob: Tensor) -> Tensor:
    """`log(p / (1 - p))` of log-probabilities [B], nats; p at most 1 - eps of the type."""
    below_one = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))
