"""What the readings say: means over seeds, correlations, objectives at equal margin, findings."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tokenq.reproduce.findings import Finding, finding
from tokenq.reproduce.mass_displacement.answers import KINDS, WORDS, contrary
from tokenq.reproduce.mass_displacement.arms import FILTERS, OBJECTIVE_ARMS, WRITING
from tokenq.reproduce.mass_displacement.predictors import PREDICTORS
from tokenq.reproduce.mass_displacement.settings import LEVELS, MARGINS
from tokenq.reproduce.mass_displacement.training import STATED
from tokenq.reproduce.statistics import Estimate, estimate

SHARES = {"near": 0.5, "opposite": 0.25, "evasive": 0.25}
"""Of the kinds in the data set; held-out means over kinds are weighted alike."""
DISTINCT = {"near": 0.0, "opposite": 0.5, "evasive": 0.5}
NEAR = {"near": 1.0}
LEVEL = LEVELS[1]
"""Where correlations and findings read single pairs."""
MARGIN = MARGINS[1]
"""Where findings compare objectives."""

Record = dict[str, Any]
Reading = dict[str, Any]


def analysed(raw: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page shows, from the records of all seeds."""
    singles = raw["singles"]
    single = {
        kind: {f"{level:g}": _single(singles, kind, level) for level in LEVELS} for kind in KINDS
    }
    correlations = {
        which: {name: _correlations(singles, name, kinds) for name in PREDICTORS}
        for which, kinds in (("all", KINDS), ("near", ("near",)))
    }
    arms = raw["arms"]
    by_margin = {
        name: {f"{margin:g}": _at_margin(arms[name], margin, SHARES) for margin in MARGINS}
        for name in OBJECTIVE_ARMS
    }
    filtered = {
        which: {
            name: {f"{margin:g}": _at_margin(arms[name], margin, shares) for margin in MARGINS}
            for name in FILTERS
        }
        for which, shares in (("near", NEAR), ("distinct", DISTINCT))
    }
    return {
        "single": single,
        "correlations": correlations,
        "gainers": _gainers(singles),
        "written": _written(raw),
        "end": {name: _end(runs) for name, runs in arms.items()},
        "at margin": by_margin,
        "filters at margin": filtered,
        "findings": _findings(raw),
        "not judged": [name for name, own in by_margin.items() if _misses(own)],
    }


def _misses(found: dict[str, dict[str, Any]]) -> bool:
    """Whether some seed did not reach the margin that findings compare at."""
    one = found[f"{MARGIN:g}"]
    return bool(one["reached"] < one["of"])


def at_level(curve: Sequence[Sequence[float]], level: float) -> list[float] | None:
    """The row of a curve where its first column first reaches `level`, linear in between."""
    for before, after in itertools.pairwise(curve):
        if after[0] >= level:
            part = (level - before[0]) / (after[0] - before[0])
            return [a + part * (b - a) for a, b in zip(before, after, strict=True)]
    return None


def margin_of(reading: Reading, shares: dict[str, float]) -> float:
    """Mean growth of log pi(y+)/pi(y-) over held-out pairs, kinds weighted by `shares`, nats."""
    grown = {kind: reading["chosen"][kind] - reading["rejected"][kind] for kind in shares}
    return sum(share * grown[kind] for kind, share in shares.items())


def equal_margin(
    readings: Sequence[Reading], margin: float, shares: dict[str, float]
) -> dict[str, float] | None:
    """A run where its held-out margin first reaches `margin`; None where it never does.

    chosen, near: change of log pi of chosen answers, nats: kinds by `SHARES`, near-duplicates alone
    opposite, right: change of the mass of first words of that meaning
    """
    start = readings[0]
    curve = [
        [
            margin_of(each, shares),
            _chosen(each),
            each["chosen"]["near"],
            each["opposite"] - start["opposite"],
            each["right"] - start["right"],
        ]
        for each in readings
    ]
    row = at_level(curve, margin)
    return None if row is None else dict(zip(_EQUAL, row[1:], strict=True))


def _chosen(reading: Reading) -> float:
    """Mean change of log pi of chosen answers, nats, kinds weighted by `SHARES`."""
    return float(sum(share * reading["chosen"][kind] for kind, share in SHARES.items()))


_EQUAL = ("chosen", "near", "opposite", "right")


def _single(singles: Sequence[Sequence[Record]], kind: str, level: float) -> dict[str, Any]:
    """Estimates over seeds for single pairs of a kind; `reached`: share of pairs that got there."""
    found = [_values(records, kind, level) for records in singles]
    kept = [values for values in found if values]
    if not kept:
        return {"reached": 0.0}
    counts = [sum(record["kind"] == kind for record in records) for records in singles]
    return {
        "reached": sum(map(len, found)) / sum(counts),
        "chosen": estimate([float(np.mean([v[0] for v in each])) for each in kept]),
        "falls": estimate([float(np.mean([v[0] < 0 for v in each])) for each in kept]),
        "right": estimate([float(np.mean([v[1] for v in each])) for each in kept]),
        "opposite": estimate([float(np.mean([v[2] for v in each])) for each in kept]),
        "opposite grows": estimate([float(np.mean([v[2] > 0 for v in each])) for each in kept]),
    }


