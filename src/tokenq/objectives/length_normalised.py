"""DPO on log-ratios per token instead of per response."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.batch import PairLogps
from tokenq.objectives.dpo import DPO
from tokenq.objectives.pairwise import per_token


@dataclass(frozen=True)
class LengthNormalisedDPO(DPO):
    """DPO whose rewards are means over the tokens of a response.

        -log sigmoid( beta * ( s_w / |y_w| - s_l / |y_l| ) )

    with |y| the number of tokens: TRL's "sigmoid_norm". Section 4.3 of "Tulu 3" (Lambert et al.,
    arXiv 2411.15124), where beta is 5; first an ablation of SimPO (arXiv 2405.14734). The longer
    response has no longer the larger say. Metrics are of the sums, as in TRL.

    beta: strength of the KL constraint, > 0; about the mean length times what suits DPO
    """

    beta: float = 5.0

    def scores(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return f' of the probability ratios, divided by the number of tokens."""
        return per_token(batch, *super().scores(batch, chosen, rejected))
