"""The one number that a falling likelihood must obey: E_ref[implicit reward] = -beta KL(ref || pi).

Eq. 16 of "From r to Q*" (arXiv 2404.12358), for whole responses: of responses that the *reference*
writes, the mean implicit reward is minus the divergence, so it starts at 0 and can only be
negative. It holds for responses that are cut at a length as well, and for nothing else: the mean
over the chosen answers of a data set may rise or fall.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its 95 % Student-t interval; None for a single prompt."""

    mean: float
    low: float | None
    high: float | None

    def holds(self, value: float) -> bool:
        """Whether the interval, if there is one, covers `value`."""
        return self.low is None or self.high is None or self.low <= value <= self.high


@dataclass(frozen=True)
class KLIdentity:
    """Both sides of the identity, on the same responses of the reference; beta times nats.

    prompts, responses: how many
    implicit:   mean of beta * sum_t log(pi / pi_ref) of the tokens that were drawn
    divergence: mean of -beta * sum_t KL(pi_ref || pi) over the vocabulary in the states on the way;
                the same expectation with less noise
    difference: implicit less divergence, response by response: 0 in expectation
    """

    prompts: int
    responses: int
    implicit: Interval
    divergence: Interval
    difference: Interval

    @property
    def holds(self) -> bool:
        """Whether 0 lies in the interval of the difference.

        If not, the responses were not drawn from this reference (another model, temperature or
        template), or log-probabilities are wrong.
        """
        return self.difference.holds(0.0)


def kl_identity(
    log_ratios: Sequence[float],
    divergences: Sequence[float],
    prompts: Sequence[int],
    beta: float,
) -> KLIdentity:
    """Estimate both sides from responses that the reference has drawn at temperature 1.

    log_ratios:  [N] sum over the response's tokens of log pi - log pi_ref, nats
    divergences: [N] sum over the same states of KL(pi_ref || pi), nats
    prompts:     [N] which prompt each response answers; responses to one prompt are not independent
    beta:        the KL penalty of the training

    Raises ValueError for no response.
    """
    if not len(log_ratios):
        raise ValueError("no responses to estimate from")
    implicit = beta * np.asarray(log_ratios, dtype=np.float64)
    expected = -beta * np.asarray(divergences, dtype=np.float64)
    groups = np.unique(np.asarray(prompts), return_inverse=True)[1]
    return KLIdentity(
        int(groups.max()) + 1,
        len(implicit),
        interval(implicit, groups),
        interval(expected, groups),
        interval(implicit - expected, groups),
    )


def interval(values: np.ndarray, groups: np.ndarray, level: float = LEVEL) -> Interval:
    """Of the mean over groups of the means within them.

    values: [N], at least one
    groups: [N] numbers 0..G-1, each of which occurs
    level:  how often such intervals cover the truth
    """
    means = np.bincount(groups, weights=values) / np.bincount(groups)
    mean = float(means.mean())
    if len(means) < 2:
        return Interval(mean, None, None)
    half = float(means.std(ddof=1) / len(means) ** 0.5) * _quantile(len(means) - 1, level)
    return Interval(mean, mean - half, mean + half)


@cache
def _quantile(freedom: int, level: float) -> float:
    """Of Student's t, at the upper end of the interval."""
    return float(stats.t.ppf((1 + level) / 2, freedom))
