"""Error spans of a scored data set: from records on disk to spans with p-values, row by row."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenq.credit.calibration import (
    BlameSource,
    CalibratedSpan,
    SpanCalibration,
    calibrate_spans,
    calibrated_spans,
    text_blames,
)
from tokenq.credit.journal import read_records
from tokenq.credit.summary import Summary
from tokenq.data.loading import Rows
from tokenq.errors import UserError

Record = dict[str, Any]

_DECIMALS = 6


@dataclass(frozen=True)
class LocateOptions:
    """Which spans are reported.

    rate:       share of good responses in which anything may be flagged
    candidates: so many of the worst spans of a response are reported whether flagged or not, so
                that it can be seen what a higher rate would flag
    """

    rate: float = 0.05
    candidates: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"rate is {self.rate}; accepted: between 0 and 1")
        if self.candidates < 0:
            raise UserError(f"candidates is {self.candidates}; accepted: 0 or more")


def better_responses(rows: Rows) -> Rows:
    """Only what the rows call good, so that nothing else is scored: chosen responses, and those
    with the label true. Other kinds of rows stay as they are."""
    dataset = rows.dataset
    if rows.kind == "preference":
        dataset = dataset.remove_columns("rejected").rename_column("chosen", "completion")
    elif rows.kind == "unpaired":
        dataset = dataset.filter(lambda row: row["label"]).remove_columns("label")
    else:
        return rows
    return replace(rows, dataset=dataset, kind="sft")


def good_sides(records: Iterable[Record]) -> Iterator[Record]:
    """The good response of each record: `chosen`, the first of a ranking, or the completion, where
    its label is not false."""
    for record in records:
        sides = record.get("responses", {})
        for name in ("chosen", "1", "completion"):
            if name in sides and record.get("label", True):
                yield sides[name]


def source_of_records(settings: Mapping[str, Any], estimator: str = "plain") -> BlameSource:
    """What a run's blame was computed with, from its settings (names are missing on disk)."""
    names = {side: settings.get(side) or "" for side in ("policy", "reference")}
    hashes = {name: settings[name] for name in ("policy_hash", "reference_hash")}
    return BlameSource(**names, **hashes, beta=settings["beta"], estimator=estimator)


def side_blames(side: Mapping[str, Any], estimator: str = "plain") -> list[float]:
    """[T] minus the estimated reward of each token, beta times nats.

    Raises UserError where the records do not hold the estimator.
    """
    if estimator == "plain":
        return [-reward for reward in side["rewards"]]
    estimates = side.get("estimates", {})
    if estimator not in estimates:
        held = ", ".join(["plain", *(name for name in estimates if name != "plain")])
        raise UserError(f"the scored rows hold no estimator {estimator!r}; accepted: {held}")
    return [-reward for reward in estimates[estimator]]


def calibrate_records(path: Path, source: BlameSource, **options: Any) -> SpanCalibration:
    """Calibrate on the good responses of a scored data set; `options` of :func:`calibrate_spans`.

    Responses without a token of text are left out. Raises UserError for too few.
    """
    blames = []
    for side in good_sides(read_records(path)):
        _, inside = text_blames(side_blames(side, source.estimator), side["offsets"])
        if inside:
            blames.append(inside)
    return calibrate_spans(blames, source, **options)


def with_spans(record: Record, calibration: SpanCalibration, options: LocateOptions) -> Record:
    """The record with the `spans` of each response: those flagged, and the worst candidates.

    A span has `start`, `end` (characters, without blanks at its ends), `text`, `tokens` (the
    number of the first, and of the one after the last), `reward` (estimated, beta times nats),
    `excess` (its blame above the tolerance), `p_value` and `flagged`.
    """
    responses = {
        name: {**side, "spans": list(_spans(side, calibration, options))}
        for name, side in record["responses"].items()
    }
    return {**record, "responses": responses}


def _spans(
    side: Record, calibration: SpanCalibration, options: LocateOptions
) -> Iterator[dict[str, Any]]:
    blames = side_blames(side, calibration.source.estimator)
    found = calibrated_spans(side["response"], side["offsets"], blames, calibration)
    for place, span in enumerate(found):
        flagged = calibration.flags(span.p_value, options.rate)
        if flagged or place < options.candidates:
            yield _plain(span, flagged)


def _plain(span: CalibratedSpan, flagged: bool) -> dict[str, Any]:
    # Many tokens begin with the blank before their word, which is no part of an error.
    start = span.start + len(span.text) - len(span.text.lstrip())
    text = span.text.strip() or span.text
    start = start if span.text.strip() else span.start
    return {
        "start": start,
        "end": start + len(text),
        "text": text,
        "tokens": [span.first, span.last],
        "reward": round(span.reward, _DECIMALS),
        "excess": round(span.excess, _DECIMALS),
        "p_value": round(span.p_value, _DECIMALS),
        "flagged": flagged,
    }


def span_lines(record: Record) -> Iterator[dict[str, Any]]:
    """One line for each span of a record: row, name of the response, and the span, worst first."""
    for name, side in record["responses"].items():
        for span in side["spans"]:
            blame = {"blame": -span["reward"]}
            rest = {key: value for key, value in span.items() if key != "reward"}
            yield {"row": record["row"], "response": name, **rest, **blame}


@dataclass
class LocateSummary:
    """Counts over rows with spans.

    scored:             what the same rows say without their spans
    responses, flagged: by the response's name, how many there are and in how many of them anything
                        is flagged
    spans:              flagged spans
    """

    scored: Summary = field(default_factory=Summary)
    responses: dict[str, int] = field(default_factory=dict)
    flagged: dict[str, int] = field(default_factory=dict)
    spans: int = 0

    def add(self, record: Record) -> None:
        """Count one record with spans, or one that was left out."""
        self.scored.add(record)
        for name, side in record.get("responses", {}).items():
            flagged = sum(span["flagged"] for span in side["spans"])
            self.responses[name] = self.responses.get(name, 0) + 1
            self.flagged[name] = self.flagged.get(name, 0) + (flagged > 0)
            self.spans += flagged

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            **self.scored.to_dict(),
            "responses": self.responses,
            "flagged_responses": self.flagged,
            "flagged_spans": self.spans,
        }
