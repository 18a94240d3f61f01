"""Pairs whose label a policy disputes: how likely the label is wrong, and the words that say so."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit

from tokenq.credit.aggregation import Shares, word_units
from tokenq.credit.alignment import AlignedSegment, aligned_segments
from tokenq.credit.finished import Record, records_by_row
from tokenq.credit.format_tokens import FormatShare, content_margin
from tokenq.credit.journal import read_records
from tokenq.credit.summary import Mean
from tokenq.data.loading import Rows, source_columns
from tokenq.errors import UserError
from tokenq.storage import atomic_file

_RATES = (np.arange(200) + 0.5) / 400
_SCALES = np.geomspace(0.01, 100, 121)
_BINS = 2000
LEVEL = 0.95
"""Probability that an interval of this module holds."""

MEMORISED = 0.97
"""Share of labels (of 30 or more) from which a policy is suspected to have been trained on them.

People agree with each other on far fewer: 73 to 77 % in Stiennon et al., 2009.01325.
"""
_FEW = 30
_SHARED = ("equal", "end")


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """How margins speak for labels: labels of pairs are wrong with probability `rate`.

    The better answer of a pair is the one of higher reward with probability sigmoid(scale * margin)
    (Bradley-Terry, margins taken at their word up to one factor); the label names the better answer
    but for a share `rate` of pairs, whatever they are. So a label with margin m is wrong with
    probability

        sigmoid(-scale * m - log((1 - rate) / rate)).

    Scale and rate are not known; `weights` [S, R] is their posterior on a grid of `scales` [S] (per
    beta nat) and `rates` [R], given the margins, from a prior that is even in rate, from 0 to 1/2,
    and in log scale. What is told of them is averaged over it.

    rate, low, high: posterior mean of the share of wrong labels, and its 95 % interval

    A policy that is sure of itself and wrong looks the same as a wrong label: `rate` is the share
    of labels that the policy is sure to dispute, and an upper bound of the share that are wrong as
    far as it errs in that way. Margins of pairs that the policy was trained on tell nothing: it has
    been fitted to their labels, wrong ones included.
    """

    scales: np.ndarray
    rates: np.ndarray
    weights: np.ndarray

    @property
    def rate(self) -> float:
        """Posterior mean of the share of wrong labels."""
        return float(self._rate_weights() @ self.rates)

    @property
    def interval(self) -> tuple[float, float]:
        """Central 95 % posterior interval of the share of wrong labels."""
        reached = self._rate_weights().cumsum()
        tail = (1 - LEVEL) / 2
        low, high = (int(np.searchsorted(reached, share)) for share in (tail, 1 - tail))
        return float(self.rates[low]), float(self.rates[min(high, len(self.rates) - 1)])

    def probability_wrong(self, margin: float) -> float:
        """Probability that the label of a pair with this margin (beta times nats) is wrong."""
        each = expit(-self.scales[:, None] * margin - logit(1 - self.rates)[None])
        return float((self.weights * each).sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        low, high = self.interval
        return {"rate": self.rate, "low": low, "high": high, "level": LEVEL}

    def _rate_weights(self) -> np.ndarray:
        return np.asarray(self.weights.sum(axis=0))


def fit_label_noise(margins: Sequence[float], trusted: Sequence[float] = ()) -> LabelNoise:
    """Posterior of scale and rate of wrong labels.

    margins: chosen less rejected, beta times nats, of pairs that the policy was not trained on
    trusted: margins of further pairs whose labels are known to be right; they tell the scale

    Likelihood of one margin m: (1 - rate) * sigmoid(scale * m) + rate * sigmoid(-scale * m). More
    than 2,000 margins enter as the means of so many neighbours.

    Raises ValueError for no margins or one that is no number.
    """
    values = np.sort(np.asarray([*margins], dtype=np.float64))
    known = np.sort(np.asarray([*trusted], dtype=np.float64))
    if not values.size:
        raise ValueError("no margins to learn from")
    if not (np.isfinite(values).all() and np.isfinite(known).all()):
        raise ValueError("a margin is no number")
    spread = float(np.sqrt(np.mean(np.concatenate([values, known]) ** 2)))
    scales = _SCALES / (spread or 1.0)
    log_posterior = np.zeros((len(scales), len(_RATES)))
    (means, counts), (known_means, known_counts) = _binned(values), _binned(known)
    for number, scale in enumerate(scales):
        right = expit(scale * means)[:, None]
        log_posterior[number] = counts @ np.log(right + _RATES * (1 - 2 * right))
        log_posterior[number] -= known_counts @ np.logaddexp(0, -scale * known_means)
    weights = np.exp(log_posterior - log_posterior.max())
    return LabelNoise(scales, _RATES, weights / weights.sum())


@dataclass(frozen=True)
class Reason:
    """A word that speaks against the label of its pair: blamed if chosen, liked if rejected.

    side:       "chosen" or "rejected"; `start` and `end` are characters of that answer
    difference: what the word adds to the margin, beta times nats; below 0
    """

    side: str
    start: int
    end: int
    text: str
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**vars(self), "difference": round(self.difference, 6)}


@dataclass(frozen=True)
class Dispute:
    """Why a policy disputes the label of a pair.

    margin:            chosen less rejected, beta times nats
    content_margin:    the same without format tokens; above the threshold if the dispute is about
                       form alone
    probability_wrong: of the label (:class:`LabelNoise`)
    reasons:           the words that say most against the label, among those in which the answers
                       differ, strongest first
    shared:            what the margin owes to words that both answers have and to their end tokens,
                       beta times nats: an effect of the places where they differ on what follows,
                       or of the answers' lengths
    """

    margin: float
    content_margin: float
    probability_wrong: float
    shared: float
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "margin": round(self.margin, 6),
            "content_margin": round(self.content_margin, 6),
            "probability_wrong": round(self.probability_wrong, 6),
            "shared": round(self.shared, 6),
            "reasons": [each.to_dict() for each in self.reasons],
        }


def dispute(record: Mapping[str, Any], noise: LabelNoise, *, reasons: int = 5) -> Dispute:
    """What a scored pair (a line of `credit.jsonl`) says against its label.

    reasons: at most so many words
    """
    segments = aligned_segments(record)
    against = [each for each in _words_that_differ(record, segments) if each.difference < 0]
    against.sort(key=lambda each: each.difference)
    return Dispute(
        record["margin"],
        content_margin(record)[1],
        noise.probability_wrong(record["margin"]),
        sum(each.difference for each in segments if each.kind in _SHARED),
        tuple(against[:reasons]),
    )


@dataclass
class CleaningSummary:
    """What the disputes of a data set say together.

    margins:  of all scored pairs, beta times nats; `agreeing` of them are above 0
    disputed: pairs with a margin below the threshold, `disputed_tokens` tokens in all
    by_form:  disputed pairs that are not, once format tokens are left out
    flipped:  disputed pairs whose answers were exchanged
    skipped:  rows that could not be scored, by reason
    """

    noise: LabelNoise
    margins: Mean = field(default_factory=Mean)
    agreeing: int = 0
    disputed: int = 0
    disputed_tokens: int = 0
    by_form: int = 0
    flipped: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    form: FormatShare = field(default_factory=FormatShare)

    @property
    def accuracy(self) -> float | None:
        """Share of pairs whose margin is above 0."""
        return self.agreeing / self.margins.count if self.margins.count else None

    def memorised(self, trained_on_these: bool) -> str | None:
        """What to tell who may have trained the policy on the very pairs that it judges.

        trained_on_these: whether that is known. Without it, a policy that agrees with nearly all
                          labels (:data:`MEMORISED`) is suspected.
        """
        remedy = (
            "A policy is fitted to the labels that it was trained on, wrong ones included; train "
            "it on other pairs (half of them, say, to judge the other half)."
        )
        if trained_on_these:
            return f"The policy was trained on these pairs. {remedy}"
        if self.margins.count >= _FEW and (self.accuracy or 0.0) >= MEMORISED:
            return (
                f"The policy agrees with {self.accuracy:.1%} of the labels: was it trained on "
                f"these pairs? {remedy}"
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON types; the names of means are those of the training metrics where they agree."""
        return {
            "pairs": self.margins.count,
            "disputed": self.disputed,
            "disputed_by_form_alone": self.by_form,
            "flipped": self.flipped,
            "rewards/margins": self.margins.value,
            "rewards/accuracies": self.accuracy,
            "wrong_labels": self.noise.to_dict(),
            "skipped": self.skipped,
            "format": self.form.to_dict(),
        }