def _values(records: Sequence[Record], kind: str, level: float) -> list[tuple[float, ...]]:
    """(log-ratio of chosen, change of right mass, of opposite mass) of the pairs that got there."""
    values: list[tuple[float, ...]] = []
    for record in records:
        row = at_level(record["curve"], level) if record["kind"] == kind else None
        if row is not None:
            _, _, right, opposite = record["curve"][0]
            values.append((row[1], row[2] - right, row[3] - opposite))
    return values


def _correlations(
    singles: Sequence[Sequence[Record]], name: str, kinds: Sequence[str]
) -> dict[str, Estimate | None]:
    """Spearman correlations within each seed: with the chosen's fall, with the opposite's gain."""
    found: dict[str, Estimate | None] = {}
    for what in ("fall", "opposite"):
        own = [_spearman(records, name, kinds, what) for records in singles]
        known = [value for value in own if value is not None]
        found[what] = estimate(known) if known else None
    return found


def _spearman(
    records: Sequence[Record], name: str, kinds: Sequence[str], what: str
) -> float | None:
    rows = [
        (_predictor(record, name), -row[1] if what == "fall" else row[3] - record["curve"][0][3])
        for record in records
        if record["kind"] in kinds and (row := at_level(record["curve"], LEVEL)) is not None
    ]
    if len(rows) < 3:
        return None
    value = float(stats.spearmanr(*zip(*rows, strict=True)).statistic)
    return None if np.isnan(value) else value


def _predictor(record: Record, name: str) -> float:
    value = record["chosen_logp"] if name == "likely chosen" else record["predictors"][name]
    return float(value)


def _gainers(singles: Sequence[Sequence[Record]]) -> dict[str, dict[str, float]]:
    """By kind, the meaning of the first token that gained most besides the chosen answer's own."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        counts: Counter[str] = Counter()
        for records in singles:
            for record in records:
                if record["kind"] == kind:
                    counts[_gainer(record)] += 1
        total = max(1, sum(counts.values()))
        found[kind] = {name: counts[name] / total for name in ("right", "opposite", "other")}
    return found


def _gainer(record: Record) -> str:
    token = record["gains"][0][0].strip()
    if token in WORDS[record["right"]]:
        return "right"
    return "opposite" if token in WORDS[contrary(record["right"])] else "other"


def _written(raw: dict[str, Any]) -> dict[str, Any]:
    """By policy, what it writes: shares by meaning, and its most common texts in the first seed."""
    policies = {"start": raw["starts"], **{name: raw["arms"][name] for name in WRITING}}
    return {
        name: {
            **{key: estimate([run["written"][key] for run in runs]) for key in STATED},
            "contradictory": estimate(
                [1 - sum(run["written"][key] for key in STATED) for run in runs]
            ),
            "texts": runs[0]["written"]["texts"][:3],
        }
        for name, runs in policies.items()
    }


def _end(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Estimates after the last step: changes since the start, and margins by kind."""

    def over(value: Callable[[Reading, Reading], float]) -> Estimate:
        return estimate([value(run["readings"][0], run["readings"][-1]) for run in runs])

    return {
        "pairs": runs[0]["pairs"],
        "near": estimate([run["near"] for run in runs]),
        "yes": estimate([run["yes"] for run in runs]),
        "opposite": over(lambda a, b: b["opposite"] - a["opposite"]),
        "right": over(lambda a, b: b["right"] - a["right"]),
        "accuracy": over(lambda a, b: b["accuracy"] - a["accuracy"]),
        "chosen": {k: over(lambda a, b, k=k: b["chosen"][k]) for k in KINDS},  # type: ignore[misc]
        "margin": {
            k: over(lambda a, b, k=k: b["chosen"][k] - b["rejected"][k])  # type: ignore[misc]
            for k in KINDS
        },
    }


def _at_margin(
    runs: Sequence[dict[str, Any]], margin: float, shares: dict[str, float]
) -> dict[str, Any]:
    """Estimates over the seeds that reach the margin; `reached` says how many do."""
    found = [equal_margin(run["readings"], margin, shares) for run in runs]
    kept = [each for each in found if each is not None]
    estimates = {name: estimate([each[name] for each in kept]) for name in _EQUAL} if kept else {}
    return {"reached": len(kept), "of": len(runs), **estimates}


