"""What a stated rate of false alarms is worth, and what it finds, on summaries of packages."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenq.credit.calibration import BlameSource, SpanCalibration, calibrate_spans, text_blames
from tokenq.credit.localisation import (
    Bootstrap,
    Estimate,
    Marked,
    detection_rate,
    false_positive_rate,
    span_f1,
)
from tokenq.reproduce.localisation.arms import COIN, DPO
from tokenq.reproduce.localisation.measures import share
from tokenq.reproduce.localisation.planted import TRUE_WORDINGS
from tokenq.reproduce.localisation.tables import START, Table

SIGNALS = {
    "credit, plain": (DPO.name, "plain"),
    "credit, standardised": (DPO.name, "standardised"),
    "credit by coin labels, plain": (COIN, "plain"),
    "surprisal of the untrained model": (START, "surprisal"),
    "word not in the prompt": (START, "not in the prompt"),
}
"""What is calibrated: its title, arm and signal. The last three are controls."""
PLAIN, BY_COIN = "credit, plain", "credit by coin labels, plain"
SURPRISAL = "surprisal of the untrained model"
GOOD = TRUE_WORDINGS[0]
"""The kind of summary that calibrates."""


@dataclass(frozen=True)
class Judged:
    """One summary in one split: which tokens are flagged, and which are wrong; [T] each."""

    kind: str
    group: str
    flags: list[int]
    truth: list[bool]


def judged(
    items: Sequence[Mapping[str, Any]], signal: str, rates: Sequence[float], split: int
) -> dict[float, list[Judged]]:
    """Calibrate on the truthful summaries of half of the packages, and judge all of the others'.

    Raises UserError where a half is too small for a rate.
    """
    groups = sorted({item["group"] for item in items})
    random.Random(split).shuffle(groups)
    calibrating = set(groups[: len(groups) // 2])
    good = [
        _inside(item, signal)[1]
        for item in items
        if item["kind"] == GOOD and item["group"] in calibrating
    ]
    calibration = calibrate_spans(good, _source(signal), seed=split)
    others = [item for item in items if item["group"] not in calibrating]
    return {rate: [_judge(item, signal, calibration, rate) for item in others] for rate in rates}


def locating(
    tables: Mapping[str, Sequence[Table]], rates: Sequence[float], splits: int, resamples: int
) -> dict[str, Any]:
    """Of each signal and rate: false alarms by kind of true summary, and what of the wrong ones is
    found; means over splits and seeds, intervals over packages.

    tables: by arm, one a seed
    """
    items = tables[START][0]["items"]
    bootstrap = Bootstrap((item["group"] for item in items), resamples=resamples)
    found = {}
    for title, (arm, signal) in SIGNALS.items():
        known: dict[int, dict[float, list[Judged]]] = {}
        for table in tables[arm]:
            # What needs no training is the same table for every seed.
            if id(table) not in known:
                known[id(table)] = _over_splits(table["items"], signal, rates, splits)
        found[title] = [known[id(table)] for table in tables[arm]]
    results: dict[str, Any] = {"summaries": _kinds(items), "rates": {}}
    for rate in rates:
        own = {title: [seed[rate] for seed in seeds] for title, seeds in found.items()}
        estimates = {title: _measures(seeds, bootstrap) for title, seeds in own.items()}
        results["rates"][f"{rate:g}"] = {
            title: {
                "measures": {name: each.to_dict() for name, each in measures.items()},
                "less": {
                    control: {
                        name: each.minus(estimates[control][name]).to_dict()
                        for name, each in measures.items()
                    }
                    for control in (SURPRISAL, BY_COIN)
                    if control != title
                },
            }
            for title, measures in estimates.items()
        }
    return results


def _over_splits(
    items: Sequence[Mapping[str, Any]], signal: str, rates: Sequence[float], splits: int
) -> dict[float, list[Judged]]:
    found: dict[float, list[Judged]] = {rate: [] for rate in rates}
    for split in range(splits):
        for rate, own in judged(items, signal, rates, split).items():
            found[rate] += own
    return found


def _measures(seeds: Sequence[Sequence[Judged]], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """flagged KIND: share of true summaries of that kind in which anything is flagged; flagged: of
    the wrong ones; touched: of the wrong ones, those in which a flagged span meets the error; F1 of
    flagged tokens of wrong summaries."""
    found = {
        f"flagged {kind}": bootstrap(
            [[_marked(each) for each in own if each.kind == kind] for own in seeds],
            false_positive_rate,
        )
        for kind in TRUE_WORDINGS
    }
    wrong = [[each for each in own if any(each.truth)] for own in seeds]
    marked = [[_marked(each) for each in own] for own in wrong]
    touched = [
        [
            Marked(
                [float(any(f and t for f, t in zip(each.flags, each.truth, strict=True)))],
                [False],
                each.group,
            )
            for each in own
        ]
        for own in wrong
    ]
    found["flagged"] = bootstrap(marked, detection_rate)
    found["touched"] = bootstrap(touched, share)
    found["F1"] = bootstrap(marked, span_f1)
    return found


def _marked(each: Judged) -> Marked:
    return Marked(each.flags, each.truth, each.group)


def _judge(
    item: Mapping[str, Any], signal: str, calibration: SpanCalibration, rate: float
) -> Judged:
    places, blames = _inside(item, signal)
    truth = [bool(item["truth"][place]) for place in places]
    flags = calibration.token_flags(blames, rate)
    return Judged(item["kind"], item["group"], flags, truth)


def _inside(item: Mapping[str, Any], signal: str) -> tuple[list[int], list[float]]:
    return text_blames(item["signals"][signal], item["offsets"])


def _source(signal: str) -> BlameSource:
    return BlameSource("policy", START, "", "", 1.0, signal)


def _kinds(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = {kind: sum(item["kind"] == kind for item in items) for kind in TRUE_WORDINGS}
    return {**counts, "wrong": sum(any(item["truth"]) for item in items)}
