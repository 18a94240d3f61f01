"""From tables of token signals to measures: how well each signal finds what is known to be wrong.

Tokens without a visible character (the end token, line breaks) are never part of an error and are
left out of all token metrics. Texts are divided into two halves by group; thresholds that are used
on one half are chosen on the other.
"""

import difflib
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.sparse import coo_array

from tokenq.credit.aggregation import sum_over_spans, word_spans
from tokenq.credit.localisation import (
    Bootstrap,
    Estimate,
    Floats,
    Ints,
    Marked,
    Metric,
    Weighted,
    auroc,
    average_precision,
    best_f1_threshold,
    detection_rate,
    false_positive_rate,
    flagged,
    largest,
    mean_auroc,
    mean_average_precision,
    span_f1,
    span_iou,
    threshold_at_rate,
    tokens_within,
    top1_hit,
)
from tokenq.reproduce.localisation.tables import Table

Item = Mapping[str, Any]
Items = Sequence[Item]

NEGATIVES = ("truthful", "paraphrase", "consistent")
"""Kinds of texts in which nothing is wrong: as written, reworded, and with a harmless edit."""
RATE = 0.1
"""Share of true texts in which a signal may flag something, by split conformal calibration."""
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Signal:
    """One signal of one arm on the same texts: `tables` holds one table a seed."""

    arm: str
    name: str
    tables: Sequence[Table]

    @property
    def partial(self) -> bool:
        """Whether only some of the texts have it."""
        return any(self.name not in item["signals"] for item in self.tables[0]["items"])

    def items(self) -> list[list[Item]]:
        """The texts that have it, a list a seed."""
        return [
            [item for item in table["items"] if self.name in item["signals"]]
            for table in self.tables
        ]

    def on(self, keep: Callable[[Item], bool]) -> list[list[Marked]]:
        """Scores and truth of the visible tokens of the texts to keep, a list a seed."""
        return [[marked(item, self.name) for item in own if keep(item)] for own in self.items()]


def signals_of(tables: Mapping[str, Sequence[Table]]) -> list[Signal]:
    """All signals of all arms; `tables` of a task by arm, one a seed."""
    found = []
    for arm, own in tables.items():
        names: dict[str, None] = {}
        for item in own[0]["items"]:
            names |= dict.fromkeys(item["signals"])
        found += [Signal(arm, name, own) for name in names]
    return found


def averaged(tables: Sequence[Table]) -> Table:
    """One table whose signals are the means over seeds: what an ensemble of them would say.

    A word that any seed was trained on is no unseen one to the ensemble.
    """
    items = []
    for versions in zip(*(table["items"] for table in tables), strict=True):
        signals = {
            name: np.mean([each["signals"][name] for each in versions], axis=0).tolist()
            for name in versions[0]["signals"]
        }
        items.append({**versions[0], "signals": signals})
    words = sorted(set().union(*(table["training"]["words"] for table in tables)))
    return {"items": items, "training": {**tables[0]["training"], "words": words}}


def marked(item: Item, signal: str) -> Marked:
    """Scores and truth of a text's visible tokens."""
    there = visible(item)
    scores, truth = np.array(item["signals"][signal]), np.array(item["truth"], dtype=bool)
    return Marked(scores[there], truth[there], item["group"])


def visible(item: Item) -> np.ndarray:
    """[T] which tokens have a character other than blanks."""
    return np.array([not _blank(item["text"][start:end]) for start, end in item["offsets"]])


def wrong(item: Item, kind: str | None = None) -> bool:
    """Whether something in the text is known to be wrong; of `kind`, if one is named."""
    return bool(item["truth"] and any(item["truth"])) and kind in (None, item["kind"])


def right(item: Item) -> bool:
    """Whether the text is known to be free of errors."""
    return item["truth"] is not None and not any(item["truth"])


def half(item: Item) -> int:
    """0 or 1: the half that a text's group belongs to."""
    return zlib.crc32(item["group"].encode()) % 2


