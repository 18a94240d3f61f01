"""Identity preference optimisation: a margin that is to be met, not to be maximised."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.batch import PairLogps
from tokenq.objectives.pairwise import DivergencePairwise, per_token


@dataclass(frozen=True)
class IPO(DivergencePairwise):
    """Squared distance of the score difference from its target.

        ( s_w - s_l - 1 / (2 beta) )^2

    eq. 17 of "A General Theoretical Paradigm to Understand Learning from Human Preferences" (Azar
    et al., arXiv 2310.12036); beta is the paper's tau. The minimum is finite even where one answer
    always wins. The paper's scores are sums over tokens, as in Mitchell's DPO code and in OpenRLHF
    (`length_normalize=False`). TRL and LLaMA-Factory divide each by the number of its tokens
    (`length_normalize=True`, the default): the target is then a log-ratio per token.

    length_normalize: divide each response's score by its number of tokens
    """

    length_normalize: bool = True

    def scores(self, batch: PairLogps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return f' of the probability ratios, per token if `length_normalize`."""
        chosen, rejected = super().scores(batch, chosen, rejected)
        if self.length_normalize:
            chosen, rejected = per_token(batch, chosen, rejected)
        return chosen, rejected

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        return (chosen - rejected - 1 / (2 * self.beta)) ** 2
