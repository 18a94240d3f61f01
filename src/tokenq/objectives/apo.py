"""Anchored preference optimisation: where both likelihoods are to go, said in advance."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.pairwise import Pairwise


@dataclass(frozen=True)
class APOZero(Pairwise):
    """Chosen goes up, rejected goes down: for pairs whose chosen is better than the model.

    With the rewards r = beta * log-ratio of chosen and rejected,

        1 - sigmoid(r_w) + sigmoid(r_l)

    eq. 7 of "Anchored Preference Optimization and Contrastive Revisions" (D'Oosterlinck et al.,
    arXiv 2408.06266).
    """

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()


@dataclass(frozen=True)
class APODown(Pairwise):
    """Both go down, rejected further: for pairs whose chosen is worse than the model.

    With the rewards r = beta * log-ratio of chosen and rejected,

        sigmoid(r_w) + 1 - sigmoid(r_w - r_l)

    eq. 8 of "Anchored Preference Optimization and Contrastive Revisions" (D'Oosterlinck et al.,
    arXiv 2408.06266).
    """

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        return (self.beta * chosen).sigmoid() + (self.beta * (rejected - chosen)).sigmoid()