def _findings(raw: dict[str, Any]) -> list[Finding]:
    singles, arms = raw["singles"], raw["arms"]
    found: list[Finding] = []

    def add(claim: str, measured: str, differences: Sequence[float | None]) -> None:
        known = [value for value in differences if value is not None]
        if len(known) == len(differences) and known:
            found.append(finding(claim, measured, known))

    def mean(kind: str, which: int) -> list[float | None]:
        values = [_values(records, kind, LEVEL) for records in singles]
        return [float(np.mean([v[which] for v in each])) if each else None for each in values]

    at = f"at a margin of {LEVEL:g} nats"
    near, opposite = mean("near", 0), mean("opposite", 0)
    add(
        "one near-duplicate pair: its chosen answer becomes less likely",
        f"fall of log pi(y+) {at}, nats",
        [None if v is None else -v for v in near],
    )
    add(
        "it keeps less than the chosen answer of a pair of opposites",
        f"log pi(y+), opposite - near-duplicate, {at}",
        _less(opposite, near),
    )
    add(
        "one near-duplicate pair: the opposite answer gains",
        f"change of the mass of opposite words {at}",
        mean("near", 2),
    )
    for name in ("CHES", "CHES of means", "head gradients"):
        own = [_spearman(records, name, KINDS, "fall") for records in singles]
        add(f"{name}: tells which pairs displace", f"Spearman with the fall, all pairs, {at}", own)
        for control in ("token overlap", "likely chosen"):
            theirs = [_spearman(records, control, KINDS, "fall") for records in singles]
            add(
                f"{name}: tells more than {control}",
                "difference of the Spearman correlations",
                _less(own, theirs),
            )
    for name in ("CHES", "CHES of means"):
        add(
            f"{name} tells it among near-duplicates too",
            f"Spearman with the fall, near-duplicates only, {at}",
            [_spearman(records, name, ("near",), "fall") for records in singles],
        )
    add(
        "CHES tells which near-duplicates feed the opposite answer",
        f"Spearman with the gain of opposite words, near-duplicates only, {at}",
        [_spearman(records, "CHES", ("near",), "opposite") for records in singles],
    )

    def end(name: str, key: str) -> list[float]:
        return [run["readings"][-1][key] - run["readings"][0][key] for run in arms[name]]

    steps = f"after {raw['settings']['steps']} steps, held out"
    whole = end("DPO", "opposite")
    add("DPO on the whole data set feeds opposite answers", f"change of their mass {steps}", whole)
    for other, how in _HOW.items():
        add(
            f"{how} keeps them smaller",
            f"opposite mass, all pairs - {other.removeprefix('DPO, ')}, {steps}",
            _less(whole, end(other, "opposite")),
        )
    for other in ("DPO, CHES-filtered", "DPO, CHES-filtered, balanced"):
        add(
            f"{_HOW[other]} does more than filtering at random",
            f"opposite mass, randomly filtered - {other.removeprefix('DPO, ')}, {steps}",
            _less(end("DPO, randomly filtered", "opposite"), end(other, "opposite")),
        )
    for what, shares in (("near-duplicates", NEAR), ("the other pairs", DISTINCT)):
        rows = [
            [_of(equal_margin(run["readings"], MARGIN, shares), "chosen") for run in arms[name]]
            for name in ("DPO, no near-duplicates", "DPO, near-duplicates only")
        ]
        add(
            "near-duplicates alone displace more than the other pairs alone",
            f"log pi(y+), no near-duplicates - near-duplicates only, at a held-out margin of "
            f"{MARGIN:g} nats on {what}",
            _less(*rows),
        )
    add(
        "DPO on the whole data set makes chosen answers less likely",
        f"fall of log pi(y+), {steps}, nats",
        [
            -sum(s * run["readings"][-1]["chosen"][k] for k, s in SHARES.items())
            for run in arms["DPO"]
        ],
    )
    equal = f"at a held-out margin of {MARGIN:g} nats"

    def level(name: str, key: str) -> list[float | None]:
        rows = [equal_margin(run["readings"], MARGIN, SHARES) for run in arms[name]]
        return [_of(row, key) for row in rows]

    for name in OBJECTIVE_ARMS:
        if name in ("DPO", "SFT"):
            continue
        add(
            f"{name} keeps chosen answers likelier than DPO",
            f"log pi(y+), {name} - DPO, {equal}",
            _less(level(name, "chosen"), level("DPO", "chosen")),
        )
        add(
            f"{name} keeps opposite answers smaller than DPO",
            f"opposite mass, DPO - {name}, {equal}",
            _less(level("DPO", "opposite"), level(name, "opposite")),
        )
    return found


_HOW = {
    "DPO, CHES-filtered": "filtering by CHES",
    "DPO, CHES-filtered, balanced": "filtering by CHES within each answer",
    "DPO, randomly filtered": "filtering at random",
    "DPO, no near-duplicates": "leaving all near-duplicates out",
    "DPO, near-duplicates only": "leaving all others out",
}


def _of(row: dict[str, float] | None, key: str) -> float | None:
    return None if row is None else row[key]


def _less(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    pairs = zip(first, second, strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]
