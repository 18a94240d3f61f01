"""Rewards that mean the same: Lemma 1, Definition 1 and Theorem 1 of 2404.12358, made exact."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tokenq.mdp.arrays import Array, log_sum_exp, per_edge, positive
from tokenq.mdp.token_mdp import TokenMDP
from tokenq.mdp.tree import PrefixTree


def inverse_bellman(tree: PrefixTree, q: Array, ref_logps: Array, beta: ArrayLike) -> Array:
    """[..., S, A] the only reward whose optimal values are `q`: eq. 7 solved for r (Lemma 1).

        r(s,a) = Q(s,a) - beta * log pi_ref(a|s) - V(s'),    V(s') = beta * log sum exp(Q(s')/beta)

    The proof in appendix A leaves out `beta * log pi_ref`. For a language model with logits z that
    is sampled at temperature 1, `q = beta * z`. Raises ValueError unless every beta is > 0.
    """
    beta = positive(beta)
    v = beta[..., None] * log_sum_exp(q / per_edge(beta))
    return q - per_edge(beta) * ref_logps - tree.next_values(v)


def shaped(tree: PrefixTree, reward: Array, potential: Array) -> Array:
    """[..., S, A] `r(s,a) + Phi(s') - Phi(s)` (Definition 1), Phi = 0 where a response has ended.

    potential: [..., S]. Every return from a prompt changes by the constant `-Phi(prompt)`.
    """
    return reward + tree.next_values(potential) - potential[..., None]


@dataclass(frozen=True, eq=False)
class Equivalence:
    """Whether two rewards are the same up to potential shaping.

    potential: [..., S] the Phi that comes closest, from the leaves up
    error:     [...] largest |r' - r - Phi(s') + Phi(s)|, in units of the reward
    holds:     [...] bool, the error is within the tolerance that was asked for
    """

    potential: Array
    error: Array
    holds: np.ndarray


def equivalence(
    tree: PrefixTree, reward: Array, other: Array, tolerance: float = 1e-9
) -> Equivalence:
    """Decide whether some Phi shapes `reward` into `other`, both [..., S, A] (Definition 1).

    Phi is 0 at terminal states. (A constant there is the same shaping; values that differ from one
    ending to another change the preferences, so rewards that differ by these are not equivalent.)
    The difference of the rewards fixes Phi from the last level up; they are equivalent when all
    tokens of a state agree on it, which is when all returns from a prompt differ by one constant.
    """
    difference = other - reward
    potential = tree.backward(
        lambda level, following: (following - difference[..., level, :]).mean(-1),
        difference.shape[:-2],
    )
    error = np.abs(other - shaped(tree, reward, potential)).max((-2, -1))
    return Equivalence(potential, error, error <= tolerance)


def canonical(mdp: TokenMDP, beta: ArrayLike) -> TokenMDP:
    """The member of the reward's class that is `beta * log(pi*/pi_ref)` (Theorem 1, eq. 11).

    Its V* is 0 in every state; policy and preferences are those of `mdp`.
    """
    return mdp.with_reward(mdp.solve(beta).advantage)
