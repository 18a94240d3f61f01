"""How well token scores find what is known to be wrong: metrics, and their bootstrap over groups.

Arrays only; where the scores come from does not matter. A score is higher where a token is more
suspicious, so an implicit reward enters with its sign turned. Every metric is computed for all
resamples at once: a resample is a weight for each group, and what a metric needs of the tokens is
counted once for each group.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Weighted = Callable[[Floats], Floats]
"""Weights of groups in R resamples, [G, R], to the metric's value in each, [R]; NaN: undefined."""

_RESAMPLES_AT_ONCE = 100
"""Bounds the memory of a bootstrap: tables of [distinct scores, resamples]."""


@dataclass(frozen=True, eq=False, init=False)
class Marked:
    """Scores of the T >= 1 tokens of one response, beside the truth.

    scores: [T], higher is more suspicious; for metrics of flags 0 or 1
    truth:  [T], true for tokens that are wrong; for correlations the number that is to be met
    group:  what is drawn together in a resample, such as a question or a package: items of one
            group are not independent
    """

    scores: Floats
    truth: NDArray[np.generic]
    group: str

    def __init__(self, scores: ArrayLike, truth: ArrayLike, group: str) -> None:
        """Raises ValueError for other shapes than [T] each, no tokens, or a NaN."""
        values, wrong = np.asarray(scores, dtype=np.float64), np.asarray(truth)
        if values.ndim != 1 or values.shape != wrong.shape or not values.size:
            raise ValueError(f"scores of shape {values.shape}, truth of shape {wrong.shape}")
        if np.isnan(values).any():
            raise ValueError(f"a score of group {group!r} is NaN")
        object.__setattr__(self, "scores", values)
        object.__setattr__(self, "truth", wrong)
        object.__setattr__(self, "group", group)


@dataclass(frozen=True)
class Metric:
    """One number of many responses, that can be had for many resamples at once.

    prepare: items, and the index of each one's group -> the metric as a function of group weights
    """

    name: str
    prepare: Callable[[Sequence[Marked], Ints], Weighted]

    def __call__(self, items: Sequence[Marked]) -> float:
        """The metric of `items` as they are; NaN where they leave it undefined.

        Raises ValueError for no items, or for a truth or scores of another kind than it needs.
        """
        if not items:
            raise ValueError("no responses")
        groups = np.zeros(len(items), dtype=np.int64)
        return float(self.prepare(items, groups)(np.ones((1, 1)))[0])


# --- thresholds and flags ---------------------------------------------------------------------


def flagged(items: Sequence[Marked], threshold: float) -> list[Marked]:
    """The same responses with score 1 where it was `threshold` or more, else 0."""
    return [Marked(each.scores >= threshold, each.truth, each.group) for each in items]


def largest(items: Sequence[Marked]) -> list[Marked]:
    """One score a response: its largest, which is true if any of its tokens is wrong."""
    return [Marked([each.scores.max()], [_wrong(each).any()], each.group) for each in items]


def best_f1_threshold(items: Sequence[Marked]) -> float:
    """The threshold of highest pooled F1. Choose it on other responses than it is judged on.

    Raises ValueError where no token is wrong.
    """
    sweep = _Sweep.of(items, np.zeros(len(items), dtype=np.int64))
    if not sweep.thresholds.size:
        raise ValueError("no token is wrong, so no threshold is better than another")
    found, above, tied = (each[:, 0] for each in sweep.counts(np.ones((1, 1))))
    hits = found.cumsum()
    return float(sweep.thresholds[np.argmax(2 * hits / (hits + above + tied + hits[-1]))])


