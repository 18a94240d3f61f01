"""Whether an effect is there, when the same rows are looked at again after every probe.

A probe reads the same rows each time, so the looks of a run are not independent and no martingale
is at hand: what holds whatever their dependence is the union bound. Look k of a run may spend
6 / (pi^2 k^2) of the error that a rule is allowed, which adds up to 1 over all looks to come.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tokenq.monitor.identity import LEVEL, Interval

Array = NDArray[np.float64]
ERROR = 0.01
"""What each rule may spend on false alarms over a whole run; some twenty rules look at one run."""
HOLDING = 0.025
"""An effect holds at a probe, once it has been found, if its own test there is below this."""


@dataclass(frozen=True)
class Track:
    """A quantity over the run. `steps`: of the K looks; `rows`: K arrays of independent values."""

    steps: Sequence[int]
    rows: Sequence[Array]


@dataclass(frozen=True)
class Held:
    """An effect that is there at the latest look.

    since:    step of the first look from which on it has held without a break
    interval: at the latest look
    error:    probability that looks like these, up to now, find an effect that is not there
    """

    since: int
    interval: Interval
    error: float


def held(
    track: Track,
    least: float | Sequence[float],
    *,
    null: float = 0.0,
    tries: int | Sequence[int] = 1,
) -> Held | None:
    """Find whether the mean is above `null`, and at least `least`, up to the latest look.

    least: below it the effect is too small to speak of, however sure; one for all looks or for each
    null:  what the mean is, at most, where nothing is wrong
    tries: how many sets of rows these were chosen from by looking at them (2 where their sign was),
           one number for all looks or for each

    A look holds if its mean is at least `least` and its one-sided t-test against `null` is below
    :data:`HOLDING`. The effect is found if the unbroken run of looks that ends with the latest has
    a look whose p-value, over what that look may spend, is below :data:`ERROR`.
    """
    count = len(track.steps)
    if not count:
        return None
    floors = np.broadcast_to(np.asarray(least, dtype=float), count)
    number = np.arange(1, count + 1)
    means = np.array([mean_of(rows) for rows in track.rows])
    chances = np.array([chance(rows, null) for rows in track.rows])
    holds = (means >= floors) & (chances <= HOLDING)
    if not holds[-1]:
        return None
    first = int(np.flatnonzero(~holds)[-1]) + 1 if not holds.all() else 0
    spent = chances * np.asarray(tries) * (np.pi * number) ** 2 / 6
    error = float(spent[first:].min())
    if error > ERROR:
        return None
    return Held(track.steps[first], interval(track.rows[-1]), error)


def chance(rows: Array, null: float = 0.0) -> float:
    """One-sided p-value of a t-test that the mean is above `null`.

    Never below 2^-n: n rows, of which half would lie above by chance, cannot be surer than that;
    the t-test of rows that happen to be all alike would be.
    """
    count = len(rows)
    if count < 2 or not np.isfinite(rows).all():
        return 1.0
    distance = rows.mean() - null
    error = rows.std(ddof=1) / count**0.5
    if distance <= 0:
        return 1.0
    value = special.stdtr(count - 1, -distance / error) if error > 0 else 0.0
    return float(max(value, 0.5**count))


def interval(rows: Array) -> Interval:
    """Mean with its 95 % Student-t interval; None for a single row."""
    mean = mean_of(rows)
    if len(rows) < 2:
        return Interval(mean, None, None)
    quantile = special.stdtrit(len(rows) - 1, (1 + LEVEL) / 2)
    half = float(rows.std(ddof=1) / len(rows) ** 0.5 * quantile)
    return Interval(mean, mean - half, mean + half)


def mean_of(rows: Array) -> float:
    """The mean; nan for no rows."""
    return float(rows.mean()) if len(rows) else float("nan")