class Localisation:
    """Measures of the signals of one task whose truth is characters that are wrong."""

    def __init__(self, items: Items, *, resamples: int = RESAMPLES) -> None:
        self.bootstrap = Bootstrap((item["group"] for item in items), resamples=resamples)
        self.kinds = Counter(item["kind"] for item in items)
        self.negatives = [
            kind for kind in self.kinds if any(right(i) for i in items if i["kind"] == kind)
        ]
        self.errors = [
            kind for kind in self.kinds if any(wrong(i) for i in items if i["kind"] == kind)
        ]
        self._edits = edits_of(items)
        self._counterparts = {
            kind: counterparts([i for i in items if wrong(i)], _of_kind(items, kind))
            for kind in self.negatives
        }

    def measures(self, signal: Signal) -> dict[str, Estimate]:
        """All measures of a signal by name; those that its texts cannot tell are left out."""
        erroneous = signal.on(wrong)
        found = {
            metric.name: self.bootstrap(erroneous, metric)
            for metric in (auroc, mean_auroc, average_precision, mean_average_precision, top1_hit)
        }
        flags = self.at_best_f1(signal)
        found |= {metric.name: self.bootstrap(flags, metric) for metric in (span_f1, span_iou)}
        found |= self._rates(signal)
        for kind in self.negatives:
            tops = [largest([*bad, *good]) for bad, good in self._against(signal, kind)]
            found[f"error told from {kind}"] = self.bootstrap(tops, auroc)
        if self._edits:
            found["error told from consistent edit, at the edit"] = self.bootstrap(
                [self._edited(own, signal.name) for own in signal.items()], auroc
            )
        return found

    def by_kind(self, signal: Signal, metric: Metric = mean_auroc) -> dict[str, Estimate]:
        """`metric` on the texts of each kind of error."""
        found = {}
        for kind in self.errors:
            own = [
                [marked(item, signal.name) for item in items if wrong(item, kind)]
                for items in signal.items()
            ]
            found[kind] = self.bootstrap(own, metric)
        return found

    def on_half(self, signal: Signal, side: int, metric: Metric) -> Estimate:
        """`metric` on the erroneous texts of one half."""
        return self.bootstrap(signal.on(lambda item: wrong(item) and half(item) == side), metric)

    def at_best_f1(self, signal: Signal) -> list[list[Marked]]:
        """Flags of erroneous texts at the threshold that is best on the other half."""

        def flags(items: Items, name: str) -> list[Marked]:
            found = []
            for side in (0, 1):
                other = [marked(i, name) for i in items if wrong(i) and half(i) != side]
                own = [marked(i, name) for i in items if wrong(i) and half(i) == side]
                found += flagged(own, best_f1_threshold(other))
            return found

        return [flags(items, signal.name) for items in signal.items()]

    def accuracies(self, signal: Signal) -> dict[str, Estimate]:
        """Share of erroneous texts whose summed signal is above that of the true text, by kind of
        the true text; ties half. Whole texts, the end token included."""
        found = {}
        for kind in self.negatives:
            pairs = [self._wins(items, signal.name, kind) for items in signal.items()]
            if all(pairs):
                found[f"against {kind}"] = self.bootstrap(pairs, share)
        return found

    def _wins(self, items: Items, name: str, kind: str) -> list[Marked]:
        sums = {item["id"]: sum(item["signals"][name]) for item in items}
        rows = []
        for item in items:
            other = self._counterparts[kind].get(item["id"])
            if other in sums:
                difference = sums[item["id"]] - sums[other]
                rows.append(Marked([(np.sign(difference) + 1) / 2], [False], item["group"]))
        return rows

    def _rates(self, signal: Signal) -> dict[str, Estimate]:
        """What is flagged at the threshold that flags `RATE` of the true texts of the other half.

        Left out where there are too few true texts for that rate.
        """
        true = "truthful" if "truthful" in self.kinds else None

        def calibrating(item: Item) -> bool:
            return right(item) and (true is None or item["kind"] == true)

        by_seed = []
        for items in signal.items():
            flags: list[tuple[Item, Marked]] = []
            for side in (0, 1):
                good = [marked(i, signal.name) for i in items if calibrating(i) and half(i) != side]
                if len(good) < 1 / RATE - 1:
                    return {}
                threshold = threshold_at_rate(good, RATE)
                own = [i for i in items if half(i) == side]
                marks = flagged([marked(i, signal.name) for i in own], threshold)
                flags += zip(own, marks, strict=True)
            by_seed.append(flags)
        found = {
            "detected at 10 %": self.bootstrap(
                [[m for i, m in flags if wrong(i)] for flags in by_seed], detection_rate
            )
        }
        for kind in self.negatives:
            found[f"false positives, {kind}"] = self.bootstrap(
                [[m for i, m in flags if right(i) and i["kind"] == kind] for flags in by_seed],
                false_positive_rate,
            )
        return found

    def _against(self, signal: Signal, kind: str) -> list[tuple[list[Marked], list[Marked]]]:
        bad = signal.on(wrong)
        good = [[marked(i, signal.name) for i in _of_kind(own, kind)] for own in signal.items()]
        return list(zip(bad, good, strict=True))

    def _edited(self, items: Items, name: str) -> list[Marked]:
        """Tokens of errors, and tokens of consistent edits; nothing else."""
        found = []
        for item in items:
            scores = np.array(item["signals"][name])
            is_wrong = wrong(item)
            there = np.array(item["truth"], dtype=bool) if is_wrong else self._edits.get(item["id"])
            if there is None:
                continue
            there = there & visible(item)
            if there.any():
                count = int(there.sum())
                found.append(Marked(scores[there], [is_wrong] * count, item["group"]))
        return found


