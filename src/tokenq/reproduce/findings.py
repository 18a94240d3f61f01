"""Expectations, what was measured, and whether they hold: the table that ends an experiment."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from tokenq.reproduce.statistics import Estimate, estimate, shown

Verdict = Literal["holds", "does not hold", "undecided"]


class Finding(TypedDict):
    """An expectation put as "this difference is above 0", and its estimate over seeds.

    claim:    what is expected
    measured: which difference the estimate is of
    value:    its estimate
    verdict:  holds where the interval lies above 0, does not hold where it lies below, else
              undecided
    """

    claim: str
    measured: str
    value: Estimate
    verdict: Verdict


def finding(claim: str, measured: str, differences: Sequence[float]) -> Finding:
    """Judge the expectation that the `differences`, one a seed, are above 0."""
    return judged(claim, measured, estimate(differences))


def judged(claim: str, measured: str, value: Estimate) -> Finding:
    """Judge the expectation that an estimated difference is above 0."""
    return {"claim": claim, "measured": measured, "value": value, "verdict": _verdict(value)}


def findings_table(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table."""
    rows = [
        f"| {one['claim']} | {one['measured']} | {shown(one['value'])} | {one['verdict']} |"
        for one in findings
    ]
    return "\n".join(["| expected | measured | mean over seeds | |", "|---|---|---|---|", *rows])


def held_out_best(scores: Mapping[float, Sequence[float]]) -> list[float]:
    """For every seed, the setting whose mean score over the *other* seeds is best.

    Scores at these settings are unbiased by the choice. With one seed it chooses for itself.

    scores: setting -> one score a seed
    """
    seeds = len(next(iter(scores.values())))

    def mean_without(seed: int, setting: float) -> float:
        others = [s for i, s in enumerate(scores[setting]) if i != seed or seeds == 1]
        return sum(others) / len(others)

    return [max(scores, key=lambda s: mean_without(seed, s)) for seed in range(seeds)]


def _verdict(value: Estimate) -> Verdict:
    if value["low"] is not None and value["low"] > 0:
        return "holds"
    if value["high"] is not None and value["high"] < 0:
        return "does not hold"
    return "undecided"
