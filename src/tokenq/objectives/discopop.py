"""DiscoPOP: the blend of logistic and exponential loss that a search over programs found."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.pairwise import DivergencePairwise


@dataclass(frozen=True)
class DiscoPOP(DivergencePairwise):
    """Log-ratio modulated loss: logistic for negative margins, exponential for positive ones.

    With the margin m = beta * (s_w - s_l) and tau = `discopop_tau`,

        (1 - sigmoid(m / tau)) * (-log sigmoid(m)) + sigmoid(m / tau) * exp(-m)

    eq. 5 of "Discovering Preference Optimization Algorithms with and for Large Language Models" (Lu
    et al., arXiv 2406.08414). It is not convex: its gradient changes sign near m = 0. TRL
    multiplies the two factors of the second term, which is NaN once exp(-m) overflows (m below -88
    in fp32); here their logarithms are added, which is the same and finite.

    discopop_tau: width of the change from one loss to the other, in (0, 1]
    """

    beta: float = 0.05
    discopop_tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.discopop_tau <= 1:
            raise ValueError(f"discopop_tau must be in (0, 1], got {self.discopop_tau}")

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        margin = self.beta * (chosen - rejected)
        position = margin / self.discopop_tau
        logistic = -logsigmoid(margin) * (-position).sigmoid()
        exponential = (logsigmoid(position) - margin).exp()
        return logistic + exponential
