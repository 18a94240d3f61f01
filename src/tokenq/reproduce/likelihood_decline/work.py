"""The work run by run: training, then reading each checkpoint; every reading leaves a part."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from tokenq.errors import UserError
from tokenq.monitor.probe_texts import probe_pairs
from tokenq.monitor.probing import ProbeOptions, Prober
from tokenq.monitor.readings import HELD_OUT, TRAINED, History, ProbePair, Reading, SetName, Setup
from tokenq.reproduce.beam_decoding.policies import Workshop
from tokenq.reproduce.experiment import Run
from tokenq.reproduce.likelihood_decline.runs import Runs, Which
from tokenq.reproduce.likelihood_decline.settings import ARMS, DeclineSettings
from tokenq.reproduce.likelihood_decline.tasks import TASKS, Pairs
from tokenq.reproduce.localisation.material import TrainingPair


def every_run(tasks: Sequence[str], seeds: int) -> list[Which]:
    """All runs, a seed after the other, so that what is done of them is balanced at any time."""
    return [Which(task, arm, seed) for seed in range(seeds) for arm in ARMS for task in tasks]


def chosen_runs(every: Sequence[Which], keys: Sequence[str] | None) -> list[Which]:
    """Those with these keys, in the order of the keys; all for None. UserError for an unknown."""
    if keys is None:
        return list(every)
    by_key = {which.key: which for which in every}
    for key in keys:
        if key not in by_key:
            raise UserError(f"--only: {key!r} is unknown; accepted: {', '.join(by_key)}")
    return [by_key[key] for key in keys]


_TOKEN_BUDGET = 1024
"""Of a forward. The cost of attention grows with it where many answers share one prompt."""


class Worker:
    """Does runs, or finds them done."""

    def __init__(self, run: Run, settings: DeclineSettings) -> None:
        self._run, self.settings = run, settings
        self._pairs: dict[tuple[str, int], Pairs] = {}

    @cached_property
    def workshop(self) -> Workshop:
        """The model, loaded once."""
        return Workshop(self.settings.model, self.settings.layers)

    @cached_property
    def _sources(self) -> dict[str, Callable[[int], Pairs]]:
        return {name: make(self.settings, self.workshop) for name, make in TASKS.items()}

    @cached_property
    def runs(self) -> dict[str, Runs]:
        """The trained runs, by task."""
        return {name: Runs(name, self.settings, self.workshop) for name in TASKS}

    def pairs(self, which: Which) -> Pairs:
        """What a run is trained and read on."""
        key = which.task, which.seed
        if key not in self._pairs:
            self._pairs[key] = self._sources[which.task](which.seed)
        return self._pairs[key]

    def train(self, which: Which) -> None:
        """Train a run and its start, unless that was done."""
        self.runs[which.task].train(which, self.pairs(which))

    def is_done(self, which: Which) -> bool:
        """Whether all readings of a run are there."""
        folder = self._run.out / "runs"
        if not (folder / f"{which.name}-setup.json").is_file():
            return False
        setup = self._run.part(f"{which.name}-setup", self._facts(which), dict)
        steps = setup["facts"]["steps"]
        return all((folder / f"{which.name}-{step}.json").is_file() for step in steps)

    def history(self, which: Which) -> History:
        """Train and read a run, or find its parts."""
        watched = _Watched(self, which)
        facts = self._facts(which)
        setup = Setup.from_dict(
            self._run.part(f"{which.name}-setup", facts, lambda: watched.setup.to_dict())
        )
        readings = []
        for step in setup.facts["steps"]:

            def make(step: int = step) -> dict[str, Any]:
                return watched.reading(step).to_dict()

            part = self._run.part(f"{which.name}-{step}", {**facts, "step": step}, make)
            readings.append(Reading.from_dict(part))
        return History(setup, readings, [])

    def _facts(self, which: Which) -> dict[str, Any]:
        return {**self.settings.reading(which.task), "run": which.key}


class _Watched:
    """A run with the prober of its reference, opened at first use."""

    def __init__(self, worker: Worker, which: Which) -> None:
        self._worker, self._which = worker, which
        self._settings, self._runs = worker.settings, worker.runs[which.task]

    @cached_property
    def _checkpoints(self) -> dict[int, Any]:
        return self._runs.checkpoints(self._which, self._worker.pairs(self._which))

    @cached_property
    def steps(self) -> list[int]:
        """The steps that are read."""
        wanted, there = self._settings.read_of(self._which.arm), list(self._checkpoints)
        return [step for step in there if step in wanted or step == there[-1]]

    @cached_property
    def _end(self) -> int:
        return int(self._worker.workshop.tokenizer.eos_token_id)

    @cached_property
    def _prober(self) -> Prober:
        settings, pairs = self._settings, self._worker.pairs(self._which)
        self._runs.put(self._which, pairs)
        options = ProbeOptions(
            samples=settings.written,
            responses=settings.responses,
            new_tokens=settings.new_tokens,
            gradients=False,
            token_budget=_TOKEN_BUDGET,
            seed=self._which.seed,
        )
        return Prober.open(
            self._worker.workshop.model,
            self._drawn(pairs.held_out, HELD_OUT, settings.held_out),
            self._drawn(pairs.trained, TRAINED, settings.trained),
            [self._end],
            options,
        )

    @property
    def setup(self) -> Setup:
        """What the readings are read against."""
        which, settings = self._which, self._settings
        facts = {"objective": "dpo", "steps": self.steps, "run": which.key}
        return Setup(
            self._prober.probe,
            self._prober.baseline,
            settings.beta,
            f"{settings.model}, {which.key}",
            f"{settings.model}, {which.arm}",
            [self._end],
            facts,
        )

    def reading(self, step: int) -> Reading:
        """Read the policy after so many steps; at the last one it writes some texts as well."""
        prober = self._prober
        worker = self._worker
        self._runs.put(self._which, worker.pairs(self._which), self._checkpoints[step])
        last = step == self.steps[-1]
        reading = prober.read(worker.workshop.model, step, samples=last)
        if reading.samples is None:
            return reading
        # The prober takes a frozen model for the reference, whose weights have been changed here.
        unknown = np.full(len(reading.samples.ids), np.nan)
        samples = replace(reading.samples, log_ratio=unknown, divergence=unknown)
        return replace(reading, samples=samples)

    def _drawn(self, pairs: Sequence[TrainingPair], source: SetName, count: int) -> list[ProbePair]:
        rows = self._worker.workshop.encoder.rows(pairs)
        return probe_pairs(rows, source, count, self._which.seed)
