"""When a run is probed, and how much is read each time, so that all of it stays within a budget.

Before training the size of the probe is chosen from token counts alone; from the first step on,
measured seconds decide. Pure arithmetic: no clock is read here.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from tokenq.monitor.probing import ProbeOptions

READ_COST, WRITE_COST = 1.2, 45.0
"""In forwards of one token, on a CPU: to read one with two passes over the vocabulary, and to write
the next token of all responses at once, which takes the same time for one response and for ten."""
_PLANNED = 8
"""Readings that the size of a probe leaves room for."""
_SAFETY = 0.8
_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)
MOST_PROBES = 50
_WARM_UP = 3
"""Steps whose durations must be known before their median says anything."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a pair's prompt and of one of its answers, and most tokens of a response."""

    prompt: float
    answer: float
    new_tokens: float

    def reading(self, options: ProbeOptions) -> float:
        """What a reading costs, in forwards of one token."""
        pairs = options.held_out + options.trained
        read = pairs * (self.prompt + 2 * self.answer)
        read += options.responses * (self.prompt + self.new_tokens)
        return READ_COST * read

    def opening(self, options: ProbeOptions) -> float:
        """The same of the set-up: the reference writes its responses and is read once."""
        return self._written(options.responses) + self.reading(options)

    def sampling(self, options: ProbeOptions) -> float:
        """The same of the policy's samples, read by policy and reference."""
        read = 2 * READ_COST * options.samples * (self.prompt + self.new_tokens)
        return self._written(options.samples) + read

    def _written(self, responses: int) -> float:
        if not responses:
            return 0.0
        return responses * (self.prompt + self.new_tokens) + WRITE_COST * self.new_tokens


def fitted(options: ProbeOptions, lengths: Lengths, allowance: float) -> ProbeOptions | None:
    """Return the largest probe, `options` at most, that a run can afford; None if it affords none.

    allowance: forwards of one token that the monitor may cost in all

    A probe is made smaller in all its parts alike while there is no room for some eight readings.
    The smallest one may have fewer, and is given up where its set-up and the readings at both ends
    of the run cost too much.
    """
    for share in _SHARES:
        smaller = _scaled(options, share)
        cost = lengths.opening(smaller) + _PLANNED * lengths.reading(smaller)
        if cost + lengths.sampling(smaller) <= _SAFETY * allowance:
            return smaller
    least = _scaled(options, 0.0)
    cost = lengths.opening(least) + 2 * lengths.reading(least)
    return least if cost <= allowance else None


def _scaled(options: ProbeOptions, share: float) -> ProbeOptions:
    """A share of every part, but no less than some: 8 held-out pairs, or 8 that training sees."""
    fewest = {"held_out": 8, "trained": 4 if options.held_out else 8, "responses": 8, "samples": 0}
    counts: dict[str, Any] = {}
    for name, least in fewest.items():
        full: int = getattr(options, name)
        counts[name] = max(min(full, least), math.ceil(full * share))
    return replace(options, **counts)


@dataclass(frozen=True)
class Due:
    """A probe is due; `samples`: with responses of the policy."""

    samples: bool


