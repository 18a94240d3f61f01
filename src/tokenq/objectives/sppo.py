"""Self-play preference optimisation with hard labels: a target for each response by itself."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.pairwise import Pairwise


@dataclass(frozen=True)
class SPPOHard(Pairwise):
    """Squared distance of each log-ratio from plus or minus 1 / (2 beta).

        ( h_w - 1 / (2 beta) )^2 + ( h_l + 1 / (2 beta) )^2

    with the log-ratios h of chosen and rejected. Eq. 4.7 of "Self-Play Preference Optimization for
    Language Model Alignment" (Wu et al., arXiv 2405.00675), eta = 1/beta, where the win
    probability is 1 for chosen and 0 for rejected. In the paper both answers are the policy's own
    of the round before, which is the reference.

    beta: 1 over the paper's eta, > 0
    """

    beta: float = 0.001

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        target = 1 / (2 * self.beta)
        return (chosen - target) ** 2 + (rejected + target) ** 2
