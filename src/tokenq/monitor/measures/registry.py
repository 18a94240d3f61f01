"""What a measure is, the list of them, and the rows that every one is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokenq.monitor.identity import LEVEL, Interval, interval
from tokenq.monitor.readings import HELD_OUT, TRAINED, Array, ProbePair, Reading, SetName, Setup

Numbers = NDArray[np.int64]
Group = Literal[
    "likelihood",
    "identity",
    "displacement",
    "accuracy",
    "drift",
    "calibration",
    "reference",
    "gradients",
]
PREFIX = "likelihood/"

LOGGED = "free of training batches: in the trainer's logs; else one forward of the probe"
FORWARD = "one forward of the probe"
SAMPLING = "sampling"
ONCE = "once, at the start: one forward of the reference"

NATS, REWARD, PER_TOKEN = "nats", "beta x nats", "nats a token"
PROBABILITY, SHARE, TOKENS = "probability", "share", "tokens"


@dataclass(frozen=True, eq=False)
class Rows:
    """The values that a measure is the mean of.

    values:   [R] nan where a row has no such value
    clusters: [R] number of the prompt that the row belongs to. Rows of one prompt are not
              independent: they are averaged first, and intervals are over prompts
    """

    values: Array
    clusters: Numbers

    @cached_property
    def means(self) -> tuple[Numbers, Array]:
        """The clusters that have values, ascending, and the mean of each."""
        known = np.isfinite(self.values)
        clusters, groups = np.unique(self.clusters[known], return_inverse=True)
        sums = np.bincount(groups, weights=self.values[known], minlength=len(clusters))
        return clusters, sums / np.bincount(groups, minlength=len(clusters))

    def interval(self, level: float = LEVEL) -> Interval | None:
        """Mean over clusters with its Student-t interval; None where there is no value."""
        clusters, means = self.means
        return interval(means, np.arange(len(means)), level) if len(clusters) else None


def difference(ours: Rows, theirs: Rows) -> Rows:
    """Ours less theirs, prompt by prompt, of the prompts that both have.

    For a paired test: of one measure at two steps, or of two measures at one.
    """
    (these, values), (those, others) = ours.means, theirs.means
    both, at, there = np.intersect1d(these, those, return_indices=True)
    return Rows(values[at] - others[there], both)


def per_token(sums: Array, tokens: Array, clusters: Numbers) -> Rows:
    """Rows whose mean is sum over rows of `sums` / sum over rows of `tokens`.

    Each is ratio + (sum - ratio * tokens) / mean tokens, so that their interval is the one that the
    delta method gives for a ratio of means (both of them over clusters). A ratio of sums and not a
    mean of ratios: only sums over whole answers have the expectations that theory gives them.
    """
    size = Rows(tokens, clusters).means[1].mean() if len(tokens) else 1.0
    ratio = Rows(sums, clusters).means[1].mean() / size if len(sums) else 0.0
    return Rows(ratio + (sums - ratio * tokens) / size, clusters)


def clusters_of(pairs: Sequence[ProbePair]) -> Numbers:
    """[N] Pairs of one prompt get the same number.

    Where all pairs have one prompt it is part of the task and tells none of them apart: each then
    gets a number of its own, or nothing could be said of a task with a single instruction.
    """
    known: dict[tuple[int, ...], int] = {}
    numbers = [known.setdefault(tuple(pair.prompt), len(known)) for pair in pairs]
    return np.array(numbers if len(known) > 1 else range(len(pairs)), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class View:
    """One reading, of one set of pairs."""

    setup: Setup
    reading: Reading
    source: SetName

    @cached_property
    def pairs(self) -> Numbers:
        """Numbers of the set's pairs."""
        found = [n for n, pair in enumerate(self.setup.probe.pairs) if pair.source == self.source]
        return np.array(found, dtype=np.int64)

    @cached_property
    def prompts(self) -> Numbers:
        """[N] number of each pair's prompt, see :func:`clusters_of`."""
        return clusters_of(self.setup.probe.pairs)

    @cached_property
    def response_prompts(self) -> Numbers:
        """[M] number of the prompt that each of the reference's responses answers."""
        asked = np.array([each.pair for each in self.setup.probe.responses], dtype=np.int64)
        return self.prompts[asked]

    @cached_property
    def tokens(self) -> Array:
        """[2, N] length of each answer."""
        return self.setup.baseline.tokens.sum(1)

    @cached_property
    def part_log_ratios(self) -> Array:
        """[2, 4, N] log pi - log pi_ref by side and part, nats."""
        return self.reading.pairs.logps - self.setup.baseline.ref_logps

    @cached_property
    def log_ratios(self) -> Array:
        """[2, N] log pi - log pi_ref, nats."""
        return self.part_log_ratios.sum(1)

    @cached_property
    def logps(self) -> Array:
        """[2, N] log pi, nats."""
        return self.reading.pairs.logps.sum(1)

    @cached_property
    def ref_logps(self) -> Array:
        """[2, N] log pi_ref, nats."""
        return self.setup.baseline.ref_logps.sum(1)

    @cached_property
    def margins(self) -> Array:
        """[N] implicit reward of the chosen less that of the rejected answer, beta times nats."""
        ours, theirs = self.setup.beta * self.log_ratios
        return ours - theirs

    def of_pairs(self, values: Array) -> Rows:
        """Rows of the set, from values [N] of all pairs."""
        return Rows(values[self.pairs], self.prompts[self.pairs])

    def of_tokens(self, sums: Array, tokens: Array) -> Rows:
        """Rows a token of the set, from sums and lengths [N] of all pairs."""
        return per_token(sums[self.pairs], tokens[self.pairs], self.prompts[self.pairs])

    def beside_responses(self, sums: Array, response_sums: Array) -> Rows:
        """Chosen answers less the reference's responses, both a token, prompt by prompt.

        sums: [N] of all pairs; response_sums: [M]. Prompts without a response do not count
        """
        asked = self.pairs[np.isin(self.prompts[self.pairs], self.response_prompts)]
        drawn = np.isin(self.response_prompts, self.prompts[asked])
        where, lengths = self.response_prompts[drawn], self.setup.baseline.response_tokens[drawn]
        return difference(
            per_token(sums[asked], self.tokens[0, asked], self.prompts[asked]),
            per_token(response_sums[drawn], lengths, where),
        )