def counterparts(items: Items, candidates: Items) -> dict[str, str]:
    """The candidate of the same group that shares most with each text: their ids by its id.

    Texts whose group has no candidate are left out.
    """
    by_group: dict[str, list[Item]] = defaultdict(list)
    for each in candidates:
        by_group[each["group"]].append(each)
    found = {}
    for item in items:
        near = by_group[item["group"]]
        if near:
            best = max(near, key=lambda other: likeness(item["text"], other["text"]))
            found[item["id"]] = best["id"]
    return found


def likeness(one: str, other: str) -> float:
    """Share of the words of both texts that stand in both in the same order, 0..1."""
    first, second = ([text[start:end] for start, end in word_spans(text)] for text in (one, other))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def edits_of(items: Items) -> dict[str, np.ndarray]:
    """Which tokens of each `consistent` text differ from the truthful text it is of, by id."""
    texts = {item["id"]: item["text"] for item in items}
    edited, truthful = (_of_kind(items, kind) for kind in ("consistent", "truthful"))
    originals = counterparts(edited, truthful)
    found = {}
    for item in edited:
        if item["id"] in originals:
            spans = changed_words(texts[originals[item["id"]]], item["text"])
            offsets = [(start, end) for start, end in item["offsets"]]
            found[item["id"]] = tokens_within(item["text"], offsets, spans)
    return found


def _of_kind(items: Items, kind: str) -> list[Item]:
    return [item for item in items if item["kind"] == kind and right(item)]


def changed_words(before: str, after: str) -> list[tuple[int, int]]:
    """Characters of the words of `after` that are not in `before` at their place."""
    places = word_spans(after)
    old, new = ([text[start:end] for start, end in word_spans(text)] for text in (before, after))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [
        places[at]
        for kind, _, _, first, last in matcher.get_opcodes()
        if kind != "equal"
        for at in range(first, last)
    ]


def _mean_score(items: Sequence[Marked], groups: Ints) -> Weighted:
    width = int(groups.max()) + 1
    sums = np.bincount(groups, [float(each.scores.mean()) for each in items], minlength=width)
    counts = np.bincount(groups, minlength=width).astype(float)

    def value(weights: Floats) -> Floats:
        seen = weights[:width]
        total = counts @ seen
        return np.divide(sums @ seen, total, out=np.full(total.shape, np.nan), where=total > 0)

    return value


