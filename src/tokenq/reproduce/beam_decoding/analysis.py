"""From answers to win rates, lengths and findings. Intervals are over prompts; seeds stand beside.

What is compared is always on the same prompts, so that what is hard about a prompt cancels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenq.judges import length_controlled, win_rate
from tokenq.reproduce.beam_decoding import film
from tokenq.reproduce.beam_decoding.decoding import BEAM, SAMPLE, Answer, beam
from tokenq.reproduce.beam_decoding.measures import (
    JUDGES,
    LENGTH,
    REWARD,
    UNSUPPORTED,
    Measured,
    Measures,
)
from tokenq.reproduce.beam_decoding.policies import DPO, REFERENCE, TUNED, Policy
from tokenq.reproduce.beam_decoding.settings import FILM, BeamSettings
from tokenq.reproduce.beam_decoding.tasks import DebianTask
from tokenq.reproduce.beam_decoding.work import BEAMS, PRECISE, SAMPLED, Piece, Worker, methods
from tokenq.reproduce.experiment import Results
from tokenq.reproduce.findings import Finding, judged
from tokenq.reproduce.statistics import Estimate

Floats = NDArray[np.float64]
_SAMPLE_PROMPTS = 6
FEW, MANY = 5, 20
"""Beams that are said to help, and to hurt."""


class Claim(Finding):
    """A finding, and what it is about: arm (or a difference of two), measure, and every seed."""

    arm: str
    what: str
    by_seed: list[float]


@dataclass(frozen=True)
class Written:
    """What one policy wrote in one way."""

    name: str
    width: int
    measured: Measured


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and seeds, its 95 % interval over prompts, and that of each seed."""

    value: float
    low: float
    high: float
    by_seed: list[float]

    def estimate(self) -> Estimate:
        """The form of findings."""
        return {"mean": self.value, "low": self.low, "high": self.high, "n": len(self.by_seed)}


class Resampler:
    """Draws prompts anew, the same draws for whatever is measured."""

    def __init__(self, prompts: int, resamples: int) -> None:
        drawn = np.random.default_rng(0).multinomial(
            prompts, np.full(prompts, 1 / prompts), size=resamples
        )
        self._weights = drawn / prompts

    def __call__(self, values: Floats) -> Interval:
        """values: [seeds, prompts]"""
        means = self._weights @ values.mean(axis=0)
        low, high = np.quantile(means, [0.025, 0.975])
        by_seed = values.mean(axis=1).tolist()
        return Interval(float(values.mean()), float(low), float(high), by_seed)


def analysed(worker: Worker, pieces: Sequence[Piece], settings: BeamSettings) -> Results:
    """The results of all pieces, task by task."""
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(piece.task for piece in pieces):
        tasks[name] = _of_task(worker, [p for p in pieces if p.task == name], settings)
    return {"settings": settings.to_dict(), "tasks": tasks}


def _of_task(worker: Worker, pieces: Sequence[Piece], settings: BeamSettings) -> dict[str, Any]:
    task = worker.task(pieces[0].task)
    measures = Measures(task)
    written: dict[Policy, dict[str, Written]] = {}
    training: dict[str, list[dict[str, float]]] = {}
    for piece in pieces:
        if piece.group == PRECISE:
            continue
        own = written.setdefault(piece.policy, {})
        if not own and piece.policy.name != REFERENCE:
            training.setdefault(piece.policy.arm, []).append(worker.training(piece))
        own.update(_written(worker, piece, measures))
    judges = JUDGES[task.name]
    comparing = _Comparing(written, judges, len(task.starts), settings.resamples)
    return {
        "prompts": len(task.starts),
        "judges": _judges(worker, task.name, measures),
        "training": training,
        "arms": comparing.arms(),
        "findings": comparing.findings(settings.betas),
        "samples": _samples(written, task.starts, judges, settings),
        "precision": [
            _precision(worker, piece, written[piece.policy], judges)
            for piece in pieces
            if piece.group == PRECISE and piece.policy in written
        ],
    }


def _precision(
    worker: Worker, piece: Piece, written: dict[str, Written], judges: Sequence[str]
) -> dict[str, Any]:
    """How decoding in float32 differs, on the first starts."""
    ours = worker.answers(Piece(piece.task, piece.policy, BEAMS))
    widths = {}
    measures = Measures(worker.task(piece.task))
    for method in methods(worker.settings, piece):
        theirs = [row[0] for row in worker.answers(piece)[method.key]]
        pairs = list(zip([row[0] for row in ours[method.key]], theirs, strict=False))
        measured = measures(theirs, {"fluency": [0.0] * len(theirs)})
        rough = written[f"{method.name} {method.width}"].measured
        widths[str(method.width)] = {
            "same": sum(a.token_ids == b.token_ids for a, b in pairs) / len(pairs),
            "tokens": float(np.mean([len(a.token_ids) for a, _ in pairs])),
            "tokens in float32": float(np.mean([len(b.token_ids) for _, b in pairs])),
            **{
                judge: float(np.mean([row[judge] for row in rough.numbers[: len(pairs)]]))
                for judge in judges
            },
            **{
                f"{judge} in float32": float(np.mean([row[judge] for row in measured.numbers]))
                for judge in judges
            },
        }
    return {"policy": piece.policy.key, "prompts": len(theirs), "widths": widths}


