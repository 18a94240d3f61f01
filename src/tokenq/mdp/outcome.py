"""Values in the outcome gauge: what a prefix is worth, seen from how its response will end.

Proposition 3.1 of "Free Process Rewards without Process Labels" (arXiv 2412.01981): the running sum
of `beta * log(pi/pi_ref)` (`PrefixTree.prefix_sums`) is the soft expectation, under the reference,
of that sum over the whole response. Reconstructed from the statement and proved from the leaves up:
the ratio of two policies over what is still to come has mean 1 under the reference.
"""

import numpy as np
from numpy.typing import ArrayLike

from tokenq.mdp.arrays import Array, log_sum_exp, per_edge, positive
from tokenq.mdp.tree import PrefixTree


def soft_expectation(tree: PrefixTree, ref_logps: Array, outcomes: Array, beta: ArrayLike) -> Array:
    """[..., S] `beta * log E_{y ~ pi_ref(.|s)} exp(outcome(y) / beta)`.

    ref_logps: [..., S, A] log pi_ref(a|s)
    outcomes:  [..., P, R] one number per response, in the order of the tree's responses

    Raises ValueError unless every beta is > 0.
    """
    beta = positive(beta)
    ended = outcome_steps(tree, outcomes) / per_edge(beta)
    log_mean = tree.backward(
        lambda level, following: log_sum_exp(
            ref_logps[..., level, :] + ended[..., level, :] + following
        ),
        ended.shape[:-2],
    )
    return beta[..., None] * log_mean


def outcome_steps(tree: PrefixTree, outcomes: Array) -> Array:
    """[..., S, A] the outcomes [..., P, R] as a reward of the last token, 0 at all others (eq. 3).

    Without the `beta * log pi_ref` of eq. 3, which tokenq keeps apart from the reward.
    """
    steps = np.zeros((*outcomes.shape[:-2], tree.states, tree.vocabulary))
    states, tokens = tree.last_steps
    steps[..., states, tokens] = outcomes
    return steps
