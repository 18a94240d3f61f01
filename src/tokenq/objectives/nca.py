"""Noise contrastive alignment for pairs: each response is judged by itself."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.pairwise import Pairwise


@dataclass(frozen=True)
class NCA(Pairwise):
    """Chosen is told from noise; both sides are held near the reference.

    With the rewards r = beta * log-ratio of chosen and rejected,

        -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l)

    "Noise Contrastive Alignment of Language Models with Explicit Rewards" (Chen et al., arXiv
    2402.05369), two answers of which one is rewarded. The minimum of the first two terms is at
    r_w = log 2, above 0: the likelihood of chosen is not given up to gain a margin.
    """

    beta: float = 0.01

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        r_w, r_l = self.beta * chosen, self.beta * rejected
        return -logsigmoid(r_w) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)
