"""Alignment by optimal transport: distributions of rewards are compared, not single pairs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenq.objectives.base import require_label_smoothing, smoothed_sigmoid
from tokenq.objectives.batch import PairLogps
from tokenq.objectives.pairwise import Pairwise


@dataclass(frozen=True)
class AOT(Pairwise):
    """The policy's margins are to be larger than the reference's, quantile by quantile.

    With the margins of the B pairs of a batch, sorted, under the policy and under the reference,

        u_(1) <= ... <= u_(B)    u_i = log pi(y_w,i) - log pi(y_l,i)
        v_(1) <= ... <= v_(B)    v_i = log pi_ref(y_w,i) - log pi_ref(y_l,i)
        m_i = beta (u_(i) - v_(i))
        loss = mean_i -(1 - e) log sigmoid(m_i) - e log sigmoid(-m_i)

    the paired form of "Distributional Preference Alignment of LLMs via Optimal Transport" (Melnyk
    et al., arXiv 2406.05882), e being `label_smoothing`. The sort makes it a statement about the
    whole batch: large batches are needed, and micro-batches are no longer added up exactly.

    label_smoothing: share of labels taken to be flipped, in [0, 0.5)
    use_weighting:   not possible, since the sort takes the two sides of a pair apart
    """

    couples_rows: ClassVar[bool] = True

    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_label_smoothing(self.label_smoothing)
        if self.use_weighting:
            raise ValueError("use_weighting must be False: sorting takes weights and pairs apart")

    def scores(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sorted margins of the policy and of the reference."""
        sides = batch.chosen_side, batch.rejected_side
        ref_chosen, ref_rejected = self.sums(
            batch, sides[0].masked(batch.ref_chosen), sides[1].masked(batch.ref_rejected)
        )
        reference = ref_chosen - ref_rejected
        policy = reference + chosen - rejected
        return policy.sort().values, reference.sort().values

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs of quantiles of what is to be larger and smaller."""
        return smoothed_sigmoid(self.beta * (chosen - rejected), self.label_smoothing)


@dataclass(frozen=True)
class AOTUnpaired(AOT):
    """The log-ratios of chosen are to be larger than those of rejected, quantile by quantile.

    AOT, with the sorted log-ratios of the chosen responses as u and those of the rejected as v:
    which chosen response belongs to which rejected one plays no part.
    """

    def scores(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sorted log-ratios of both sides."""
        return chosen.sort().values, rejected.sort().values
