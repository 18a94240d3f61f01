"""What all pair objectives share: from a pair's log-ratios to a mean over pairs.

A subclass says in `losses` what it makes of the two scores of a pair; that is its whole equation.
"""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenq.objectives.base import (
    REFERENCE,
    Metrics,
    Need,
    batch_mean,
    require_positive,
    require_within,
    reward_metrics,
)
from tokenq.objectives.batch import PairLogps
from tokenq.objectives.f_divergence import Divergence, check_divergence, divergence_score
from tokenq.objectives.weighting import desensitised, on_policy_weights

WEIGHTED: frozenset[Need] = frozenset({"reference", "collision"})


@dataclass(frozen=True)
class Pairwise(ABC):
    """Mean over pairs of `losses(chosen, rejected)`, a function of two log-ratios in nats.

    The log-ratio of a response is `sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`. Metrics are
    those of the reward `beta * log-ratio`, whatever the loss makes of it (as in TRL).

    beta:          strength of the KL constraint, > 0; rewards are in nats times beta
    ld_alpha:      weight in [0, 1] of tokens beyond the length of the pair's shorter response
                   (LD-DPO, arXiv 2409.06411); unset: all tokens count the same
    use_weighting: weigh each pair by how likely the policy is to write it itself (WPO, arXiv
                   2406.11827)
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    couples_rows: ClassVar[bool] = False

    beta: float = 0.1
    _: KW_ONLY
    ld_alpha: float | None = None
    use_weighting: bool = False

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        if self.ld_alpha is not None:
            require_within(0, 1, ld_alpha=self.ld_alpha)

    @property
    def needs(self) -> frozenset[Need]:
        """A reference; the policy's collision probabilities for `use_weighting`."""
        return WEIGHTED if self.use_weighting else REFERENCE

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        """Return the mean loss of the pairs and TRL's metrics of their rewards."""
        log_ratios = self.sums(batch, batch.chosen_side.log_ratios, batch.rejected_side.log_ratios)
        losses = self.losses(*self.scores(batch, *log_ratios))
        if self.use_weighting:
            losses = losses * on_policy_weights(batch)
        chosen, rejected = (self.beta * log_ratio for log_ratio in log_ratios)
        return batch_mean(losses), reward_metrics(chosen, rejected)

    @abstractmethod
    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""

    def scores(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores [B] of the responses, made of their log-ratios [B]: the log-ratios."""
        return chosen, rejected

    def sums(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B], [B]: per-step values [B, T] of both sides summed over each response."""
        if self.ld_alpha is not None:
            chosen, rejected = desensitised(batch, chosen, rejected, self.ld_alpha)
        return chosen.sum(-1), rejected.sum(-1)

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch.chosen))


@dataclass(frozen=True)
class DivergencePairwise(Pairwise):
    """A pair objective of score differences, for any f-divergence between policy and reference.

    A score is `f'(pi/pi_ref)`, which for the reverse KL is the log-ratio. Only losses of the
    difference of two scores have this form: the term `beta log Z` cancels in no other.

    f_divergence_type:       divergence that holds the policy near the reference: reverse_kl,
                             forward_kl, js_divergence or alpha_divergence (f-DPO, arXiv 2309.16240)
    f_alpha_divergence_coef: order a of the alpha divergence, in [-10, 10]; 1 is the reverse KL,
                             0 the forward KL
    """

    _: KW_ONLY
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divergence(self.f_divergence_type, self.f_alpha_divergence_coef)

    def scores(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return f' of the probability ratios."""
        kind, order = self.f_divergence_type, self.f_alpha_divergence_coef
        return divergence_score(chosen, kind, order), divergence_score(rejected, kind, order)


def per_token(batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Divide [B] values of responses by their numbers of steps; an empty response's stay 0."""
    lengths = batch.chosen_side.lengths, batch.rejected_side.lengths
    return chosen / lengths[0].clamp_min(1), rejected / lengths[1].clamp_min(1)
