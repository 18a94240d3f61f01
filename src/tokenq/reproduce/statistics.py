"""Means over seeds with their confidence intervals."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy import stats

LEVEL = 0.95


class Estimate(TypedDict):
    """A mean over `n` independent runs with its 95 % interval; None where one run has none."""

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean of independent runs (seeds) with its Student-t interval. Raises ValueError for none."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise ValueError("no values to estimate from")
    mean = float(numbers.mean())
    if numbers.size == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    half = float(stats.sem(numbers) * stats.t.ppf((1 + level) / 2, numbers.size - 1))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": int(numbers.size)}


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of `first - second` over the same seeds, with its interval."""
    return estimate([a - b for a, b in zip(first, second, strict=True)])


def shown(value: Estimate, digits: int = 3) -> str:
    """`0.812 [0.790, 0.834]`, the form that tables use."""
    mean = f"{value['mean']:.{digits}f}"
    if value["low"] is None or value["high"] is None:
        return mean
    return f"{mean} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
