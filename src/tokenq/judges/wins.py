"""How often our response is the better one, with its interval; how far two judges agree.

A preference is 1 where ours is better, 0 where theirs is, 0.5 for a tie.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tokenq.judges.accuracy import wilson_interval
from tokenq.judges.resampling import (
    RESAMPLES,
    percentile_interval,
    prompt_weights,
    resampled_weights,
)


@dataclass(frozen=True)
class WinRate:
    """`value`: wins + ties / 2 as a share; each of `prompts` counts the same.

    `low`, `high`: 95 % interval. Wilson's, where each prompt has one comparison; else by bootstrap
    over prompts.
    """

    value: float
    low: float
    high: float
    prompts: int
    comparisons: int
    wins: int
    ties: int
    losses: int


def win_rate(
    preferences: Sequence[float] | np.ndarray,
    prompts: Sequence[Hashable] | np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> WinRate:
    """The share of comparisons that ours wins, ties counted half.

    prompts: what names each comparison's prompt; every comparison has its own if left out
    seed:    of the bootstrap

    Raises ValueError for no preferences, one outside [0, 1], or lists of different lengths.
    """
    values, names = checked(preferences, prompts)
    weights = prompt_weights(names)
    count = len(set(names))
    share = float(np.average(values, weights=weights))
    if count == len(values):
        low, high = wilson_interval(share, count)
    else:
        drawn = [
            block @ values / block.sum(axis=1)
            for block in resampled_weights(names, seed, resamples)
        ]
        low, high = percentile_interval(np.concatenate(drawn))
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    return WinRate(share, low, high, count, len(values), wins, len(values) - wins - losses, losses)


@dataclass(frozen=True)
class Agreement:
    """Of `comparisons` that both judges told: `same`, the share with the same winner or a tie.

    `kappa`: Cohen's, what that is above the agreement of two judges who answer as often for each
    side but at random; None where that is certain.
    """

    comparisons: int
    same: float
    kappa: float | None


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement | None:
    """How far two judges' preferences agree; None where no comparison was told by both."""
    both = [
        (np.sign(a - 0.5), np.sign(b - 0.5))
        for a, b in zip(first, second, strict=True)
        if a is not None and b is not None
    ]
    if not both:
        return None
    sides: np.ndarray = np.array(both)
    same = float((sides[:, 0] == sides[:, 1]).mean())
    chance = float(sum(np.prod((sides == outcome).mean(axis=0)) for outcome in (-1, 0, 1)))
    kappa = None if chance == 1 else (same - chance) / (1 - chance)
    return Agreement(len(both), same, kappa)


def checked(
    preferences: Sequence[float] | np.ndarray, prompts: Sequence[Hashable] | np.ndarray | None
) -> tuple[np.ndarray, Sequence[Hashable]]:
    """Preferences [n] as float64, and what names their prompts."""
    values = np.asarray(preferences, dtype=np.float64)
    names: Sequence[Hashable] = range(len(values)) if prompts is None else list(prompts)
    if not values.size:
        raise ValueError("no preferences")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a preference is outside [0, 1]")
    if len(names) != len(values):
        raise ValueError(f"{len(values)} preferences but {len(names)} prompts")
    return values, names
