"""The win rate at equal length, after AlpacaEval 2 (2404.04475)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from tokenq.judges.resampling import (
    RESAMPLES,
    percentile_interval,
    prompt_weights,
    resampled_weights,
)
from tokenq.judges.wins import checked

RIDGE = 0.001
"""Penalty `RIDGE / 2 * (quality^2 + length^2)` beside a log loss summed over prompts: too small to
be seen in a rate, enough for a finite answer where one side wins everything."""
_STEPS = 100
_LONGEST_STEP = 2.0


@dataclass(frozen=True)
class LengthControl:
    """The fit log-odds(ours is better) = quality + length * tanh(difference / spread).

    value:     sigmoid(quality), the win rate that the fit says of responses of equal length
    low, high: 95 % interval, by bootstrap over prompts
    quality:   log-odds at equal length
    length:    log-odds that ours gains by being much longer
    spread:    standard deviation of the difference of lengths, ours less theirs
    longer, shorter: shares of comparisons in which ours is; where one of them is near 0, equal
               length lies at the edge of what was seen, and `value` is an extrapolation
    """

    value: float
    low: float
    high: float
    quality: float
    length: float
    spread: float
    longer: float
    shorter: float


def length_controlled(
    preferences: Sequence[float] | np.ndarray,
    length_differences: Sequence[float] | np.ndarray,
    prompts: Sequence[Hashable] | np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LengthControl | None:
    """The win rate with the judge's taste for length taken out (2404.04475, eq. 2).

    preferences:        1 ours, 0 theirs, 0.5 a tie
    length_differences: length of ours less that of theirs, in any unit
    prompts:            what names each comparison's prompt, each of which counts the same

    One model against one baseline, so the paper's terms of the instruction's difficulty, which it
    learns from many models, are left out, and its L1 penalty is replaced by :data:`RIDGE`.
    None where all differences are the same but not 0: length and quality cannot be told apart.

    Raises ValueError as :func:`win_rate` does, and for a difference that is not finite.
    """
    values, names = checked(preferences, prompts)
    differences = np.asarray(length_differences, dtype=np.float64)
    if differences.shape != values.shape or not np.isfinite(differences).all():
        raise ValueError("length differences must be finite, one for each preference")
    spread = float(differences.std(ddof=1)) if len(values) > 1 else 0.0
    if spread == 0 and differences[0] != 0:
        return None
    features = _features(differences, spread)
    [(quality, length)] = fit(features, values, prompt_weights(names)[None])
    drawn = np.concatenate(
        [fit(features, values, block)[:, 0] for block in resampled_weights(names, seed, resamples)]
    )
    low, high = percentile_interval(expit(drawn))
    return LengthControl(
        value=float(expit(quality)),
        low=low,
        high=high,
        quality=float(quality),
        length=float(length),
        spread=spread,
        longer=float((differences > 0).mean()),
        shorter=float((differences < 0).mean()),
    )


def _features(differences: np.ndarray, spread: float) -> np.ndarray:
    """[n, 2]: a constant for quality, and the saturating difference of lengths."""
    scaled = differences / spread if spread else differences
    return np.stack([np.ones_like(scaled), np.tanh(scaled)], axis=1)


def fit(features: np.ndarray, preferences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[b, k] coefficients of b logistic fits: features [n, k], preferences [n], weights [b, n].

    Newton's method on the weighted log loss with the penalty :data:`RIDGE`, all fits at once. The
    loss is convex; steps are cut short so that nearly separable data do not overshoot.
    """
    penalty = RIDGE * np.eye(features.shape[1])
    found = np.zeros((len(weights), features.shape[1]))
    for _ in range(_STEPS):
        probability = expit(found @ features.T)
        gradient = (weights * (probability - preferences)) @ features + RIDGE * found
        curvature = np.einsum(
            "bn,ni,nj->bij", weights * probability * (1 - probability), features, features,
            optimize=True,
        )  # fmt: skip
        step = np.linalg.solve(curvature + penalty, gradient[:, :, None])[:, :, 0]
        size = np.abs(step).max(axis=1, keepdims=True)
        found -= step * np.minimum(1.0, _LONGEST_STEP / np.maximum(size, 1e-300))
        if size.max() < 1e-9:
            break
    return found
