"""Plackett-Luce DPO: the likelihood of a whole ranking."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenq.objectives.base import REFERENCE, Metrics, Need, require_positive
from tokenq.objectives.batch import RankedLogps
from tokenq.objectives.ranking import (
    better_than,
    first_among_worse,
    list_rewards,
    mean_over_lists,
    number_of_lists,
    ranked_reward_metrics,
)


@dataclass(frozen=True)
class PlackettLuce:
    """Negative log-likelihood of a ranking under the Plackett-Luce model.

    With the implicit reward `r_k = beta * sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))` of answer
    k, and answers numbered from the best, the loss of a list is

        -sum_k log( exp(r_k) / sum_{j >= k} exp(r_j) )

    appendix A.3 of DPO (arXiv 2305.18290), Theorem 1 of "From r to Q*" (arXiv 2404.12358). With two
    answers it is DPO. Learning to rank knows the same loss as ListMLE.

    Ties: tied answers are not compared. The sum under an answer k runs over itself and all answers
    of a worse rank, without those tied with k; so k tied best answers are each preferred to the
    rest, and nothing is said among them. This is a product of choices that were made, not the
    probability of a set of rankings.

    The mean is over lists that rank at least one answer above another.

    beta: strength of the KL constraint, > 0; rewards are in nats times beta
    """

    kind: ClassVar[Literal["ranked"]] = "ranked"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = REFERENCE

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    def __call__(self, batch: RankedLogps) -> tuple[Tensor, Metrics]:
        rewards = list_rewards(batch, self.beta)
        choices = first_among_worse(rewards, better_than(batch.ranks))
        loss = mean_over_lists(choices.sum(-1), batch)
        return loss, ranked_reward_metrics(rewards, batch)

    def weight(self, batch: RankedLogps) -> Tensor:
        """Number of lists that compare something."""
        return number_of_lists(batch)