@dataclass(frozen=True)
class Measure:
    """One number of a probe, with its interval.

    name:       as it is logged: "likelihood/..."; "likelihood/train_..." is of training pairs,
                the same name without "train_" of held-out ones
    definition: precise enough to recompute it from the definitions in `readings`
    unit:       "nats" of a whole answer unless it says "a token"; "beta x nats" is the unit of
                implicit rewards
    source:     paper and equation
    cost:       what it takes in a run
    of:         its rows; None where the reading lacks what it needs
    """

    name: str
    definition: str
    unit: str
    source: str
    cost: str
    group: Group
    of: Callable[[View], Rows | None] = field(repr=False, compare=False)
    source_set: SetName = HELD_OUT


MEASURES: dict[str, Measure] = {}
"""By name, in the order in which they are worth reading."""


def define(
    name: str,
    definition: str,
    unit: str,
    source: str,
    cost: str,
    group: Group,
    of: Callable[[View], Rows | None],
    *,
    trained: bool = True,
) -> None:
    """Add a measure, and with `trained` its twin for training pairs."""
    full = f"{PREFIX}{name}"
    MEASURES[full] = Measure(full, definition, unit, source, cost, group, of)
    if trained:
        full, of_trained = f"{PREFIX}train_{name}", f"{definition} Of training pairs."
        MEASURES[full] = Measure(full, of_trained, unit, source, cost, group, of, TRAINED)
