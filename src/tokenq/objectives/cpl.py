"""Contrastive preference learning: preferences between segments, scored by log-probabilities."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import (
    NOTHING,
    REFERENCE,
    Metrics,
    Need,
    batch_mean,
    require_not_negative,
    require_one_of,
    require_positive,
    require_within,
    reward_metrics,
)
from tokenq.objectives.batch import PairLogps, RankedLogps, ResponseLogps
from tokenq.objectives.ranking import (
    better_than,
    mean_over_lists,
    number_of_lists,
    ranked_reward_metrics,
)


@dataclass(frozen=True)
class Contrast:
    """What CPL over pairs and over rankings share: the score of a segment and the biased loss."""

    couples_rows: ClassVar[bool] = False

    cpl_alpha: float = 0.1
    contrastive_bias: float = 0.5
    discount: float = 1.0
    bc_coef: float = 0.0
    cpl_form: Literal["cpl", "cpl_kl"] = "cpl"

    def __post_init__(self) -> None:
        require_positive(cpl_alpha=self.cpl_alpha)
        require_within(0, 1, contrastive_bias=self.contrastive_bias, discount=self.discount)
        require_not_negative(bc_coef=self.bc_coef)
        require_one_of(("cpl", "cpl_kl"), cpl_form=self.cpl_form)

    @property
    def needs(self) -> frozenset[Need]:
        """A reference for cpl_kl, else nothing."""
        return REFERENCE if self.cpl_form == "cpl_kl" else NOTHING

    def score(self, side: ResponseLogps) -> Tensor:
        """Return S(segment) of each row: [B]."""
        values = side.log_ratios if self.cpl_form == "cpl_kl" else side.log_probs
        return self.cpl_alpha * (discounts(side.mask, self.discount, values.dtype) * values).sum(-1)

    def contrast(self, pairs: PairLogps) -> tuple[Tensor, Metrics]:
        """Return the mean loss of the pairs and the metrics of their scores."""
        chosen, rejected = self.score(pairs.chosen_side), self.score(pairs.rejected_side)
        loss = -batch_mean(logsigmoid(chosen - self.contrastive_bias * rejected))
        metrics = reward_metrics(chosen, rejected)
        if self.bc_coef:
            cloning = -batch_mean(_mean_log_prob(pairs))
            loss = loss + self.bc_coef * cloning
            metrics["nll"] = cloning.detach()
        return loss, metrics


@dataclass(frozen=True)
class CPL(Contrast):
    """Which of two segments has less regret, told by the likelihood of their actions.

    With the discounted score of a segment `S = sum_t discount^t alpha log pi(a_t|s_t)`, the loss of
    a pair is

        -log sigmoid( S(chosen) - contrastive_bias * S(rejected) )  +  bc_coef * BC

    eqs. 5 (bias 1) and 6 of "Contrastive Preference Learning: Learning from Human Feedback without
    RL" (arXiv 2310.13639). Under the regret model of preference the score is the sum of optimal
    advantages, `A* = alpha log pi*`. At bias 1 whatever was never compared is free: mass can go to
    an action of neither segment at no cost. A bias below 1 counts the rejected segment for less,
    and then mass on the actions of the data is worth having (proposition 2). BC is the mean
    negative log-likelihood of the steps of both segments. cpl_form "cpl_kl" has
    `log pi(a_t|s_t) - log pi_ref(a_t|s_t)` in place of `log pi(a_t|s_t)`, and the paper then sets
    the bias 0.75; with a bias of 1 and no discount it is DPO with beta = alpha.

    t counts the unmasked steps of a segment. The released code has no discount in its loss (the
    paper sets it to 1), and takes minus the squared error of a deterministic actor for log pi. That
    is twice the log-probability of a unit-variance Gaussian, so the same alpha acts as 2 alpha.

    cpl_alpha:        temperature alpha of the advantage, > 0
    contrastive_bias: factor on the rejected score, in [0, 1]
    discount:         discount of a step, in [0, 1]
    bc_coef:          weight of the likelihood of both segments, >= 0; CPL(BC) of the paper has 1
    cpl_form:         cpl, or cpl_kl against a reference
    """

    kind: ClassVar[Literal["preference"]] = "preference"

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        return self.contrast(batch)

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch))


@dataclass(frozen=True)
class CPLRanked(Contrast):
    """CPL over rankings: every pair of a list that is ordered, each with the biased loss of CPL.

    The mean is over pairs, which is the dense setting of the paper and of its released code
    (all pairs of a batch of scored segments): such a batch is one list here. Ties and absent
    answers are not compared. The BC term is the mean over the pairs' steps, as in CPL, so a segment
    counts as often as it is compared.

    cpl_alpha:        temperature alpha of the advantage, > 0
    contrastive_bias: factor on the worse score of each pair, in [0, 1]
    discount:         discount of a step, in [0, 1]
    bc_coef:          weight of the likelihood of the segments, >= 0
    cpl_form:         cpl, or cpl_kl against a reference
    """

    kind: ClassVar[Literal["ranked"]] = "ranked"

    def __call__(self, batch: RankedLogps) -> tuple[Tensor, Metrics]:
        return self.contrast(batch.pairs())

    def weight(self, batch: RankedLogps) -> Tensor:
        """Number of ordered pairs."""
        return batch.answers.logps.new_tensor(len(batch.pair_indices()[0]))


@dataclass(frozen=True)
class CPLPlackettLuce(Contrast):
    """CPL over rankings as one choice after another: the paper's ranking form, biased as its pairs.

    With the score S of CPL, the loss of a list whose segments are numbered from the best is

        -sum_k log( exp(S_k) / (exp(S_k) + sum_{j > k} exp(contrastive_bias * S_j)) )

    which for two segments is the loss of CPL. The paper writes it without bias; with one it is
    reconstructed so that lists of two agree with eq. 6. Ties and absent segments are treated as in
    `PlackettLuce`. The mean is over lists that order anything; the BC term is the mean
    log-probability of a step of the list's segments.

    cpl_alpha:        temperature alpha of the advantage, > 0
    contrastive_bias: factor on the scores that a segment is chosen over, in [0, 1]
    discount:         discount of a step, in [0, 1]
    bc_coef:          weight of the likelihood of the segments, >= 0
    cpl_form:         cpl, or cpl_kl against a reference
    """

    kind: ClassVar[Literal["ranked"]] = "ranked"

    def __call__(self, batch: RankedLogps) -> tuple[Tensor, Metrics]:
        scores = batch.per_answer(self.score(batch.answers))
        better = better_than(batch.ranks)
        rivals = self.contrastive_bias * scores[:, None, :] - scores[:, :, None]
        rivals = torch.where(better, rivals, -torch.inf)
        itself = torch.zeros_like(scores)[:, :, None]
        choices = torch.cat([itself, rivals], dim=-1).logsumexp(-1)
        losses = choices.sum(-1)
        if self.bc_coef:
            losses = losses - self.bc_coef * _mean_log_prob_of_lists(batch)
        return mean_over_lists(losses, batch), ranked_reward_metrics(scores, batch)

    def weight(self, batch: RankedLogps) -> Tensor:
        """Number of lists that compare something."""
        return number_of_lists(batch)


def discounts(mask: Tensor, discount: float, dtype: torch.dtype) -> Tensor:
    """Return [B, T] `discount ** t`, t the number of unmasked steps before; the mask is bool."""
    before = (mask.cumsum(-1) - 1).clamp_min(0).to(dtype)
    return torch.full_like(before, discount) ** before


def _mean_log_prob(pairs: PairLogps) -> Tensor:
    """Mean log-probability of the steps of both segments of each pair, nats a step: [B]."""
    sides = (pairs.chosen_side, pairs.rejected_side)
    total = sum((side.log_probs.sum(-1) for side in sides), pairs.chosen.new_zeros(()))
    length = sum((side.lengths for side in sides), pairs.chosen.new_zeros(()))
    return total / length.clamp_min(1)


def _mean_log_prob_of_lists(batch: RankedLogps) -> Tensor:
    """Mean log-probability of the steps of all segments of a list that orders anything: [B]."""
    answers = batch.answers
    total = batch.per_answer(answers.log_probs.sum(-1)).sum(-1)
    length = batch.per_answer(answers.lengths).sum(-1).clamp_min(1)
    ordered = better_than(batch.ranks).any(-1).any(-1)
    return torch.where(ordered, total / length, torch.zeros_like(total))
