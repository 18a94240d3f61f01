"""How well disputed labels are those that were exchanged, and how many of them are said to be."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tokenq.credit.cleaning import clean_dataset
from tokenq.credit.journal import read_records
from tokenq.credit.localisation import (
    Bootstrap,
    Estimate,
    Marked,
    auroc,
    detection_rate,
    false_positive_rate,
)
from tokenq.reproduce.credit_uses.film import HeldOutPair, Record, pair_rows, relabelled
from tokenq.reproduce.localisation.measures import share

POLICY, REFERENCE = "policy", "reference likelihood"
SAME, MEMORISED = "policy, same pairs", "trained on them"
"""Who judges: a policy trained on other pairs; the likelihood under its reference; the policy on
those pairs alone that the control was trained on; and the control."""
BINS = (0.0, 0.1, 0.2, 0.35, 0.5, 1.0)
"""Edges of P(label wrong) between which it is compared with the share of wrong labels."""


@dataclass(frozen=True)
class Cleaned:
    """What `clean` says of pairs of which it is known whose label is wrong; [N] each.

    probability:     that the label is wrong
    rate, low, high: estimated share of wrong labels with its 95 % interval
    warned:          whether it suspects that the policy was trained on the pairs
    """

    wrong: list[bool]
    margins: list[float]
    disputed: list[bool]
    probability: list[float]
    rate: float
    low: float
    high: float
    warned: bool


def cleaned(
    pairs: Sequence[HeldOutPair], records: Sequence[Record], wrong: Sequence[bool]
) -> Cleaned:
    """Clean the pairs with the labels `wrong` exchanged, by the records of their right labels."""
    rows = pair_rows(pairs, wrong)
    labelled = [relabelled(*each) for each in zip(records, wrong, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "credit.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in labelled), encoding="utf-8")
        summary = clean_dataset(rows, path, folder)
        named = {line["row"] for line in read_records(Path(folder) / "disputed.jsonl")}
    margins = [record["margin"] for record in labelled]
    low, high = summary.noise.interval
    return Cleaned(
        list(wrong),
        margins,
        [record["row"] in named for record in labelled],
        [summary.noise.probability_wrong(margin) for margin in margins],
        summary.noise.rate,
        low,
        high,
        summary.memorised(False) is not None,
    )


class Cleaning:
    """Measures on the same resamples of pairs, so that judges can be compared."""

    def __init__(self, pairs: int, resamples: int) -> None:
        self._names = [str(number) for number in range(pairs)]
        self._bootstrap = Bootstrap(self._names, resamples=resamples)

    def auroc(self, by_seed: Sequence[Cleaned]) -> Estimate:
        """Of minus the margin, for labels that are wrong."""
        return self._bootstrap(
            self._marked(by_seed, lambda each: [-margin for margin in each.margins]), auroc
        )

    def measures(self, by_seed: Sequence[Cleaned]) -> dict[str, Any]:
        """All measures of one judge at one share of exchanged labels.

        precision:   share of disputed labels that are wrong; recall: of wrong labels, disputed
        false alarm: share of right labels that are disputed
        share:       of wrong labels, by seed: the true one, the estimate and its interval
        calibration: P(label wrong) and the share that is wrong, in bins of all seeds; the Brier
                     score, and that of one probability for all, the true share
        """
        true = [float(np.mean(each.wrong)) for each in by_seed]
        flags = self._marked(by_seed, lambda each: [float(flag) for flag in each.disputed])
        found: dict[str, Any] = {
            "pairs": len(by_seed[0].wrong),
            "disputed": float(np.mean([np.mean(each.disputed) for each in by_seed])),
            "false alarm": self._bootstrap(flags, false_positive_rate).to_dict(),
            "share": [
                {"true": share, "estimate": each.rate, "low": each.low, "high": each.high}
                for share, each in zip(true, by_seed, strict=True)
            ],
            "warned": sum(each.warned for each in by_seed),
            "calibration": calibration(by_seed),
        }
        if all(true):
            found["auroc"] = self.auroc(by_seed).to_dict()
            found["recall"] = self._bootstrap(flags, detection_rate).to_dict()
        disputed = [
            [
                Marked([float(wrong)], [False], name)
                for wrong, flag, name in zip(each.wrong, each.disputed, self._names, strict=False)
                if flag
            ]
            for each in by_seed
        ]
        if all(true) and all(disputed):
            found["precision"] = self._bootstrap(disputed, share).to_dict()
        return found

    def differences(self, judges: Mapping[str, Sequence[Cleaned]]) -> dict[str, Any]:
        """Expectations of AUROC, as differences that should be above 0: by claim, which difference
        and its estimate. The control may be missing among the `judges`."""
        found = {name: self.auroc(own) for name, own in judges.items()}
        policy = found[POLICY]
        above = [value - 0.5 for value in policy.by_seed]
        differences = {
            "disputes find exchanged labels": (
                "AUROC less 0.5",
                self._bootstrap.estimate(above, policy.draws - 0.5),
            ),
            "better than by the reference's likelihood": (
                "AUROC, policy less reference",
                policy.minus(found[REFERENCE]),
            ),
        }
        if MEMORISED in found:
            differences["better than a policy trained on the pairs"] = (
                "AUROC on the same pairs, policy less trained on them",
                found[SAME].minus(found[MEMORISED]),
            )
        return {
            claim: {"measured": measured, "value": value.to_dict()}
            for claim, (measured, value) in differences.items()
        }

    def _marked(
        self, by_seed: Sequence[Cleaned], scores: Callable[[Cleaned], list[float]]
    ) -> list[list[Marked]]:
        # A judge of fewer pairs has the first of them.
        return [
            [
                Marked([score], [wrong], name)
                for score, wrong, name in zip(scores(each), each.wrong, self._names, strict=False)
            ]
            for each in by_seed
        ]


def calibration(by_seed: Sequence[Cleaned]) -> dict[str, Any]:
    """What P(label wrong) is worth, all seeds together."""
    said = np.concatenate([each.probability for each in by_seed])
    wrong = np.concatenate([each.wrong for each in by_seed]).astype(float)
    place = np.clip(np.searchsorted(BINS, said, side="right") - 1, 0, len(BINS) - 2)
    bins = []
    for number, (low, high) in enumerate(pairwise(BINS)):
        inside = place == number
        if inside.any():
            bins.append(
                {
                    "low": low,
                    "high": high,
                    "labels": int(inside.sum()),
                    "said": float(said[inside].mean()),
                    "wrong": float(wrong[inside].mean()),
                }
            )
    return {
        "bins": bins,
        "error": float(
            sum(each["labels"] * abs(each["said"] - each["wrong"]) for each in bins) / len(said)
        ),
        "brier": float(np.mean((said - wrong) ** 2)),
        "brier of the share": float(wrong.mean() * (1 - wrong.mean())),
    }
