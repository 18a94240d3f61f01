"""What the readings say: curves over seeds, the identity's intervals, and what was expected."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tokenq.monitor.decision import decide
from tokenq.monitor.measures import measured
from tokenq.monitor.readings import History
from tokenq.reproduce.experiment import Results
from tokenq.reproduce.findings import Finding, finding
from tokenq.reproduce.likelihood_decline.runs import Which
from tokenq.reproduce.likelihood_decline.settings import (
    ARMS,
    CHOSEN,
    NONE,
    OTHER,
    REJECTED,
    DeclineSettings,
)
from tokenq.reproduce.likelihood_decline.work import Worker
from tokenq.reproduce.statistics import LEVEL, estimate

READ = {
    "chosen": "train_chosen_reward",
    "rejected": "train_rejected_reward",
    "held-out chosen": "chosen_reward",
    "held-out rejected": "rejected_reward",
    "reference's samples": "expected_reward",
    "minus beta KL": "minus_beta_kl",
}
"""What is followed, and the monitor's name for it."""
PARTS = ("shared", "first", "later", "end")
_FURTHER = (
    "margin",
    "train_margin",
    "accuracy",
    "train_accuracy",
    "identity_gap",
    "excess_decline",
    "train_chosen_beyond_kl",
    "chosen_beyond_kl",
    "sft_gap",
    "entropy_responses",
    "fork_chosen",
    "fork_rejected",
    "fork_other",
    "peak_chosen",
    "sample_tokens",
    "sample_ended",
    "sample_repetition",
    "ref_tokens",
    "ref_ended",
    "ref_repetition",
)


class Curves:
    """All seeds of one arm of a task.

    seeds, steps: numbers, in order
    """

    def __init__(self, histories: Mapping[int, History]) -> None:
        self.seeds = list(histories)
        self.steps = [reading.step for reading in next(iter(histories.values())).readings]
        self._found = {
            seed: [measured(_setup(history), reading) for reading in history.readings]
            for seed, history in histories.items()
        }
        self._histories = histories

    def by_seed(self, name: str, at: int = -1) -> list[float]:
        """A measure at a checkpoint (its place in `steps`), a number a seed."""
        return [found[at][f"likelihood/{name}"].mean for found in self._found.values()]

    def has(self, name: str, at: int = -1) -> bool:
        """Whether every seed has the measure there."""
        return all(f"likelihood/{name}" in found[at] for found in self._found.values())

    def curve(self, name: str) -> list[dict[str, Any] | None]:
        """The measure at every checkpoint: its estimate over seeds, and each seed's."""
        return [
            {**estimate(values := self.by_seed(name, at)), "by_seed": values}
            if self.has(name, at)
            else None
            for at in range(len(self.steps))
        ]

    def identity(self) -> list[dict[str, Any]]:
        """Of each seed and checkpoint: the two sides, their difference with its interval over
        prompts, and whether that covers 0."""
        rows = []
        for seed, found in self._found.items():
            for step, at in zip(self.steps, found, strict=True):
                gap = at["likelihood/identity_gap"]
                rows.append(
                    {
                        "seed": seed,
                        "step": step,
                        "expected": at["likelihood/expected_reward"].mean,
                        "minus_beta_kl": at["likelihood/minus_beta_kl"].mean,
                        "gap": gap.mean,
                        "low": gap.low,
                        "high": gap.high,
                        "covers": gap.holds(0.0),
                    }
                )
        return rows

    def parts(self) -> dict[str, dict[str, Any]]:
        """By part of the chosen answers that training saw: tokens an answer, and what they changed
        by at the end, an answer and a token."""
        found = {}
        for number, part in enumerate(PARTS):
            name = f"train_chosen_reward_{part}"
            tokens = []
            for history in self._histories.values():
                setup = _setup(history)
                own = [n for n, pair in enumerate(setup.probe.pairs) if pair.source == "train"]
                tokens.append(float(setup.baseline.tokens[0, number, own].mean()))
            if self.has(name) and all(tokens):
                rewards = self.by_seed(name)
                found[part] = {
                    "tokens": estimate(tokens),
                    "answer": estimate(rewards),
                    "token": estimate([r / t for r, t in zip(rewards, tokens, strict=True)]),
                }
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        names = {**READ, **{name: name for name in _FURTHER}}
        curves = {shown: self.curve(name) for shown, name in names.items()}
        return {
            "seeds": self.seeds,
            "steps": self.steps,
            "curves": {name: own for name, own in curves.items() if any(own)},
            "identity": self.identity(),
            "parts": self.parts(),
            "decisions": [decide(history).verdict for history in self._histories.values()],
        }


def analysed(worker: Worker, runs: Sequence[Which], settings: DeclineSettings) -> Results:
    """Everything that figure and page show, without the tabular part."""
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(which.task for which in runs):
        arms: dict[str, Curves] = {}
        for arm in ARMS:
            own = [which for which in runs if (which.task, which.arm) == (task, arm)]
            if own:
                arms[arm] = Curves({which.seed: worker.history(which) for which in own})
        tasks[task] = {
            "arms": {arm: curves.to_dict() for arm, curves in arms.items()},
            "findings": found(arms),
        }
    return {
        "settings": settings.to_dict(),
        "tasks": tasks,
        "identity": coverage(tasks),
    }


