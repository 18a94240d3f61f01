"""The contextual-bandit view: a whole response is one action, as in the first derivation of DPO."""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from tokenq.mdp.arrays import Array, log_sum_exp, per_edge, positive


@dataclass(frozen=True, eq=False)
class BanditSolution:
    """log_policy: [..., P, R] log pi*(y|x); v: [..., P] beta * log Z(x), equal to V*(s_0)."""

    log_policy: Array
    v: Array


@dataclass(frozen=True, eq=False)
class Bandit:
    """Prompts as contexts, responses as arms.

    returns:   [..., P, R] reward r(x, y) of each response
    ref_logps: [..., P, R] log pi_ref(y|x)
    """

    returns: Array
    ref_logps: Array

    def solve(self, beta: ArrayLike) -> BanditSolution:
        """`pi*(y|x) = pi_ref(y|x) exp(r(x,y) / beta) / Z(x)`, section 3.3 of 2404.12358.

        The paper leaves out 1/beta in the exponent. Raises ValueError unless every beta is > 0.
        """
        beta = positive(beta)
        tilted = self.ref_logps + self.returns / per_edge(beta)
        log_z = log_sum_exp(tilted)
        return BanditSolution(tilted - log_z[..., None], beta[..., None] * log_z)
