"""The page of `tokenq reproduce uses`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenq.reproduce.credit_uses.cleaning import POLICY
from tokenq.reproduce.credit_uses.ranking import BEST, LONGER, PER_TOKEN, RANDOM, REWARD
from tokenq.reproduce.findings import findings_table

_RANKED = {
    BEST: "the best (people's own choice)",
    REWARD: "implicit reward, sum",
    PER_TOKEN: "implicit reward, a token",
    "policy_logp": "policy likelihood",
    "policy_logp_per_token": "policy likelihood, a token",
    "reference_logp": "reference likelihood",
    "reference_logp_per_token": "reference likelihood, a token",
    "shorter": "shortest",
    LONGER: "longest",
    RANDOM: "random pick",
}


def page(results: dict[str, Any]) -> str:
    """What was done, what came out, what was expected, and what it does not say."""
    settings, seeds = results["settings"], len(results["seeds"])
    film, planted = settings["film"], settings["locate"]["planted"]
    pairs = next(iter(results["clean"].values()))["judges"][POLICY]["pairs"]
    return f"""
{settings["model"]}, LoRA on the linear layers of its last {settings["layers"]} decoder layers,
trained with DPO; {seeds} seeds. The policies of ranking, cleaning and locating are those of
`tokenq reproduce credit` (same settings and seeds). Each number is a mean over seeds. Intervals
(95 %) are bootstraps over groups, pairs or packages, which all seeds and all signals share; they
tell how the number depends on the texts drawn, not on training, which `results.json` has by seed.

## Rank

Trained on {film["film"]["pairs"]} film review pairs whose ratings differ by {film["film"]["gap"]:g}
or more. {2 * pairs} sentences of the {film["film"]["split"]} split, at most
{film["film"]["test_words"]} words, are drawn into groups; how people rate (-4..4) the one that
comes first, by what it is ranked by:

<!-- --8<-- [start:rank] -->
{_ranking(results["rank"])}
<!-- --8<-- [end:rank] -->

## Clean

The same policies judge {pairs} pairs of these sentences, ratings at least {film["test_gap"]:g}
apart, in which a known share of the labels was exchanged. *Reference likelihood*: disputed where
the rejected answer is the likelier one to the untrained model. *Trained on them*: a policy trained
{film["epochs"]} times over on {film["memorised"]} of the very pairs, exchanged labels included,
cleans these; *policy, same pairs* is the usual policy on the same. Disputed: margin below
0, the default.

<!-- --8<-- [start:clean] -->
{_cleaning(results["clean"])}
<!-- --8<-- [end:clean] -->

The share of wrong labels that `clean` tells, with its own 95 % intervals, one a seed. (A central
interval of a share never reaches 0, so it cannot hold the truth where nothing was exchanged.)

{_shares(results["clean"])}

P(label wrong) of the policy against what is so, labels of all seeds together:

{_calibration(results["clean"])}

## Locate

Trained on {planted["pairs"] // 2} pairs of a true and a wrong summary of a software package;
{results["locate"]["summaries"]["wrong"]} wrong ones and as many true ones of three kinds are
judged, of packages that training has not seen. Half of the packages calibrate with their truthful
summaries, the other half is judged, in {settings["locate"]["splits"]} random ways. *Flagged*: share
of summaries in which anything is. *Met*: share of wrong summaries in which a flagged span touches
the wrong detail. *F1*: of flagged tokens of wrong summaries. With so few that calibrate a rate is
met from below: p-values are multiples of 1 in their number and one.

<!-- --8<-- [start:locate] -->
{_locating(results["locate"])}
<!-- --8<-- [end:locate] -->

## What was expected

{findings_table(results["findings"])}

## What this does not say

- One model of 135M parameters, trained for minutes on few pairs: a better judge will dispute
  better. The texts are one line long.
- Film sentiment is an easy preference, and the responses that are ranked are people's, not samples
  of the policy. Picking among many samples also finds what the reward is wrong about.
- Labels are exchanged at random. People's own mistakes are on the hard pairs, where a policy is
  less sure too.
- Wrong details are planted: one word or two, that a reader of the description can check.
- Most errors are missed at every rate. A rate bounds false alarms on summaries like those that
  calibrate; on others the table shows what it was.
- {seeds} seeds: how numbers depend on training is seen only roughly.
"""


def _ranking(ranking: Mapping[str, Any]) -> str:
    sizes = list(ranking)
    heads = [f"groups of {size} ({ranking[size]['groups']})" for size in sizes]
    largest = sizes[-1]
    rows = []
    for name, title in _RANKED.items():
        less = ranking[largest]["reward less"].get(name)
        cells = [_shown(ranking[size]["rating"][name], 2) for size in sizes]
        rows.append([title, *cells, _shown(less, 2) if less else ""])
    return _table(["first by", *heads, f"reward less it, groups of {largest}"], rows)


def _cleaning(cleaning: Mapping[str, Any]) -> str:
    rows = []
    for rate, own in cleaning.items():
        for name, measured in own["judges"].items():
            rows.append(
                [
                    f"{rate} %",
                    name,
                    str(measured["pairs"]),
                    *(_shown(measured.get(key)) for key in ("auroc", "precision", "recall")),
                    _shown(measured["false alarm"]),
                ]
            )
    names = ["exchanged", "judge", "pairs", "AUROC", "precision", "recall", "right labels disputed"]
    return _table(names, rows)


def _shares(cleaning: Mapping[str, Any]) -> str:
    rows = []
    for rate, own in cleaning.items():
        for name, measured in own["judges"].items():
            shares = measured["share"]
            inside = sum(each["low"] <= each["true"] <= each["high"] for each in shares)
            rows.append(
                [
                    f"{rate} %",
                    name,
                    "; ".join(
                        f"{each['estimate']:.2f} [{each['low']:.2f}, {each['high']:.2f}]"
                        for each in shares
                    ),
                    f"{inside} of {len(shares)}" if float(rate) else "",
                    f"{measured['warned']} of {len(shares)}",
                ]
            )
    return _table(["exchanged", "judge", "estimated", "holds the true share", "warned"], rows)


def _calibration(cleaning: Mapping[str, Any]) -> str:
    rows = []
    for rate, own in cleaning.items():
        found = own["judges"][POLICY]["calibration"]
        bins = "; ".join(
            f"{each['said']:.2f}: {each['wrong']:.2f} ({each['labels']})" for each in found["bins"]
        )
        rows.append(
            [
                f"{rate} %",
                bins,
                f"{found['error']:.3f}",
                f"{found['brier']:.3f}",
                f"{found['brier of the share']:.3f}",
            ]
        )
    names = ["exchanged", "said: so (labels)", "mean error", "Brier score", "of the true share"]
    return _table(names, rows)


def _locating(locating: Mapping[str, Any]) -> str:
    names = {
        "flagged truthful": "true ones flagged",
        "flagged paraphrase": "reworded",
        "flagged consistent": "harmless edit",
        "flagged": "wrong ones flagged",
        "touched": "met",
        "F1": "F1",
    }
    rows = [
        [rate, title, *(_shown(own["measures"][name]) for name in names)]
        for rate, signals in locating["rates"].items()
        for title, own in signals.items()
    ]
    return _table(["stated rate", "signal", *names.values()], rows)


def _shown(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    if value is None or value["value"] is None:
        return ""
    mean = f"{value['value']:.{digits}f}"
    if value["low"] is None or np.isnan(value["low"]):
        return mean
    return f"{mean} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
