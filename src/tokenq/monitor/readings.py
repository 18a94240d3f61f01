"""What is measured of a run, row by row: the fixed probe, what the reference says, each reading.

Rows are kept, not means: every interval, alarm and figure is made from these files afterwards, with
the same functions, while a run goes on and long after it has ended.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tokenq.models.packing import Ids

Array = NDArray[np.float64]
SIDES = ("chosen", "rejected")
HELD_OUT: Final = "held_out"
TRAINED: Final = "train"
SetName = Literal["held_out", "train"]


@dataclass(frozen=True)
class ProbePair:
    """A preference pair that is read again and again.

    source: "held_out": training does not see it; "train": training does
    row:    its number in that source
    """

    source: SetName
    row: int
    prompt: Ids
    chosen: Ids
    rejected: Ids


@dataclass(frozen=True)
class ProbeResponse:
    """What the reference wrote, at temperature 1, to the prompt of pair number `pair`.

    ended: it wrote an end token; if not, it was cut at the probe's length
    """

    pair: int
    ids: Ids
    ended: bool


@dataclass(frozen=True)
class ProbeSet:
    """The texts of a probe: fixed for the whole run. `new_tokens`: most tokens of a response."""

    pairs: Sequence[ProbePair]
    responses: Sequence[ProbeResponse]
    new_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "pairs": [vars(pair) for pair in self.pairs],
            "responses": [vars(response) for response in self.responses],
            "new_tokens": self.new_tokens,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(
            [ProbePair(**pair) for pair in plain["pairs"]],
            [ProbeResponse(**response) for response in plain["responses"]],
            plain["new_tokens"],
        )


class _Columns:
    """Reads and writes a dataclass of arrays as lists; nan, which JSON lacks, becomes null."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; fields that a later version added stay at their defaults."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: _array(value) for key, value in plain.items() if key in known})


@dataclass(frozen=True, eq=False)
class Baseline(_Columns):
    """What does not change: N pairs and M responses, and the reference's view of them.

    Axis 2 are the two sides (chosen, rejected), axis 4 the parts of `likelihood.PARTS`.

    tokens:           [2, 4, N] number of tokens
    ref_logps:        [2, 4, N] summed log pi_ref, nats
    ref_entropy:      [2, N] mean entropy of pi_ref over the answer's states, nats
    ref_peak:         [2, N] mean log-probability of pi_ref's most probable token, nats
    ref_collision:    [2, N] mean over states of sum_a pi_ref(a)^2
    ref_taken:        [2, N] mean over tokens of pi_ref(y_t)
    ches, ches_normalised: [N] see `similarity.PairSimilarity`, in the reference's hidden states
    ref_fork:         [2, N] log pi_ref of the two tokens that first differ, nats; nan where one
                      answer begins with the whole other one
    response_tokens:  [M]
    response_logps:   [M] summed log pi_ref of each response, nats
    response_entropy: [M] summed entropy of pi_ref over its states, nats
    ref_likeness:     [M] how the reference's own responses lie between the pair's answers, see
                      `SampleReading.likeness`
    ref_repetition:   [M] see `SampleReading.repetition`
    """

    tokens: Array
    ref_logps: Array
    ref_entropy: Array
    ref_peak: Array
    ref_collision: Array
    ref_taken: Array
    ches: Array
    ches_normalised: Array
    ref_fork: Array
    response_tokens: Array
    response_logps: Array
    response_entropy: Array
    ref_likeness: Array
    ref_repetition: Array


@dataclass(frozen=True, eq=False)
class PairReading(_Columns):
    """The policy on the N pairs.

    logps:      [2, 4, N] summed log pi by side and part, nats
    divergence: [2, N] sum over the answer's states of KL(pi_ref || pi), nats
    entropy:    [2, N] mean entropy of pi over the answer's states, nats
    peak:       [2, N] mean log-probability of pi's most probable token, nats
    collision:  [2, N] mean over states of sum_a pi(a)^2, what pi expects pi(y_t) to be
    taken:      [2, N] mean over tokens of pi(y_t)
    gradients:  [3, N] products <g+, g+>, <g-, g->, <g+, g-> of the head's gradients of
                log pi(chosen), log pi(rejected), see `similarity.HeadGradients`; None: not measured
    """

    logps: Array
    divergence: Array
    entropy: Array
    peak: Array
    collision: Array
    taken: Array
    gradients: Array | None = None


Gain = tuple[int, float, float]
"""A token, its probability under the reference, and under the policy."""