class Schedule:
    """Decides after each optimiser step whether to probe.

    budget:      share of the training time that the monitor may take
    first_step, last_step: where this session of the run starts, and where the run ends
    every:       probe every so many steps instead, whatever it costs
    samples:     responses of the policy in a probe that has them; 0: none are ever drawn
    responses:   responses that the reference writes in the set-up
    closing:     seconds that the report at the end takes, which are kept back for it
    trained, spent: seconds of earlier sessions of the run, of training and of the monitor
    """

    def __init__(
        self,
        budget: float,
        first_step: int,
        last_step: int,
        *,
        every: int | None = None,
        samples: int = 0,
        responses: int = 0,
        closing: float = 0.0,
        trained: float = 0.0,
        spent: float = 0.0,
    ) -> None:
        self.budget = budget
        self.last_step = last_step
        self.every = every
        self.trained = trained
        self.spent = self._before = spent
        self._closing = closing
        self._span = max(1, last_step)
        self.step = self._probed = first_step
        self._with_samples = samples > 0
        self._share = samples / responses if responses else 1.0
        self._steps: deque[float] = deque(maxlen=200)
        self._plain: deque[float] = deque(maxlen=20)
        self._extra: deque[float] = deque(maxlen=20)
        self._opening = 0.0
        self._since_samples = 0

    def charge(self, seconds: float) -> None:
        """The monitor took `seconds` for something else than a reading."""
        self.spent += seconds

    def opened(self, seconds: float) -> None:
        """The set-up took `seconds`."""
        self._opening = seconds
        self.charge(seconds)

    def stepped(self, step: int, seconds: float) -> None:
        """Training has reached `step`, `seconds` after the step before, the monitor's left out."""
        self._steps.append(seconds)
        self.trained += seconds
        self.step = step

    def idled(self, seconds: float) -> None:
        """Training took `seconds` between two steps, or after the last one."""
        self.trained += seconds

    def probed(self, step: int, seconds: float, *, samples: bool) -> None:
        """A probe at `step` took `seconds`."""
        self.charge(seconds)
        self._probed = step
        if samples:
            self._extra.append(max(0.0, seconds - self.cost))
            self._since_samples = 0
        else:
            self._plain.append(seconds)
            self._since_samples += 1

    @property
    def cost(self) -> float:
        """Seconds that a probe without samples is expected to take."""
        return statistics.median(self._plain) if self._plain else self._opening

    @property
    def extra(self) -> float:
        """Seconds that samples are expected to take beside it."""
        if self._extra:
            return statistics.median(self._extra)
        return self._opening * self._share

    @property
    def expected(self) -> float:
        """Seconds that training is expected to take in all, without the monitor."""
        if not self._steps:
            return self.trained
        return self.trained + statistics.median(self._steps) * (self.last_step - self.step)

    @property
    def overhead(self) -> float:
        """What the monitor has taken so far, as a share of the training time."""
        return self.spent / self.trained if self.trained else 0.0

    def due(self, step: int) -> Due | None:
        """Whether to probe after `step`; the last one belongs to :meth:`final`."""
        if step >= self.last_step:
            return None
        if self.every is not None:
            return Due(self._with_samples) if step % self.every == 0 else None
        if len(self._steps) < _WARM_UP:
            return None
        left = self.budget * self.expected - self.spent - self._closing
        free = left - self.cost - (self.extra if self._samples_at_end() else 0.0)
        affordable = math.floor(free / self.cost) if self.cost > 0 else MOST_PROBES
        if affordable < 1:
            return None
        steps_left = self.last_step - self._probed
        spacing = max(steps_left / (affordable + 1), self._span / (MOST_PROBES + 1))
        if step < self._probed + spacing:
            return None
        return Due(self._samples_now(free, max(1, math.floor(steps_left / spacing - 1e-9))))

    def final(self) -> Due:
        """The last probe, which is always made; with samples where they fit."""
        if self.every is not None:
            return Due(self._with_samples)
        return Due(self._with_samples and self._affords(self._closing + self.cost + self.extra))

    def closes(self) -> bool:
        """Whether there is time for the report."""
        return self.every is not None or self._affords(self._closing)

    def _affords(self, seconds: float) -> bool:
        return self.spent + seconds <= self.budget * self.trained

    def _samples_at_end(self) -> bool:
        """Whether to keep their cost back: where two probes on the way can be had beside."""
        for_readings = self.budget * self.expected - self._before - self._opening - self._closing
        return self._with_samples and for_readings >= self.extra + 4 * self.cost

    def _samples_now(self, free: float, probes: int) -> bool:
        """Whether one of the `probes` to come, this one, gets samples, which are spread evenly."""
        if not self._with_samples:
            return False
        if self.extra <= 0:
            return True
        affordable = math.floor((free - probes * self.cost) / self.extra)
        return affordable >= 1 and self._since_samples + 1 >= probes / affordable