def threshold_at_rate(good: Sequence[Marked], rate: float) -> float:
    """The lowest threshold at which a further good response is flagged with probability <= `rate`.

    It is just above the ceil((n + 1) (1 - rate))-th smallest of the n largest scores (split
    conformal prediction, 1604.04173, section 2.2); the bound holds for responses that are
    exchangeable with `good`, on average over the draw of `good`.

    Raises ValueError where `rate` is not between 0 and 1 or there are fewer than 1 / rate - 1
    responses.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate is {rate}; accepted: between 0 and 1")
    tops = np.sort([each.scores.max() for each in good])
    place = int(np.ceil((len(tops) + 1) * (1 - rate) - 1e-9))
    if place > len(tops):
        raise ValueError(f"{len(tops)} good responses are too few for a rate of {rate}")
    return float(np.nextafter(tops[place - 1], np.inf))


# --- truth and characters ---------------------------------------------------------------------


def tokens_within(
    text: str, offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    """[T] which tokens share a character other than a blank with a span.

    offsets, spans: (start, end) characters in `text`
    """
    inside = _covered(len(text), spans)
    inside &= np.array([not each.isspace() for each in text], dtype=bool)
    return np.array([bool(inside[start:end].any()) for start, end in offsets])


def by_character(
    scores: ArrayLike,
    offsets: Sequence[tuple[int, int]],
    spans: Iterable[tuple[int, int]],
    length: int,
    group: str,
    *,
    uncovered: float = -np.inf,
) -> Marked:
    """The same response with its characters in place of tokens, so that tokenisations compare.

    scores:    [T] of tokens; a character gets the largest of the tokens that hold it
    offsets:   (start, end) characters of each token
    spans:     (start, end) characters that are wrong
    length:    of the text, in characters
    uncovered: score of characters that no token holds; 0 where scores are flags
    """
    values = np.full(length, -np.inf)
    held = np.zeros(length, dtype=bool)
    for score, (start, end) in zip(np.asarray(scores, dtype=float), offsets, strict=True):
        np.maximum(values[start:end], score, out=values[start:end])
        held[start:end] = True
    return Marked(np.where(held, values, uncovered), _covered(length, spans), group)


def _covered(length: int, spans: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    inside = np.zeros(length, dtype=bool)
    for start, end in spans:
        inside[start:end] = True
    return inside


# --- bootstrap --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric's mean over seeds with its percentile interval.

    value:     mean over seeds of the metric of all responses
    low, high: quantiles of that mean over resamples of groups; None where no resample defines it.
               They tell how the number depends on the responses drawn; how it depends on training
               is seen in `by_seed`
    by_seed:   the metric of each seed
    undefined: resamples in which the metric is undefined, left out of the interval
    draws:     [R] the mean over seeds in each resample
    """

    value: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]
    undefined: int
    draws: Floats = field(repr=False)
    _source: "Bootstrap" = field(repr=False)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference on the same resamples, so that what both share cancels.

        Raises ValueError if they come from different bootstraps or numbers of seeds.
        """
        if self._source is not other._source or len(self.by_seed) != len(other.by_seed):
            raise ValueError("a paired difference needs one Bootstrap and as many seeds")
        by_seed = tuple(a - b for a, b in zip(self.by_seed, other.by_seed, strict=True))
        return self._source.estimate(by_seed, self.draws - other.draws)

    def to_dict(self) -> dict[str, object]:
        """JSON types, without the draws; a NaN is None."""
        return {
            "value": _plain(self.value),
            "low": self.low,
            "high": self.high,
            "by_seed": [_plain(each) for each in self.by_seed],
            "undefined": self.undefined,
        }


class Bootstrap:
    """Resamples of groups, drawn once, in which any number of signals and metrics are compared.

    A resample draws as many groups as there are, with replacement; all responses of a group, in
    all seeds, come along (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8
    and 13). So differences between signals are paired, and what one group's responses have in
    common does not make the interval too narrow.
    """

    def __init__(
        self, groups: Iterable[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> None:
        """Raises ValueError for no groups, fewer than 2 resamples, or a level outside (0, 1)."""
        self.groups = sorted(set(groups))
        if not self.groups or resamples < 2 or not 0 < level < 1:
            raise ValueError(f"{len(self.groups)} groups, {resamples} resamples, level {level}")
        self.level = level
        count = len(self.groups)
        draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
        self._weights = np.ascontiguousarray(draws.T, dtype=np.float64)
        self._index = {group: at for at, group in enumerate(self.groups)}

    def __call__(self, items_by_seed: Sequence[Sequence[Marked]], metric: Metric) -> Estimate:
        """`metric` of the same responses under each seed's scores.

        Raises ValueError for no seeds, or a group that was not given to the bootstrap.
        """
        if not items_by_seed or not all(items_by_seed):
            raise ValueError("no seeds, or no responses")
        parts = [self._one_seed(items, metric) for items in items_by_seed]
        draws = np.mean([each for _, each in parts], axis=0)
        return self.estimate([value for value, _ in parts], draws)

    def estimate(self, by_seed: Sequence[float], draws: Floats) -> Estimate:
        """Mean and interval of values by seed and their means in each resample, [R]."""
        defined = draws[~np.isnan(draws)]
        low = high = None
        if defined.size:
            tail = (1 - self.level) / 2
            low, high = (float(each) for each in np.quantile(defined, [tail, 1 - tail]))
        undefined = len(draws) - len(defined)
        mean = float(np.mean(by_seed))
        return Estimate(mean, low, high, tuple(by_seed), undefined, draws, self)

    def _one_seed(self, items: Sequence[Marked], metric: Metric) -> tuple[float, Floats]:
        unknown = {each.group for each in items} - self._index.keys()
        if unknown:
            raise ValueError(f"group {unknown.pop()!r} was not given to the bootstrap")
        groups = np.array([self._index[each.group] for each in items], dtype=np.int64)
        value = metric.prepare(items, groups)
        ones = np.ones((len(self.groups), 1))
        parts = [
            value(np.ascontiguousarray(self._weights[:, at : at + _RESAMPLES_AT_ONCE]))
            for at in range(0, self._weights.shape[1], _RESAMPLES_AT_ONCE)
        ]
        return float(value(ones)[0]), np.concatenate(parts)


def bootstrap(
    items_by_seed: Sequence[Sequence[Marked]],
    metric: Metric,
    resamples: int = 1000,
    seed: int = 0,
    *,
    level: float = 0.95,
) -> Estimate:
    """`metric` with its interval; for several signals make one :class:`Bootstrap` and share it."""
    groups = {each.group for items in items_by_seed for each in items}
    return Bootstrap(groups, resamples=resamples, seed=seed, level=level)(items_by_seed, metric)


# --- ranking metrics --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Tokens by falling score, counted for each group at the D distinct scores of wrong tokens.

    thresholds:    [D], falling
    positives:     [D, G] wrong tokens at a threshold
    strictly_over: [D, G] right tokens above a threshold that are not above the one before
    tied:          [D, G] right tokens at a threshold
    negatives:     [G] right tokens
    """

    thresholds: Floats
    positives: csr_array
    strictly_over: csr_array
    tied: csr_array
    negatives: Floats

    @classmethod
    def of(cls, items: Sequence[Marked], groups: Ints) -> "_Sweep":
        scores = np.concatenate([each.scores for each in items])
        wrong = np.concatenate([_wrong(each) for each in items])
        of_token = np.repeat(groups, [each.scores.size for each in items])
        width = int(groups.max()) + 1
        rising = np.unique(scores[wrong])
        depth = rising.size

        def counts(rows: Ints, columns: Ints) -> csr_array:
            inside = (rows >= 0) & (rows < depth)
            ones = np.ones(int(inside.sum()))
            return csr_array((ones, (rows[inside], columns[inside])), shape=(depth, width))

        below = np.searchsorted(rising, scores, side="left")
        at_threshold = np.zeros(scores.size, dtype=bool)
        reached = below < depth
        at_threshold[reached] = rising[below[reached]] == scores[reached]
        right = ~wrong
        return cls(
            rising[::-1],
            counts(depth - 1 - below[wrong], of_token[wrong]),
            counts(depth - below[right], of_token[right]),
            counts(depth - 1 - below[right & at_threshold], of_token[right & at_threshold]),
            np.bincount(of_token[right], minlength=width).astype(float),
        )

    def counts(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """[D, R] each: wrong tokens at a threshold, right ones above it, right ones at it."""
        seen = weights[: self.positives.shape[1]]
        over = (self.strictly_over @ seen).cumsum(axis=0)
        return self.positives @ seen, over, self.tied @ seen


def _pooled_auroc(items: Sequence[Marked], groups: Ints) -> Weighted:
    sweep = _Sweep.of(items, groups)

    def value(weights: Floats) -> Floats:
        found, over, tied = sweep.counts(weights)
        pairs = found.sum(axis=0) * (sweep.negatives @ weights[: sweep.negatives.size])
        return 1 - _ratio((found * (over + tied / 2)).sum(axis=0), pairs)

    return value


def _pooled_average_precision(items: Sequence[Marked], groups: Ints) -> Weighted:
    sweep = _Sweep.of(items, groups)

    def value(weights: Floats) -> Floats:
        found, over, tied = sweep.counts(weights)
        hits = found.cumsum(axis=0)
        # A threshold that no drawn group reaches finds nothing, whatever its precision.
        precision = hits / np.maximum(hits + over + tied, np.finfo(float).tiny)
        return _ratio((found * precision).sum(axis=0), found.sum(axis=0))

    return value


def _mean_auroc(items: Sequence[Marked], groups: Ints) -> Weighted:
    """AUROC in each response from the midranks of its wrong tokens (Mann-Whitney)."""
    flat = _Flat.of(items)
    order = np.lexsort((flat.scores, flat.item))
    first, last = flat.ties(order)
    ranks = np.empty(order.size)
    ranks[order] = (first + last) / 2 - flat.starts[flat.item[order]] + 1
    wrong = flat.sums(flat.wrong)
    right = flat.lengths - wrong
    values = (flat.sums(ranks * flat.wrong) - wrong * (wrong + 1) / 2) / np.maximum(
        wrong * right, 1
    )
    return _mean_over(values, (wrong > 0) & (right > 0), groups)


def _mean_average_precision(items: Sequence[Marked], groups: Ints) -> Weighted:
    flat = _Flat.of(items)
    order = np.lexsort((-flat.scores, flat.item))
    _, last = flat.ties(order)
    starts = flat.starts[flat.item[order]]
    found = np.concatenate([[0.0], flat.wrong[order].cumsum()])
    precision = (found[last + 1] - found[starts]) / (last + 1 - starts)
    at_wrong = np.empty(order.size)
    at_wrong[order] = precision * flat.wrong[order]
    wrong = flat.sums(flat.wrong)
    values = flat.sums(at_wrong) / np.maximum(wrong, 1)
    return _mean_over(values, (wrong > 0) & (wrong < flat.lengths), groups)


def _top1(items: Sequence[Marked], groups: Ints) -> Weighted:
    flat = _Flat.of(items)
    top = flat.scores == np.maximum.reduceat(flat.scores, flat.starts)[flat.item]
    return _mean_over(
        flat.sums(top * flat.wrong) / flat.sums(top), flat.sums(flat.wrong) > 0, groups
    )


auroc = Metric("AUROC", _pooled_auroc)
"""Probability that a wrong token scores above a right one, ties half; tokens of all responses."""
average_precision = Metric("AP", _pooled_average_precision)
"""Sum over thresholds of precision times the gain in recall; tokens of all responses. A score that
knows nothing has the share of wrong tokens."""
mean_auroc = Metric("AUROC within", _mean_auroc)
"""AUROC in each response that holds wrong and right tokens, then their mean."""
mean_average_precision = Metric("AP within", _mean_average_precision)
"""Average precision in each response that holds wrong and right tokens, then their mean."""
top1_hit = Metric("top-1", _top1)
"""Share of responses with an error whose highest-scored token is wrong; a tie counts by share."""


# --- metrics of flags -------------------------------------------------------------------------


def _overlap(combine: Callable[[Floats, Floats, Floats], Floats]) -> Callable[..., Weighted]:
    """`combine` takes weighted totals, [R] each: flagged and wrong, flagged only, wrong only."""

    def prepare(items: Sequence[Marked], groups: Ints) -> Weighted:
        return _from_sums(_overlaps(items), groups, lambda totals: combine(*totals))

    return prepare


def _overlaps(items: Sequence[Marked]) -> Floats:
    """[N, 3] tokens of each response: flagged and wrong, flagged only, wrong only."""
    flat = _Flat.of(items)
    flags = _flags(flat)
    both = flat.sums(flags & flat.wrong)
    return np.stack([both, flat.sums(flags) - both, flat.sums(flat.wrong) - both], axis=1)


def _mean_f1(items: Sequence[Marked], groups: Ints) -> Weighted:
    both, only_flagged, only_wrong = _overlaps(items).T
    size = 2 * both + only_flagged + only_wrong
    values = np.where(size > 0, 2 * both / np.maximum(size, 1), 1.0)
    return _mean_over(values, np.ones(len(items), dtype=bool), groups)


def _flag_rate(of_wrong: bool) -> Callable[[Sequence[Marked], Ints], Weighted]:
    def prepare(items: Sequence[Marked], groups: Ints) -> Weighted:
        flat = _Flat.of(items)
        any_flag = (flat.sums(_flags(flat)) > 0).astype(float)
        return _mean_over(any_flag, (flat.sums(flat.wrong) > 0) == of_wrong, groups)

    return prepare


def _f1(both: Floats, extra: Floats, missed: Floats) -> Floats:
    return _ratio(2 * both, 2 * both + extra + missed)


def _iou(both: Floats, extra: Floats, missed: Floats) -> Floats:
    return _ratio(both, both + extra + missed)


span_f1 = Metric("F1", _overlap(_f1))
"""F1 of flagged tokens (or characters) against wrong ones, over all responses."""
span_iou = Metric("IoU", _overlap(_iou))
"""Flagged and wrong, over flagged or wrong; tokens (or characters) of all responses."""
mean_span_f1 = Metric("F1 within", _mean_f1)
"""F1 in each response, then their mean; 1 where nothing is wrong and nothing flagged (the measure
of SemEval-2021 task 5, toxic spans)."""
false_positive_rate = Metric("false positives", _flag_rate(of_wrong=False))
"""Share of responses without error in which anything is flagged."""
detection_rate = Metric("detected", _flag_rate(of_wrong=True))
"""Share of responses with an error in which anything is flagged, wherever it is."""


# --- correlation ------------------------------------------------------------------------------


def _pearson(items: Sequence[Marked], groups: Ints) -> Weighted:
    flat = _Flat.of(items, truth_is_number=True)
    x, y = flat.scores - flat.scores.mean(), flat.target - flat.target.mean()
    columns = [np.ones_like(x), x, y, x * x, y * y, x * y]
    sums = np.stack([flat.sums(each) for each in columns], axis=1)
    return _from_sums(sums, groups, _correlation_of_sums)


def _correlation_of_sums(totals: Floats) -> Floats:
    count, x, y, xx, yy, xy = totals
    spreads = [count * xx - x * x, count * yy - y * y]
    # What is left of a constant after rounding is no spread.
    for spread, squares in zip(spreads, (xx, yy), strict=True):
        spread[spread <= 1e-12 * count * squares] = 0
    return _ratio(count * xy - x * y, np.sqrt(spreads[0] * spreads[1]))


def _spearman(items: Sequence[Marked], groups: Ints) -> Weighted:
    flat = _Flat.of(items, truth_is_number=True)
    of_token = np.repeat(groups, flat.lengths)
    places = [np.unique(each, return_inverse=True)[1] for each in (flat.scores, flat.target)]

    def value(weights: Floats) -> Floats:
        # Ranks change with the resample: a token drawn twice takes two places.
        drawn = weights[of_token]
        x, y = (_weighted_midranks(place, drawn) for place in places)
        count = drawn.sum(axis=0)
        x, y = (each - (drawn * each).sum(axis=0) / np.maximum(count, 1) for each in (x, y))
        spread = (drawn * x * x).sum(axis=0) * (drawn * y * y).sum(axis=0)
        return _ratio((drawn * x * y).sum(axis=0), np.sqrt(spread))

    return value


def _weighted_midranks(place: Ints, drawn: Floats) -> Floats:
    """[N, R] midranks of tokens whose distinct values are numbered upwards, each drawn so often."""
    depth = int(place.max()) + 1
    member = csr_array((np.ones(place.size), (place, np.arange(place.size))), (depth, place.size))
    at_value = member @ drawn
    return (at_value.cumsum(axis=0) - at_value / 2 + 0.5)[place]


pearson = Metric("Pearson", _pearson)
"""Correlation of scores and truth, tokens of all responses."""
spearman = Metric("Spearman", _spearman)
"""Correlation of the ranks of scores and truth, tokens of all responses."""


# --- tokens, item by item ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Flat:
    """All N tokens one after the other: `item` [N] is the number of the response of each.

    target: [N] the truth as numbers; wrong: [N] as true or false, where it is that
    """

    scores: Floats
    target: Floats
    wrong: NDArray[np.bool_]
    item: Ints
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, items: Sequence[Marked], *, truth_is_number: bool = False) -> "_Flat":
        lengths = np.array([each.scores.size for each in items], dtype=np.int64)
        scores = np.concatenate([each.scores for each in items])
        item = np.repeat(np.arange(len(items)), lengths)
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        if truth_is_number:
            target = np.concatenate([each.truth.astype(float) for each in items])
            if np.isnan(target).any():
                raise ValueError("a truth is NaN")
            return cls(scores, target, np.zeros(0, dtype=bool), item, starts, lengths)
        wrong = np.concatenate([_wrong(each) for each in items])
        return cls(scores, wrong.astype(float), wrong, item, starts, lengths)

    def sums(self, values: NDArray[np.generic]) -> Floats:
        """Sum of `values` [N] in each response."""
        return np.add.reduceat(values.astype(float), self.starts)

    def ties(self, order: Ints) -> tuple[Ints, Ints]:
        """[N] first and last place, in `order`, of the tokens of equal score in one response."""
        scores, item = self.scores[order], self.item[order]
        new = np.concatenate([[True], (scores[1:] != scores[:-1]) | (item[1:] != item[:-1])])
        block = new.cumsum() - 1
        first = np.flatnonzero(new)
        last = np.concatenate([first[1:], [order.size]]) - 1
        return first[block], last[block]