def clean_dataset(
    rows: Rows,
    records: Path,
    out: str | Path,
    *,
    threshold: float = 0.0,
    flip: float | None = None,
    trusted: Sequence[float] = (),
    on_progress: Callable[[int], None] = lambda count: None,
) -> CleaningSummary:
    """Part the pairs of a scored data set by whether the policy disputes their label.

    Writes the source's rows to files in `out`, in its order:

    * `kept.jsonl`: pairs with a margin of `threshold` or more
    * `disputed.jsonl`: the others, with a field `dispute` (:class:`Dispute`)
    * `unscored.jsonl`: those that could not be scored, with a field `skipped`, the reason
    * `flipped.jsonl`, if `flip` is given: disputed pairs whose label is wrong with that probability
      or more, their answers exchanged

    rows:        preference pairs
    records:     `credit.jsonl` over these rows
    threshold:   margin, beta times nats
    trusted:     margins of pairs whose labels are known to be right (:func:`fit_label_noise`)
    on_progress: called with the number of rows done since the last call

    Raises UserError for rows of another kind, or where no row was scored.
    """
    if rows.kind != "preference":
        raise UserError(
            f"{rows.source}: its rows are of kind '{rows.kind}'; accepted: preference pairs"
        )
    margins = [each["margin"] for each in read_records(records) if "margin" in each]
    if not margins:
        raise UserError(f"{rows.source}: no row could be scored")
    summary = CleaningSummary(fit_label_noise(margins, trusted))
    names = ["kept", "disputed", "unscored", *(["flipped"] if flip is not None else [])]
    with ExitStack() as stack:
        files = {}
        for name in names:
            path = stack.enter_context(atomic_file(Path(out) / f"{name}.jsonl"))
            files[name] = stack.enter_context(path.open("w", encoding="utf-8"))
        for row, record in records_by_row(records, rows):
            on_progress(1)
            for name, line in _parted(source_columns(row), record, summary, threshold, flip):
                files[name].write(json.dumps(line, ensure_ascii=False) + "\n")
    if flip is None:
        # What an earlier run exchanged does not go with the pairs that are kept now.
        (Path(out) / "flipped.jsonl").unlink(missing_ok=True)
    return summary


