"""Bootstrap over prompts: several comparisons of one prompt are drawn together, or not at all."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from tokenq.judges.accuracy import LEVEL

RESAMPLES = 2000
_CELLS = 1_000_000
"""Weights held at once: bounds memory."""


def prompt_weights(prompts: Sequence[Hashable]) -> np.ndarray:
    """[n] weight of each comparison, so that every prompt counts as one."""
    places, counts = _places(prompts)
    return 1.0 / counts[places]


def resampled_weights(
    prompts: Sequence[Hashable], seed: int, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Yield blocks [b, n] of the weights that comparisons have when prompts are drawn anew."""
    places, counts = _places(prompts)
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // len(places))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=size)
        yield (drawn / counts)[:, places]


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _places(prompts: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Number of each comparison's prompt, [n], and how many comparisons each prompt has, [p]."""
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    return places, np.bincount(places).astype(np.float64)
