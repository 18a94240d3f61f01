"""Robust DPO: an unbiased estimate of the clean loss from labels of which some are flipped."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import require_label_smoothing
from tokenq.objectives.pairwise import DivergencePairwise


@dataclass(frozen=True)
class RobustDPO(DivergencePairwise):
    """DPO with the bias of noisy labels taken out.

    With the margin m = beta * (s_w - s_l) and the flip probability e = `label_smoothing`,

        ( -(1 - e) log sigmoid(m) + e log sigmoid(-m) ) / (1 - 2 e)

    "Provably Robust DPO: Aligning Language Models with Noisy Feedback" (Ray Chowdhury et al., arXiv
    2403.00409). Its mean over flips of probability e is the DPO loss on clean labels. Unlike
    conservative DPO (`dpo` with `label_smoothing`), a single pair's loss has no lower bound.

    label_smoothing: probability that a label is flipped, in [0, 0.5)
    """

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_label_smoothing(self.label_smoothing)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        margin = self.beta * (chosen - rejected)
        e = self.label_smoothing
        return (e * logsigmoid(-margin) - (1 - e) * logsigmoid(margin)) / (1 - 2 * e)