share = Metric("share", _mean_score)
"""Mean of scores over responses, each counted once."""


class Words:
    """Measures of the signals of a task whose truth is what people say words are worth."""

    def __init__(self, items: Items, *, resamples: int = RESAMPLES) -> None:
        self.bootstrap = Bootstrap((item["group"] for item in items), resamples=resamples)
        valence = {
            item["text"][start:end].lower(): worth
            for item in items
            for start, end, worth in item["words"]
        }
        self._number = {word: at for at, word in enumerate(sorted(valence))}
        self.valence = np.array([valence[word] for word in self._number])

    def measures(self, signal: Signal) -> dict[str, Estimate]:
        """Agreement with human valence; of all words, and of words that no training pair holds.

        Spearman is of words (minus the mean over a word's places, with its valence: agreement is
        positive). AUROC is of places: negative words against positive ones.
        """
        found = {}
        for name, unseen in (("", False), (", unseen words", True)):
            if unseen and not signal.tables[0]["training"]["words"]:
                continue  # nothing was trained: no word is seen or unseen
            rows_by_seed = []
            for items, table in zip(signal.items(), signal.tables, strict=True):
                without = set(table["training"]["words"]) if unseen else set()
                rows = [self._places(item, signal.name, without) for item in items]
                rows_by_seed.append([row for row in rows if row is not None])
            found[f"Spearman{name}"] = self.bootstrap(rows_by_seed, self.spearman_of_words)
            found[f"AUROC{name}"] = self.bootstrap(
                [[self._negative(row) for row in rows] for rows in rows_by_seed], auroc
            )
        return found

    @property
    def spearman_of_words(self) -> Metric:
        """Of responses whose truth is the number of a word."""
        return Metric("Spearman", self._prepare)

    def _places(self, item: Item, name: str, without: Collection[str]) -> Marked | None:
        """Summed signal and number of each rated word of a text, or None where it has none."""
        words = [
            (start, end, self._number[word])
            for start, end, _ in item["words"]
            if (word := item["text"][start:end].lower()) not in without
        ]
        if not words:
            return None
        values = torch.tensor(item["signals"][name], dtype=torch.float64)
        spans = [(start, end) for start, end, _ in words]
        sums = sum_over_spans(values, item["offsets"], item["text"], spans)
        return Marked(sums.numpy(), [number for *_, number in words], item["group"])

    def _negative(self, row: Marked) -> Marked:
        return Marked(row.scores, self.valence[row.truth] < 0, row.group)

    def _prepare(self, rows: Sequence[Marked], groups: Ints) -> Weighted:
        lengths = [row.scores.size for row in rows]
        word = np.concatenate([row.truth for row in rows])
        place = (word, np.repeat(groups, lengths))
        shape = (len(self.valence), int(groups.max()) + 1)
        scores = np.concatenate([row.scores for row in rows])
        sums = coo_array((scores, place), shape).tocsr()
        counts = coo_array((np.ones(len(word)), place), shape).tocsr()

        def value(weights: Floats) -> Floats:
            drawn = weights[: shape[1]]
            totals, times = sums @ drawn, counts @ drawn
            return np.array(
                [
                    self._agreement(total, time)
                    for total, time in zip(totals.T, times.T, strict=True)
                ]
            )

        return value

    def _agreement(self, totals: Floats, times: Floats) -> float:
        there = times > 0
        means = totals[there] / times[there]
        if len(means) < 3 or np.ptp(means) == 0:
            return float("nan")
        # As scipy's spearmanr, which spends most of its time on what is not needed here.
        ranks, goal = stats.rankdata(means), stats.rankdata(self.valence[there])
        return -float(np.corrcoef(ranks, goal)[0, 1])


def _blank(text: str) -> bool:
    return not text.strip()
