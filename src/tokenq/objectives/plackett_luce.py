"""Plackett-Luce DPO: the likelihood of a whole ranking."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.ranking import Listwise, better_than, first_among_worse


@dataclass(frozen=True)
class PlackettLuce(Listwise):
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
    """

    def losses(self, rewards: Tensor, ranks: Tensor) -> Tensor:
        """Return the loss [B] of lists with these rewards and ranks [B, K]."""
        return first_among_worse(rewards, better_than(ranks)).sum(-1)