def _judges(worker: Worker, name: str, measures: Measures) -> dict[str, Any]:
    """How far the judges agree with people, or with how pairs were made, on held-out texts."""
    task = worker.task(name)
    if name == FILM:
        assert measures.rater is not None
        texts, ratings = film.rated()
        said = measures.rater(texts)
        valence = [film.lexicon_valence(text) for text in texts]
        lengths = [len(text.split()) for text in texts]
        return {
            "texts": len(texts),
            "rating and people": _correlation(said, ratings),
            "valence and people": _correlation(valence, ratings),
            "rating and valence": _correlation(said, valence),
            "rating and words": _correlation(said, lengths),
            "valence and words": _correlation(valence, lengths),
        }
    assert isinstance(task, DebianTask)
    return worker.judge_accuracy(task)


def _correlation(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def _written(worker: Worker, piece: Piece, measures: Measures) -> dict[str, Written]:
    answers, scores = worker.answers(piece), worker.scores(piece)
    found: dict[str, Written] = {}

    def add(name: str, width: int, key: str, places: Sequence[int]) -> None:
        chosen: list[Answer] = [row[at] for row, at in zip(answers[key], places, strict=True)]
        own = {
            score: [row[at] for row, at in zip(values[key], places, strict=True)]
            for score, values in scores.items()
        }
        found[f"{name} {width}"] = Written(name, width, measures(chosen, own))

    for method in methods(worker.settings, piece):
        starts = len(answers[method.key])
        if piece.group != SAMPLED:
            add(method.name, method.width, method.key, [0] * starts)
            continue
        add(SAMPLE, 1, method.key, [0] * starts)
        for count in (FEW, method.width):
            ratios = [row[:count] for row in scores["log_ratio"][method.key]]
            add("best of samples", count, method.key, [int(np.argmax(row)) for row in ratios])
    return found


class _Comparing:
    """All comparisons of one task."""

    def __init__(
        self,
        written: dict[Policy, dict[str, Written]],
        judges: Sequence[str],
        prompts: int,
        resamples: int,
    ) -> None:
        self._written, self._judges, self._prompts = written, judges, prompts
        self._resamples = resamples
        self._interval = Resampler(prompts, resamples)

    def arms(self) -> dict[str, Any]:
        """By arm and way to decode, everything."""
        found: dict[str, Any] = {}
        for arm in dict.fromkeys(policy.arm for policy in self._written):
            keys = dict.fromkeys(key for policy in self._of(arm) for key in self._written[policy])
            found[arm] = {key: self._method(arm, key) for key in keys}
        return found

    def _of(self, arm: str) -> list[Policy]:
        return [policy for policy in self._written if policy.arm == arm]

    def _method(self, arm: str, key: str) -> dict[str, Any]:
        policies = [policy for policy in self._of(arm) if key in self._written[policy]]
        one = self._written[policies[0]][key]
        # A text may be too short for a measure.
        names = list(dict.fromkeys(name for row in one.measured.numbers for name in row))
        result: dict[str, Any] = {
            "name": one.name,
            "width": one.width,
            "seeds": [policy.seed for policy in policies],
            "measures": {
                name: asdict(self._interval(self._values(policies, key, name))) for name in names
            },
        }
        greedy = f"{BEAM} {beam(1).width}"
        reference = Policy(REFERENCE)
        if all(greedy in self._written[policy] for policy in policies):
            result["against own greedy"] = self._against(policies, key, policies, greedy)
        if greedy in self._written.get(reference, {}):
            baseline = [reference] * len(policies)
            result["against the reference's greedy"] = self._against(
                policies, key, baseline, greedy
            )
        return result

    def _against(
        self, ours: Sequence[Policy], key: str, theirs: Sequence[Policy], baseline: str
    ) -> dict[str, Any]:
        """Win rates by judge, plain and at equal length."""
        prompts = [str(at) for _ in ours for at in range(self._prompts)]
        longer = self._values(ours, key, LENGTH) - self._values(theirs, baseline, LENGTH)
        found: dict[str, Any] = {}
        for judge in self._judges:
            won = self._won(ours, key, theirs, baseline, judge)
            rate = win_rate(won.ravel().tolist(), prompts, resamples=self._resamples)
            controlled = length_controlled(
                won.ravel().tolist(),
                longer.ravel().tolist(),
                prompts,
                resamples=self._resamples,
            )
            found[judge] = {
                "win rate": asdict(rate),
                "by_seed": won.mean(axis=1).tolist(),
                "at equal length": None if controlled is None else asdict(controlled),
            }
        return found

    def _won(
        self, ours: Sequence[Policy], key: str, theirs: Sequence[Policy], baseline: str, judge: str
    ) -> Floats:
        """[seeds, prompts] 1 where ours is better, 0.5 for a tie."""
        first, second = self._values(ours, key, judge), self._values(theirs, baseline, judge)
        return np.where(first == second, 0.5, (first > second).astype(np.float64))

    def _values(self, policies: Sequence[Policy], key: str, name: str) -> Floats:
        """[seeds, prompts]; where a text is too short for a measure, the mean of the others."""
        rows = np.array(
            [
                [each.get(name, np.nan) for each in self._written[policy][key].measured.numbers]
                for policy in policies
            ]
        )
        if not np.isnan(rows).any():
            return rows
        known = ~np.isnan(rows)
        return np.where(known, rows, rows[known].mean() if known.any() else 0.0)

    # ---- Findings ----

    def findings(self, betas: Sequence[float]) -> list[Claim]:
        """The rise, the fall and the verbosity, for each arm and judge, and DPO less controls."""
        dpo = Policy(DPO, betas[0]).arm
        found: list[Claim] = []
        for judge in self._judges:
            for claim, few, many, sign in (
                (f"{FEW} beams are better than 1", 1, FEW, 1.0),
                (f"{MANY} beams are worse than {FEW}", FEW, MANY, -1.0),
                (f"{MANY} beams are worse than 1", 1, MANY, -1.0),
            ):
                found += self._claims(claim, judge, few, many, sign, dpo)
        for few, many in ((1, FEW), (FEW, MANY)):
            claim = f"texts of {many} beams are longer than of {few}"
            found += self._claims(claim, LENGTH, few, many, 1.0, dpo)
            if REWARD in self._judges:
                claim = f"{many} beams say more that is unsupported than {few}"
                found += self._claims(claim, UNSUPPORTED, few, many, 1.0, dpo)
        return found

    def _claims(
        self, claim: str, measure: str, few: int, many: int, sign: float, dpo: str
    ) -> list[Claim]:
        """One claim for every arm, and how much more it is so of DPO than of each control.

        measure: a judge, whose win rate is claimed to be off a half, or what is claimed to grow
        """
        found: list[Claim] = []
        differences: dict[str, Floats] = {}
        judging = measure in self._judges
        what = f"win rate by {measure}, less 0.5" if judging else measure
        for arm in dict.fromkeys(policy.arm for policy in self._written):
            keys = f"{BEAM} {few}", f"{BEAM} {many}"
            policies = [p for p in self._of(arm) if all(k in self._written[p] for k in keys)]
            if not policies:
                continue
            if judging:
                values = sign * (self._won(policies, keys[1], policies, keys[0], measure) - 0.5)
            else:
                values = self._values(policies, keys[1], measure)
                values = sign * (values - self._values(policies, keys[0], measure))
            differences[arm] = values
            found.append(self._claim(claim, what, arm, values))
        for control in (REFERENCE, TUNED):
            if dpo in differences and control in differences:
                # Seeds of two arms have nothing to do with each other.
                less = differences[dpo].mean(0) - differences[control].mean(0)
                found.append(self._claim(claim, what, f"{dpo} less {control}", less[None]))
        return found

    def _claim(self, claim: str, what: str, arm: str, values: Floats) -> Claim:
        interval = self._interval(values)
        whole = judged(claim, f"{arm}: {what}", interval.estimate())
        return {**whole, "arm": arm, "what": what, "by_seed": interval.by_seed}


def _samples(
    written: dict[Policy, dict[str, Written]],
    starts: Sequence[Any],
    judges: Sequence[str],
    settings: BeamSettings,
) -> list[dict[str, Any]]:
    """Texts for the first prompts, by DPO (first seed) and the reference, at 1, 5 and 20 beams."""
    policies = [Policy(DPO, settings.betas[0]), Policy(REFERENCE)]
    found = []
    for place, start in enumerate(starts[:_SAMPLE_PROMPTS]):
        texts = []
        for policy in policies:
            for width in (1, FEW, MANY):
                own = written.get(policy, {}).get(f"{BEAM} {width}")
                if own is not None:
                    numbers = own.measured.numbers[place]
                    texts.append(
                        {
                            "arm": policy.arm,
                            "width": width,
                            "text": own.measured.texts[place],
                            **{judge: numbers[judge] for judge in judges},
                        }
                    )
        found.append({"start": start.text, "human": start.human, "texts": texts})
    return found
