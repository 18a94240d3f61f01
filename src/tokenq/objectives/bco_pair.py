"""Binary classifier optimisation on pairs: chosen is a good answer, rejected a bad one."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.pairwise import Pairwise


@dataclass(frozen=True)
class BCOPair(Pairwise):
    """Two logistic losses in place of one of the difference.

    With the rewards r = beta * log-ratio of chosen and rejected,

        -log sigmoid(r_w) - log sigmoid(-r_l)

    "Binary Classifier Optimization for Large Language Model Alignment" (Jung et al., arXiv
    2404.04656) without its reward shift, as TRL's "bco_pair" has it: the paper's delta, a running
    mean of rewards, is 0 here. It is an upper bound of the DPO loss.
    """

    beta: float = 0.01

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        return -logsigmoid(self.beta * chosen) - logsigmoid(-self.beta * rejected)
