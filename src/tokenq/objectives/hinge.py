"""Hinge loss on the margin of a pair (SLiC, RSO)."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.pairwise import DivergencePairwise


@dataclass(frozen=True)
class Hinge(DivergencePairwise):
    """Pairs that are not yet apart by a margin of 1, and no others, are pushed apart.

        max(0, 1 - beta * (s_w - s_l))

    with the scores s of chosen and rejected. The calibration loss of SLiC-HF (Zhao et al., arXiv
    2305.10425) with the reference-normalised scores of RSO (Liu et al., "Statistical Rejection
    Sampling Improves Preference Optimization", arXiv 2309.06657), whose gamma is beta. SLiC's
    margin delta is 1/beta; its regularisation term is an `sft` term of the mixture.

    beta: 1 over the margin that is asked for, > 0; RSO's gamma
    """

    beta: float = 0.05

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        return (1 - self.beta * (chosen - rejected)).relu()
