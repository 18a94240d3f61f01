"""TPO: learn to write the best of three answers, and to prefer the second to the third."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from tokenq.objectives.base import (
    NOTHING,
    Metrics,
    Need,
    require_not_negative,
    require_positive,
    reward_metrics,
    smoothed_sigmoid,
)
from tokenq.objectives.batch import RankedLogps
from tokenq.objectives.ranking import better_than, mean_over_lists, number_of_lists
from tokenq.objectives.reference_free import (
    Form,
    margin_losses,
    mean_log_prob,
    require_form,
    score,
)

TripleForm = Literal[Form, "tpo-l"]


@dataclass(frozen=True)
class TPO:
    """Negative log-likelihood of a gold answer plus a preference between two others.

    With gold the best of a list of three, `log pi(y) = sum_t log pi(a_t|s_t)` and
    tpo_form "sigmoid", the loss of a list is

        -log sigmoid(beta * (log pi(second) - log pi(third))) - tpo_alpha * log pi(gold) / |gold|

    "Triple Preference Optimization" (arXiv 2405.16681; the equation as TRL has it). The form
    "tpo-l" takes mean log-probabilities and the margin of SimPO:
    `-log sigmoid(beta * (mean log pi(second) - mean log pi(third)) - tpo_l_gamma)`; "hinge" and
    "ipo" are those of CPO.

    Longer lists: the preference is the mean over all pairs below the gold answer whose ranks
    differ. Where there is no such pair, as with two answers, the gold one takes part, which is CPO.
    Several best answers are all gold: the mean of their likelihoods. The mean is over lists that
    rank at least one answer above another. The likelihood term is a mean over the tokens of each
    gold answer, then over lists; TRL takes the mean over all gold tokens of a micro-batch.

    beta:            scale of the log-probabilities, > 0; under "ipo" the regularisation tau
    tpo_alpha:       weight of the likelihood of the gold answer, >= 0
    tpo_form:        loss of the preference: sigmoid, hinge, ipo or tpo-l
    tpo_l_gamma:     margin to reach with the form tpo-l, >= 0, beta included
    label_smoothing: in [0, 0.5); 0 with the forms hinge and ipo
    """

    kind: ClassVar[Literal["ranked"]] = "ranked"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = NOTHING

    beta: float = 0.01
    tpo_alpha: float = 1.0
    tpo_form: TripleForm = "sigmoid"
    tpo_l_gamma: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_form(get_args(TripleForm), self.label_smoothing, tpo_form=self.tpo_form)
        require_not_negative(tpo_alpha=self.tpo_alpha, tpo_l_gamma=self.tpo_l_gamma)

    def __call__(self, batch: RankedLogps) -> tuple[Tensor, Metrics]:
        gold, pairs = triples(batch.ranks)
        scores = self._scores(batch)
        preference = torch.where(pairs, self._losses(scores[:, :, None] - scores[:, None, :]), 0)
        likelihood = torch.where(gold, batch.per_answer(-mean_log_prob(batch.answers)), 0)
        nll = likelihood.sum(-1) / gold.sum(-1).clamp_min(1)
        losses = preference.sum((-1, -2)) / pairs.sum((-1, -2)).clamp_min(1)
        row, second, third = pairs.nonzero(as_tuple=True)
        metrics = reward_metrics(self.beta * scores[row, second], self.beta * scores[row, third])
        loss = mean_over_lists(losses + self.tpo_alpha * nll, batch)
        return loss, metrics | {"nll_loss": mean_over_lists(nll.detach(), batch)}

    def weight(self, batch: RankedLogps) -> Tensor:
        """Number of lists that compare something."""
        return number_of_lists(batch)

    def _scores(self, batch: RankedLogps) -> Tensor:
        if self.tpo_form == "tpo-l":
            return batch.per_answer(mean_log_prob(batch.answers))
        return batch.per_answer(score(batch.answers, self.tpo_form))

    def _losses(self, margin: Tensor) -> Tensor:
        if self.tpo_form == "tpo-l":
            return smoothed_sigmoid(self.beta * margin - self.tpo_l_gamma, self.label_smoothing)
        return margin_losses(margin, self.tpo_form, self.beta, self.label_smoothing)


def triples(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Which answers are gold [B, K], and which i is preferred to which j [B, K, K]; both bool.

    Lists that rank no answer above another have neither.
    """
    better = better_than(ranks)
    compares = better.any(-1).any(-1)
    gold = (ranks >= 0) & ~better.any(-2) & compares[:, None]
    below = better & ~gold[:, :, None]
    three = below.any(-1).any(-1)
    return gold, torch.where(three[:, None, None], below, better)