def coverage(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """How often the identity's interval covers 0: at all checkpoints, and at the last ones.

    The checkpoints of a run are read on the same responses and are not independent, runs are.
    `chance_of_fewer`: that as few intervals of that many runs cover 0, or fewer, if all is right.
    """
    every = [arm for task in tasks.values() for arm in task["arms"].values()]
    rows = [row for arm in every for row in arm["identity"]]
    last = [row for arm in every for row in arm["identity"] if row["step"] == arm["steps"][-1]]
    scale = np.mean([abs(row["minus_beta_kl"]) for row in last])
    covered = sum(row["covers"] for row in last)
    return {
        "checkpoints": len(rows),
        "covered": sum(row["covers"] for row in rows),
        "runs": len(last),
        "covered_at_the_end": covered,
        "chance_of_fewer": float(stats.binom.cdf(covered, len(last), LEVEL)),
        "mean_gap_at_the_end": estimate([row["gap"] for row in last]),
        "mean_size_at_the_end": float(scale),
    }


def found(arms: Mapping[str, Curves]) -> list[Finding]:
    """What the claim and the theory expect, judged over seeds at the last checkpoint."""
    findings: list[Finding] = []

    def expect(claim: str, what: str, differences: Sequence[float]) -> None:
        findings.append(finding(claim, what, differences))

    def worded(arm: str) -> list[float]:
        """What chosen changed by, its end token left out."""
        ends = arms[arm].by_seed("train_chosen_reward_end")
        return _less(arms[arm].by_seed(READ["chosen"]), ends)

    def falls(arm: str, shown: str, claim: str) -> None:
        values = arms[arm].by_seed(READ[shown])
        expect(claim, f"{arm}: minus implicit reward of {shown}", [-v for v in values])

    if CHOSEN in arms:
        falls(CHOSEN, "chosen", "after SFT on the chosen answers, chosen falls")
        expect(
            "chosen falls also without its end token",
            f"{CHOSEN}: minus implicit reward of the other tokens of chosen",
            [-value for value in worded(CHOSEN)],
        )
        falls(CHOSEN, "held-out chosen", "held-out chosen falls")
        falls(CHOSEN, "rejected", "and rejected")
        held_out = arms[CHOSEN].by_seed(READ["held-out chosen"])
        seen = arms[CHOSEN].by_seed(READ["chosen"])
        expect(
            "held-out chosen falls further than chosen",
            f"{CHOSEN}: chosen less held-out chosen",
            _less(seen, held_out),
        )
        expect(
            "the reference's samples fall further than held-out chosen",
            f"{CHOSEN}: reward a token of held-out chosen less that of the samples",
            arms[CHOSEN].by_seed("excess_decline"),
        )
    if NONE in arms:
        for shown in ("chosen", "held-out chosen"):
            expect(
                f"without SFT, {shown} does not fall",
                f"{NONE}: implicit reward of {shown}",
                arms[NONE].by_seed(READ[shown]),
            )
        expect(
            "nor does chosen without its end token",
            f"{NONE}: implicit reward of the other tokens of chosen",
            worded(NONE),
        )
    for arm, curves in arms.items():
        expect("the margin grows", f"{arm}: margin", curves.by_seed("train_margin"))
        expect("and on held-out pairs", f"{arm}: held-out margin", curves.by_seed("margin"))
    for control, claim in (
        (NONE, "chosen falls more with SFT than without"),
        (OTHER, "chosen falls more after SFT on the chosen answers than on others like them"),
        (REJECTED, "chosen falls more after SFT on the chosen than on the rejected answers"),
    ):
        for shown in ("chosen", "held-out chosen"):
            if CHOSEN in arms and control in arms:
                both = sorted(set(arms[CHOSEN].seeds) & set(arms[control].seeds))
                expect(
                    claim if shown == "chosen" else "and held-out chosen",
                    f"{shown}, {control} less {CHOSEN}",
                    _less(
                        _of_seeds(arms[control], READ[shown], both),
                        _of_seeds(arms[CHOSEN], READ[shown], both),
                    ),
                )
    for arm, curves in arms.items():
        before, after = curves.by_seed("ref_ended"), curves.by_seed("sample_ended")
        expect(
            "the policy ends fewer of its texts than the reference did",
            f"{arm}: share of samples that end, reference less policy",
            _less(before, after),
        )
    if NONE in arms:
        expect(
            "without SFT, samples come to repeat themselves",
            f"{NONE}: share of repeated 3-grams, policy less reference",
            _less(arms[NONE].by_seed("sample_repetition"), arms[NONE].by_seed("ref_repetition")),
        )
    if REJECTED in arms:
        falls(REJECTED, "rejected", "after SFT on the rejected answers, rejected falls")
    return findings


def _of_seeds(curves: Curves, name: str, seeds: Sequence[int]) -> list[float]:
    by_seed = dict(zip(curves.seeds, curves.by_seed(name), strict=True))
    return [by_seed[seed] for seed in seeds]


def _less(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _setup(history: History) -> Any:
    assert history.setup is not None
    return history.setup
