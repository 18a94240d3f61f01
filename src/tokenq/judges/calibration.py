"""Calibration of Bradley-Terry probabilities: does a pair called 80 % sure come out right in 80 %?

The probability that the first of two responses is the better one is sigmoid(margin), the margin
being the difference of their implicit rewards (2305.18290, eq. 1 and 6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence lies in [low, high): how sure on average, and how often right.

    `confidence` and `accuracy` are None where `count` is 0.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    expected_calibration_error: mean over pairs of |confidence - accuracy| of their bin
    brier:                      mean of (1 - p)^2, p = probability given to the chosen response;
                                0.25 for a coin
    log_loss:                   mean of -log p, nats; log 2 = 0.693 for a coin. The DPO loss
    bins:                       of equal width in confidence, from 0.5 to 1
    """

    expected_calibration_error: float
    brier: float
    log_loss: float
    bins: tuple[Bin, ...]


def calibrate(margins: Sequence[float], bins: int = BINS) -> Calibration:
    """Calibration of sigmoid(margin), margins being chosen minus rejected.

    Which response comes first in a pair is arbitrary, so a pair enters by the answer that the model
    gives: confidence max(p, 1 - p) in [0.5, 1], right where margin > 0, half right at 0. Bins of p
    over both orders of each pair would give the same error. A confidence of 1 is in the last bin.

    Raises ValueError for no margins, one that is NaN, or fewer than one bin.
    """
    values = np.asarray(margins, dtype=np.float64)
    if not values.size:
        raise ValueError("no pairs to judge")
    if np.isnan(values).any():
        raise ValueError("a margin is NaN")
    if bins < 1:
        raise ValueError(f"{bins} bins")
    confidence = expit(np.abs(values))
    right = np.heaviside(values, 0.5)
    edges = np.linspace(0.5, 1.0, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    found = [_bin(edges, i, confidence[places == i], right[places == i]) for i in range(bins)]
    gaps = [
        each.count * abs(each.confidence - each.accuracy)
        for each in found
        if each.confidence is not None and each.accuracy is not None
    ]
    return Calibration(
        expected_calibration_error=sum(gaps) / values.size,
        brier=float(np.mean(expit(-values) ** 2)),
        log_loss=float(np.mean(np.logaddexp(0.0, -values))),
        bins=tuple(found),
    )


def _bin(edges: np.ndarray, at: int, confidence: np.ndarray, right: np.ndarray) -> Bin:
    low, high = float(edges[at]), float(edges[at + 1])
    if not confidence.size:
        return Bin(low, high, 0, None, None)
    return Bin(low, high, int(confidence.size), float(confidence.mean()), float(right.mean()))
