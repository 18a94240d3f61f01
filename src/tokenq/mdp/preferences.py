"""Exact preferences over responses, Bradley-Terry and Plackett-Luce, and samples from them.

Both read the sum of rewards of a response (eq. 1 of 2404.12358) with no temperature of their own:
scale the returns for sharper or duller judges.
"""

from dataclasses import dataclass

import numpy as np

from tokenq.mdp.arrays import Array, Indices


def margins(scores: Array) -> Array:
    """[..., R, R] score of the first less score of the second response, from [..., R]."""
    return scores[..., :, None] - scores[..., None, :]


def bradley_terry(returns: Array) -> Array:
    """[..., R, R] probability that the first response is preferred to the second (eq. 1).

    returns: [..., R] of responses to one prompt
    """
    # The logistic function by way of tanh, which overflows for no margin.
    probability: Array = 0.5 * (1.0 + np.tanh(0.5 * margins(returns)))
    return probability


def plackett_luce_logp(ranked: Array) -> Array:
    """[...] log-probability of a ranking under Plackett-Luce.

    ranked: [..., K] returns of the ranked responses, the best one first
    """
    remaining = np.logaddexp.accumulate(ranked[..., ::-1], axis=-1)[..., ::-1]
    result: Array = (ranked - remaining).sum(-1)
    return result


@dataclass(frozen=True, eq=False)
class Comparisons:
    """N sampled comparisons: the prompt [N] and the responses [N] that won and lost."""

    prompts: Indices
    winners: Indices
    losers: Indices


def sample_comparisons(returns: Array, count: int, rng: np.random.Generator) -> Comparisons:
    """Draw pairs of different responses uniformly, and the winner of each by Bradley-Terry.

    returns: [P, R]. Raises ValueError where there are fewer than two responses.
    """
    prompts, responses = returns.shape
    if responses < 2:
        raise ValueError(f"comparisons need at least 2 responses, got {responses}")
    prompt = rng.integers(prompts, size=count)
    first = rng.integers(responses, size=count)
    second = (first + rng.integers(1, responses, size=count)) % responses
    margin = returns[prompt, first] - returns[prompt, second]
    first_wins = rng.logistic(size=count) < margin
    return Comparisons(
        prompt, np.where(first_wins, first, second), np.where(first_wins, second, first)
    )


def sample_rankings(returns: Array, count: int, rng: np.random.Generator) -> Indices:
    """[count, ..., K] rankings of K responses by Plackett-Luce, the best first.

    returns: [..., K]. The order of the returns with Gumbel noise added is a Plackett-Luce draw.
    """
    noise = rng.gumbel(size=(count, *returns.shape))
    order: Indices = np.argsort(-(returns + noise), axis=-1)
    return order