@dataclass(frozen=True, eq=False)
class ForkReading:
    """The policy where the two answers of a pair part: the state before the first differing token.

    logps:  [2, N] log pi of the chosen and of the rejected token there, nats; nan where there is no
            such token
    other:  [N] pi of all other tokens less pi_ref of them: mass that neither answer has got
    toward: [N] the same mass by meaning: sum over other tokens of (pi - pi_ref) times +1 where the
            token's output embedding, less the mean one, lies nearer to the chosen token's, -1
            where nearer to the rejected one's
    gains:  per pair the tokens whose probability grew most, the two of the pair included
    """

    logps: Array
    other: Array
    toward: Array
    gains: Sequence[Sequence[Gain]]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        plain = {name: _plain(getattr(self, name)) for name in ("logps", "other", "toward")}
        return {**plain, "gains": [[list(gain) for gain in row] for row in self.gains]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        gains = [[(int(t), float(a), float(b)) for t, a, b in row] for row in plain["gains"]]
        arrays = {name: _array(plain[name]) for name in ("logps", "other", "toward")}
        return cls(**arrays, gains=gains)


@dataclass(frozen=True, eq=False)
class ResponseReading(_Columns):
    """The policy on the M responses that the reference wrote.

    log_ratio:  [M] sum over tokens of log pi - log pi_ref, nats
    divergence: [M] sum over states of KL(pi_ref || pi), nats
    reverse:    [M] sum over the same states of KL(pi || pi_ref), nats
    entropy:    [M] mean entropy of pi over the states, nats
    """

    log_ratio: Array
    divergence: Array
    reverse: Array
    entropy: Array


@dataclass(frozen=True, eq=False)
class SampleReading:
    """K responses that the policy wrote now, at temperature 1.

    pair:       [K] number of the pair whose prompt it answers
    ids:        token ids
    ended:      [K] 1 where it ended by itself
    repetition: [K] share in [0, 1] of its 3-grams of tokens that occurred before in it
    log_ratio:  [K] sum over tokens of log pi - log pi_ref, nats
    divergence: [K] sum over states of KL(pi || pi_ref), nats: the same expectation, less noise
    likeness:   [K] cosine of its meaning with that of its pair's chosen answer, less that with the
                rejected answer's: which of the two it resembles. The meaning of a text is the mean
                of its tokens' output embeddings under the reference, rare tokens weighing more
                (`samples.WordVectors`), or what the user's own encoder gives

    log_ratio and divergence are nan where the reference is not at hand to read new texts: in a run
    of all weights whose reference was the policy at its start.
    """

    pair: Array
    ids: Sequence[Ids]
    ended: Array
    repetition: Array
    log_ratio: Array
    divergence: Array
    likeness: Array

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        arrays = [f.name for f in fields(self) if f.name != "ids"]
        plain = {name: _plain(getattr(self, name)) for name in arrays}
        return {**plain, "ids": [list(ids) for ids in self.ids]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        arrays = {f.name: _array(plain[f.name]) for f in fields(cls) if f.name != "ids"}
        return cls(ids=plain["ids"], **arrays)


@dataclass(frozen=True, eq=False)
class Reading:
    """One probe: the policy after `step` optimiser steps.

    epoch:    as the trainer counts them; None where unknown
    seconds:  what the probe took
    training_seconds: what the run had taken until then, probes included
    samples:  None where none were drawn in this probe
    """

    step: int
    pairs: PairReading
    forks: ForkReading
    responses: ResponseReading
    samples: SampleReading | None = None
    epoch: float | None = None
    seconds: float = 0.0
    training_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types: one line of `readings.jsonl`."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "pairs": self.pairs.to_dict(),
            "forks": self.forks.to_dict(),
            "responses": self.responses.to_dict(),
            "samples": None if self.samples is None else self.samples.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        samples = plain["samples"]
        return cls(
            plain["step"],
            PairReading.from_dict(plain["pairs"]),
            ForkReading.from_dict(plain["forks"]),
            ResponseReading.from_dict(plain["responses"]),
            None if samples is None else SampleReading.from_dict(samples),
            plain["epoch"],
            plain["seconds"],
            plain["training_seconds"],
        )

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, eq=False)
class Setup:
    """All that the readings of a run are read against.

    beta:     of the run's objective; implicit rewards are beta times log-ratios in nats
    policy, reference: names, for people
    end_ids:  ids of end tokens
    facts:    further settings worth showing: objective, learning rate, versions
    """

    probe: ProbeSet
    baseline: Baseline
    beta: float
    policy: str
    reference: str
    end_ids: Sequence[int]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "beta": self.beta,
            "policy": self.policy,
            "reference": self.reference,
            "end_ids": list(self.end_ids),
            "facts": dict(self.facts),
            "probe": self.probe.to_dict(),
            "baseline": self.baseline.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(
            ProbeSet.from_dict(plain["probe"]),
            Baseline.from_dict(plain["baseline"]),
            plain["beta"],
            plain["policy"],
            plain["reference"],
            plain["end_ids"],
            plain["facts"],
        )


@dataclass(frozen=True, eq=False)
class History:
    """A run as far as it is known, in order of steps; what findings, figures and pages are made of.

    setup:    None where only a trainer's logs are known
    readings: the probes
    logs:     the trainer's log lines, each with "step"; its metrics under their own names
    """

    setup: Setup | None
    readings: Sequence[Reading]
    logs: Sequence[Mapping[str, Any]]


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    finite = value.astype(object)
    finite[~np.isfinite(value)] = None
    return finite.tolist()


def _array(value: Any) -> Any:
    return None if value is None else np.array(value, dtype=np.float64)
