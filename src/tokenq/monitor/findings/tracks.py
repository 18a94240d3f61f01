"""The rows of a history as rules need them: one value for each prompt and probe.

Answers to one prompt are not independent, so rows of equal prompts are averaged; rows that are not
numbers (a pair without a fork) are left out.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tokenq.monitor.findings.looks import Array, Track
from tokenq.monitor.measures.registry import clusters_of
from tokenq.monitor.readings import HELD_OUT, TRAINED, History, Reading, SampleReading, Setup

WINDOW = 4
"""Probes whose samples are taken together: those of one are few, and other probes drew others."""


def setup_of(history: History) -> Setup:
    """What the probe is read against. Raises ValueError for a run without a probe."""
    if history.setup is None:
        raise ValueError("the run has no probe")
    return history.setup


def sources(setup: Setup) -> NDArray[np.str_]:
    """[N] "held_out" or "train"."""
    return np.array([pair.source for pair in setup.probe.pairs])


def watched(setup: Setup) -> str:
    """The pairs that say what a run does: held-out ones, or trained ones where there are none."""
    return HELD_OUT if (sources(setup) == HELD_OUT).any() else TRAINED


def name_of(source: str) -> str:
    """For people."""
    return "held-out" if source == HELD_OUT else "training"


def trained_readings(history: History) -> list[Reading]:
    """The probes after the start, at which policy and reference need not agree any more."""
    return [reading for reading in history.readings if reading.step > 0]


def pair_track(
    history: History, source: str, value: Callable[[Reading], Array], *, start: bool = False
) -> Track:
    """A value [N] of each pair, for the pairs from `source`; with the probe at step 0 if asked."""
    setup = setup_of(history)
    kept = np.flatnonzero(sources(setup) == source)
    prompts = clusters_of(setup.probe.pairs)[kept]
    readings = history.readings if start else trained_readings(history)
    rows = [by_prompt(value(reading)[kept], prompts) for reading in readings]
    return Track([reading.step for reading in readings], rows)


def response_track(
    history: History, value: Callable[[Reading], Array], *, start: bool = False
) -> Track:
    """A value [M] of each of the reference's responses."""
    prompts = response_prompts(setup_of(history))
    readings = history.readings if start else trained_readings(history)
    rows = [by_prompt(value(reading), prompts) for reading in readings]
    return Track([reading.step for reading in readings], rows)


def sample_track(
    history: History,
    value: Callable[[SampleReading], Array],
    of_reference: Array | None = None,
    *,
    scale: float = 1.0,
) -> Track:
    """A value [K] of the policy's samples, pooled over the last :data:`WINDOW` probes with any.

    of_reference: [M] the same of the reference's responses: then what is tracked is the difference
                  of the two means at each prompt that both answered, over `scale`. Samples from
                  before the first step are the reference's as well
    """
    setup = setup_of(history)
    prompts = clusters_of(setup.probe.pairs)
    before: dict[int, float] = {}
    if of_reference is not None:
        asked = prompts[[response.pair for response in setup.probe.responses]]
        start = [r.samples for r in history.readings if r.step == 0 and r.samples is not None]
        known = np.concatenate([of_reference, *map(value, start)])
        asked = np.concatenate([asked, *(prompts[s.pair.astype(int)] for s in start)])
        before = {int(n): float(known[asked == n].mean()) for n in np.unique(asked)}
    read = [(r.step, r.samples) for r in trained_readings(history) if r.samples is not None]
    rows = []
    for last in range(1, len(read) + 1):
        pool = [samples for _, samples in read[max(0, last - WINDOW) : last]]
        values = np.concatenate([value(samples) for samples in pool])
        asked = np.concatenate([prompts[samples.pair.astype(int)] for samples in pool])
        each = {int(n): float(values[asked == n].mean()) for n in np.unique(asked)}
        if of_reference is not None:
            each = {n: now - before[n] for n, now in each.items() if n in before}
        rows.append(np.array(list(each.values())) / scale)
    return Track([step for step, _ in read], rows)


def response_prompts(setup: Setup) -> NDArray[np.int64]:
    """[M] number of the prompt that each of the reference's responses answers."""
    asked = np.array([response.pair for response in setup.probe.responses], dtype=int)
    return clusters_of(setup.probe.pairs)[asked]


def by_prompt(values: Array, prompts: NDArray[np.int64]) -> Array:
    """Means over equal prompts of the values that are numbers; all nan where some are infinite."""
    kept = ~np.isnan(values)
    if not kept.any():
        return np.empty(0)
    groups = np.unique(prompts[kept], return_inverse=True)[1]
    return np.asarray(np.bincount(groups, weights=values[kept]) / np.bincount(groups))


def log_ratio(setup: Setup, reading: Reading, side: int) -> Array:
    """[N] sum of log pi - log pi_ref over an answer's tokens, nats. side: 0 chosen, 1 rejected."""
    return np.asarray((reading.pairs.logps - setup.baseline.ref_logps)[side].sum(axis=0))


def margin(setup: Setup, reading: Reading) -> Array:
    """[N] log-ratio of chosen less that of rejected, nats."""
    return log_ratio(setup, reading, 0) - log_ratio(setup, reading, 1)
