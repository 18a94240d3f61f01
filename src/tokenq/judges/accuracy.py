"""A share of right answers with its confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

LEVEL = 0.95
"""Confidence level of all intervals in this room."""


@dataclass(frozen=True)
class Accuracy:
    """`value`: share of `count` pairs that were told right, ties counted half (`ties` of them).

    `low`, `high`: Wilson score interval at 95 %, which supposes that pairs are independent.
    """

    value: float
    low: float
    high: float
    count: int
    ties: int


def count_wins(differences: Sequence[float]) -> Accuracy:
    """How often a difference `chosen - rejected` is above 0.

    Raises ValueError for no differences or one that is NaN.
    """
    if not differences:
        raise ValueError("no pairs to judge")
    if any(math.isnan(each) for each in differences):
        raise ValueError("a difference is NaN")
    count = len(differences)
    ties = sum(each == 0 for each in differences)
    share = (sum(each > 0 for each in differences) + 0.5 * ties) / count
    return Accuracy(share, *wilson_interval(share, count), count, ties)


def wilson_interval(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (Wilson 1927, JASA 22:209).

    Written out because scipy's takes whole numbers of successes, and ties count half here.
    """
    z = float(ndtri(0.5 + level / 2))
    weight = z * z / count
    center = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return max(0.0, center - half), min(1.0, center + half)