def _wrong(item: Marked) -> NDArray[np.bool_]:
    if item.truth.dtype == np.bool_:
        return item.truth.astype(np.bool_)
    wrong = item.truth == 1
    if not (wrong | (item.truth == 0)).all():
        raise ValueError(f"truth of group {item.group!r} is not true or false")
    return wrong


def _flags(flat: _Flat) -> NDArray[np.bool_]:
    if not np.isin(flat.scores, (0.0, 1.0)).all():
        raise ValueError("scores are not flags (0 or 1); see flagged()")
    return flat.scores == 1


def _mean_over(values: Floats, counted: NDArray[np.bool_], groups: Ints) -> Weighted:
    """Mean of `values` [N] over the responses that are counted."""
    table = np.stack([np.where(counted, values, 0.0), counted.astype(float)], axis=1)
    return _from_sums(table, groups, lambda totals: _ratio(*totals))


def _from_sums(table: Floats, groups: Ints, combine: Callable[[Floats], Floats]) -> Weighted:
    """A metric of S sums over responses: table [N, S], combine [S, R] -> [R]."""
    totals = np.zeros((int(groups.max()) + 1, table.shape[1]))
    np.add.at(totals, groups, table)
    return lambda weights: combine(totals.T @ weights[: len(totals)])


def _ratio(over: Floats, under: Floats) -> Floats:
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
