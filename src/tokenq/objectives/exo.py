"""Efficient exact optimisation for pairs: the reverse of DPO's divergence."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.pairwise import DivergencePairwise


@dataclass(frozen=True)
class EXO(DivergencePairwise):
    """KL divergence from the policy's preference to the smoothed label.

    With the margin m = beta * (s_w - s_l) and the label e = `label_smoothing`, the policy prefers
    chosen with probability p = sigmoid(m), the label says 1 - e, and the loss is

        p (log p - log(1 - e)) + (1 - p) (log(1 - p) - log e)

    eq. 16 of "Towards Efficient and Exact Optimization of Language Model Alignment" (Ji et al.,
    arXiv 2402.00856). DPO with label smoothing minimises the same divergence the other way round.
    The minimum is at m = log((1 - e)/e): without smoothing there is none.

    label_smoothing: share of labels taken to be flipped, in (0, 0.5)
    """

    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in (0, 0.5), got {self.label_smoothing}")

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        margin = self.beta * (chosen - rejected)
        e = self.label_smoothing
        right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-e))
        wrong = (-margin).sigmoid() * (logsigmoid(-margin) - math.log(e))
        return right + wrong