def disputed_records(records: Path, threshold: float = 0.0) -> Iterator[Record]:
    """The records of pairs with a margin below the threshold, as the page shows them."""
    for record in read_records(records):
        if "margin" in record and record["margin"] < threshold:
            yield record


def _parted(
    row: Record, record: Record, summary: CleaningSummary, threshold: float, flip: float | None
) -> Iterator[tuple[str, Record]]:
    """The files that a row goes to and what of it; counts it."""
    if "skipped" in record:
        reason = record["skipped"]
        summary.skipped[reason] = summary.skipped.get(reason, 0) + 1
        yield "unscored", {**row, "skipped": reason}
        return
    margin = record["margin"]
    summary.margins.add(margin)
    summary.agreeing += margin > 0
    summary.form.add(record)
    if margin >= threshold:
        yield "kept", row
        return
    found = dispute(record, summary.noise)
    summary.disputed += 1
    summary.disputed_tokens += sum(len(side["token_ids"]) for side in record["responses"].values())
    summary.by_form += found.content_margin >= threshold
    yield "disputed", {**row, "dispute": found.to_dict()}
    if flip is not None and found.probability_wrong >= flip:
        summary.flipped += 1
        yield "flipped", {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def _words_that_differ(
    record: Mapping[str, Any], segments: Sequence[AlignedSegment]
) -> Iterator[Reason]:
    for sign, name in ((1, "chosen"), (-1, "rejected")):
        side = record["responses"][name]
        text = side["response"]
        units = word_units(text)
        offsets = [(start, end) for start, end in side["offsets"]]
        sums = Shares.of(offsets, text, units).sums(torch.tensor(side["rewards"]))
        differing = [getattr(each, name) for each in segments if each.kind not in _SHARED]
        for (start, end), reward in zip(units, sums.tolist(), strict=True):
            if any(first <= start and end <= last for first, last in differing):
                yield Reason(name, start, end, text[start:end], sign * reward)


def _binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and counts of neighbours in sorted values; each value alone while they are few."""
    parts = np.array_split(values, max(1, min(len(values), _BINS)))
    filled = [part for part in parts if part.size]
    means = np.array([part.mean() for part in filled])
    return means, np.array([part.size for part in filled], dtype=np.float64)
