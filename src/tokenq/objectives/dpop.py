"""DPO-Positive: DPO that may not lower the likelihood of the chosen response."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import require_within
from tokenq.objectives.pairwise import Pairwise


@dataclass(frozen=True)
class DPOP(Pairwise):
    """DPO with a penalty wherever the policy likes chosen less than the reference does.

    With the log-ratios h of chosen and rejected,

        -log sigmoid( beta * ( h_w - h_l - dpop_lambda * max(0, -h_w) ) )

    "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive" (Pal et al., arXiv
    2402.13228), where beta is 0.3 and lambda 50 (both from secondary sources). The penalty stands
    inside the sigmoid: it fades once the pair is far apart. With lambda 0 it is DPO.

    dpop_lambda: weight of the penalty, in [0, 1e6]
    """

    beta: float = 0.3
    dpop_lambda: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(0, 1e6, dpop_lambda=self.dpop_lambda)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        penalty = self.dpop_lambda * (-chosen).relu()
        return -logsigmoid(self.beta * (chosen - rejected - penalty))
