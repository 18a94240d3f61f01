"""What every run said of every token, kept as parts, so that any measure can be had later.

A table is JSON:

    {"items": [{"id", "group", "kind", "text", "offsets": [[start, end], ...],
                "truth": [0 or 1, ...] or null, "words": [[start, end, valence], ...],
                "signals": {name: [one number a token, higher: more suspicious]}}],
     "training": {"pairs": n, "words": [...], "accuracy": a, "cpu_seconds": s}}

The last token of an item is the end token: it covers no character and its truth is 0. Offsets are
characters of `text`. `words` of the training are those of all texts that training saw, lower case.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import Tensor

from tokenq.data.hashing import json_hash
from tokenq.demo.words import words_of
from tokenq.objectives import OBJECTIVES
from tokenq.report.progress import progress_bar
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.experiment import Results, Run
from tokenq.reproduce.localisation.arms import CreditArm
from tokenq.reproduce.localisation.bench import Bench, first
from tokenq.reproduce.localisation.facts import (
    Facts,
    Reading,
    gradient_input,
    read_pair,
    read_start,
    rounded,
)
from tokenq.reproduce.localisation.material import Task, TestText, TrainingPair, truth_of
from tokenq.reproduce.localisation.settings import Settings
from tokenq.reproduce.localisation.signals import arm_signals, start_signals
from tokenq.reproduce.localisation.tasks import task_of

Table = dict[str, Any]
START = "start"
"""The model before any training: the controls that need no training."""


def tables(
    run: Run,
    settings: Settings,
    tasks: Sequence[str],
    arms: Mapping[str, Sequence[CreditArm]],
    seeds: Sequence[int],
) -> dict[tuple[str, str, int], Table]:
    """The table of every (task, arm's name, seed): trained now, or a part of an earlier run.

    The controls that need no training stand under the arm `START`; their table is the same for
    every seed. Raises UserError for a task whose material cannot be had.
    """
    found: dict[tuple[str, str, int], Table] = {}
    bench = Bench(settings.model, settings.layers)
    with progress_bar("Training and scoring", run.console) as progress:
        count = sum(len(seeds) * len(arms[task]) for task in tasks)
        bar = progress.add_task("", total=count)
        for name in tasks:
            runner = TaskRunner(run, settings, name, bench)
            start = runner.start()
            for seed in seeds:
                found[name, START, seed] = start
                for arm in arms[name]:
                    found[name, arm.name, seed] = runner.table(arm, seed)
                    progress.advance(bar)
    return found


class TaskRunner:
    """All runs of one task, and the parts that they leave."""

    def __init__(self, run: Run, settings: Settings, name: str, bench: Bench) -> None:
        self._run, self._name, self._bench = run, name, bench
        self._settings = settings.of_task(name)
        options = getattr(settings, name)
        self._recipe: Recipe = options.recipe
        self._gradients: int = options.gradients
        self._task: Task = task_of(name, options)
        self._material: dict[tuple[int, str], list[TrainingPair]] = {}

    @cached_property
    def _tests(self) -> list[TestText]:
        return self._task.tests()

    @cached_property
    def _reading(self) -> Reading:
        return Reading([self._bench.encoder(each.prompt, each.text) for each in self._tests])

    @cached_property
    def _examined(self) -> Reading:
        """The texts whose gradients are taken."""
        return Reading(self._reading.encoded[: self._gradients])

    @cached_property
    def _start_states(self) -> list[Tensor]:
        return self._reading.states(self._bench.model)

    def _pairs(self, seed: int, variant: str) -> list[TrainingPair]:
        if (seed, variant) not in self._material:
            self._material[seed, variant] = self._task.pairs(seed, variant)
        return self._material[seed, variant]

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        """What a table says of its texts."""
        items = []
        for text, encoded in zip(self._tests, self._reading.encoded, strict=True):
            offsets = encoded.offsets
            truth = None if text.errors is None else truth_of(offsets, text.text, text.errors)
            items.append(
                {
                    "id": text.id,
                    "group": text.group,
                    "kind": text.kind,
                    "text": text.text,
                    "offsets": [list(each) for each in offsets],
                    "truth": truth,
                    "words": [[word.start, word.end, word.valence] for word in text.words],
                }
            )
        return items

    def _part(
        self, key: str, facts: Mapping[str, Any], material: Any, make: Callable[[], Results]
    ) -> Results:
        settings = {
            **self._settings,
            **facts,
            "texts": json_hash([asdict(each) for each in self._tests]),
            "pairs": json_hash([asdict(each) for each in material]),
        }
        return self._run.part(f"{self._name}-{key}", settings, make)

    # ---- The controls that need no training ----

    def start(self) -> Table:
        """The table of the untrained model."""
        facts = self._start_facts()
        prompts = [text.prompt for text in self._tests]
        signals = start_signals(facts, self._items, prompts)
        return self._table(signals, {"pairs": 0, "words": []})

    def _start_facts(self) -> Facts:
        def make() -> Results:
            facts: Facts = read_start(self._bench.model, self._reading)
            bare = self._reading.after([self._bench.encoder.opening])
            facts["logps without prompt"] = read_start(self._bench.model, bare)["logps"]
            facts["gradient x input"] = gradient_input(self._bench.model, self._examined)
            return dict(facts)

        return self._part(START, {}, [], make)

    # ---- Trained arms ----

    def table(self, arm: CreditArm, seed: int) -> Table:
        """The table of one arm and seed."""
        pairs = first(arm, self._pairs(seed, arm.variant))
        settings = {"arm": repr(arm), "objective": _objective(arm), "seed": seed}
        made = self._part(
            f"{_slug(arm.name)}-{seed}", settings, pairs, lambda: self._made(arm, seed, pairs)
        )
        start = self._start_facts()
        signals = arm_signals(arm, made["facts"], start, self._items)
        texts = {text for pair in pairs for text in (pair.chosen, pair.rejected)}
        words = sorted({word for text in texts for word in words_of(text)})
        return self._table(signals, {**made["training"], "pairs": len(pairs), "words": words})

    def _made(self, arm: CreditArm, seed: int, pairs: list[TrainingPair]) -> Results:
        started = time.process_time()
        # What the start says is asked before an adapter is on.
        references = self._start_states
        if arm.learner == "reward model":
            facts = self._reward_model(arm, seed, pairs)
        elif arm.after_sft:
            with self._bench.tuned(pairs, self._recipe, seed):
                facts = self._policy(arm, seed, pairs, self._reading.states(self._bench.model))
        else:
            facts = self._policy(arm, seed, pairs, references)
        return {
            "facts": facts,
            "training": {"cpu_seconds": round(time.process_time() - started, 1)},
        }

    def _policy(
        self, arm: CreditArm, seed: int, pairs: list[TrainingPair], references: list[Tensor]
    ) -> Facts:
        with self._bench.trained(arm, pairs, self._recipe, seed) as policy:
            facts = read_pair(policy, self._bench.tokenizer, self._reading, references)
            if not arm.after_sft:
                del facts["ref_logps"]  # those of the start, which has its own part
            if arm.loss_type != "q_rm":
                del facts["taken"]
            if arm.name == "dpo":
                facts["gradient x input"] = gradient_input(policy, self._examined)
        return facts

    def _reward_model(self, arm: CreditArm, seed: int, pairs: list[TrainingPair]) -> Facts:
        # Its module imports the bench of this package.
        from tokenq.reproduce.localisation.reward_model import reward_model_trained

        rows = self._bench.encoder.rows(pairs)
        with reward_model_trained(self._bench, rows, self._recipe, seed) as learner:
            found = learner.differences(self._reading.prompts, self._reading.responses)
        return {"prefix difference": [rounded(each) for each in found]}

    def _table(self, signals: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> Table:
        items = [
            {**item, "signals": dict(own)} for item, own in zip(self._items, signals, strict=True)
        ]
        return {"items": items, "training": dict(training)}


def _objective(arm: CreditArm) -> str:
    return repr(OBJECTIVES[arm.loss_type](**arm.arguments)) if arm.learner == "policy" else ""


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
