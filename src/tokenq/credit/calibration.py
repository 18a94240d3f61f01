"""Error spans with a stated rate of false alarms, from responses that are known to be good.

The worst stretch of a good response has some blame too. How much is learned from good responses,
and a stretch of another response is called an error only if few good responses have one as bad:
split conformal prediction (Vovk, Gammerman and Shafer, Algorithmic learning in a random world,
2005, ch. 4), with the largest segment of a response as its score. No assumption is made about how
blame is distributed, only that good responses to be judged are exchangeable with those given.
"""

import json
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftModel
from scipy import stats
from torch import nn

from tokenq.credit.segments import Span, maximal_segments
from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.pair import Pair, reference_of
from tokenq.models.reference import AdapterOff
from tokenq.storage import write_text

GAP = 3
"""Tokens: one or two words."""
FIT_SHARE = 0.25

_FORMAT = "tokenq span calibration 1"
_SLACK = 1e-9
"""Of a rate times a count, so that 0.1 of 30 is 3."""


@dataclass(frozen=True)
class CalibratedSpan(Span):
    """A blamed stretch and how rarely a good response has one as bad.

    excess:  sum over its tokens of blame above the tolerance; orders the spans
    p_value: share of good responses, this one counted among them, whose worst stretch has at least
             this excess. It is already that of the worst of all stretches of a response, so a
             response that has no error has a span with p_value <= rate with probability <= rate
    """

    excess: float
    p_value: float


@dataclass(frozen=True)
class BlameSource:
    """What the blame of a token was computed with; another source has another distribution.

    beta:           scales blame
    estimator:      name of the credit estimator, `plain` being the implicit reward itself
    policy_hash,
    reference_hash: of the weights (`models.weight_hash`); names may stay where weights change
    """

    policy: str
    reference: str
    policy_hash: str
    reference_hash: str
    beta: float
    estimator: str = "plain"


@dataclass(frozen=True)
class SpanCalibration:
    """The worst stretches of good responses.

    source:    what blame was computed with
    tolerance: blame granted to each token, beta times nats: what a segment is measured above. Fixed
               beforehand, so that one bad token of a response does not change how its others are
               judged
    gap:       a stretch is carried on over at most so many tokens in a row that are not above the
               tolerance. Without a limit, two strongly blamed tokens would swallow all between them
    edges:     response lengths, in tokens, at which a bin of lengths ends and the next begins; none
               is one bin
    largest:   of each bin, the rising excess of the worst stretch of each good response; 0 where no
               token is above the tolerance
    fitted_on: good responses that tolerance and edges were taken from; they are not in `largest`
    """

    source: BlameSource
    tolerance: float
    gap: int
    edges: tuple[int, ...]
    largest: tuple[tuple[float, ...], ...]
    fitted_on: int

    def p_value(self, excess: float, length: int) -> float:
        """(1 + good responses with a stretch as bad) / (1 + good responses), in the bin of `length`
        tokens. Under exchangeability P(p_value of the worst stretch <= a) <= a for every a."""
        known = self._bin(length)
        as_bad = len(known) - bisect_left(known, excess)
        return (1 + as_bad) / (1 + len(known))

    def segments(self, blames: Sequence[float]) -> list[tuple[int, int, float, float]]:
        """(first, last, excess, p_value) of the maximal segments of one response, worst first.

        blames: [T] of the tokens of the text, in order; higher is more suspicious
        """
        found = [
            (first, last, excess, self.p_value(excess, len(blames)))
            for first, last, excess in _stretches(blames, self.tolerance, self.gap)
        ]
        return sorted(found, key=lambda each: -each[2])

    def token_flags(self, blames: Sequence[float], rate: float) -> list[int]:
        """[T] 1 for tokens of a flagged stretch, else 0: what `localisation` measures at a rate."""
        self.check_rate(rate)
        flags = [0] * len(blames)
        for first, last, _, p_value in self.segments(blames):
            if self.flags(p_value, rate):
                flags[first:last] = [1] * (last - first)
        return flags

    def check_rate(self, rate: float) -> None:
        """Raise UserError for a rate outside (0, 1), or so low that nothing could be flagged."""
        if not 0 < rate < 1:
            raise UserError(f"rate is {rate}; accepted: between 0 and 1")
        needed = math.ceil(1 / rate - 1 - _SLACK)
        for place, known in enumerate(self.largest):
            if len(known) < needed:
                raise UserError(
                    f"{len(known)} good responses{self._described(place)} are too few for a rate "
                    f"of {rate:g}: below {needed} nothing can be flagged; accepted: more good "
                    f"responses, a rate from {1 / (len(known) + 1):.2g} up"
                    + (", or fewer length bins" if self.edges else "")
                )

    def flags(self, p_value: float, rate: float) -> bool:
        """Whether a span is called an error at `rate`."""
        return p_value <= rate + _SLACK

    def threshold(self, rate: float, length: int) -> float:
        """The excess above which stretches of a response of `length` tokens are flagged."""
        self.check_rate(rate)
        known = self._bin(length)
        return known[len(known) - _flagged_places(rate, len(known))]

    def realised_rate(
        self, rate: float, length: int, *, responses: int | None = None, level: float = 0.95
    ) -> tuple[float, float]:
        """Between which shares of good responses will be flagged, with probability `level`.

        `rate` bounds the share on average over draws of the n good responses. With those at hand
        the share of all further ones follows Beta(l, n + 1 - l), l = floor(rate (n + 1)), and of so
        many `responses` a beta-binomial (Vovk, Conditional validity of inductive conformal
        predictors, 2012, Prop. 2a). Ties make it lower.
        """
        self.check_rate(rate)
        count = len(self._bin(length))
        places = _flagged_places(rate, count)
        tails = [(1 - level) / 2, (1 + level) / 2]
        if responses is None:
            low, high = stats.beta.ppf(tails, places, count + 1 - places)
        else:
            low, high = (
                stats.betabinom.ppf(tails, responses, places, count + 1 - places) / responses
            )
        return float(low), float(high)

    def check_source(self, source: BlameSource) -> None:
        """Raise UserError if blame comes from other models, another beta or another estimator."""
        for name, what in _DECISIVE.items():
            ours, theirs = getattr(self.source, name), getattr(source, name)
            if ours != theirs:
                raise UserError(
                    f"the calibration was made with another {what} ({ours}; here {theirs}); "
                    "accepted: the pair, beta and estimator that it was made with, or a new "
                    "calibration"
                )

    def summary(self, rate: float) -> dict[str, Any]:
        """What it says about a rate, in JSON types.

        Of each bin its shortest and longest length in tokens (null: no limit), how many good
        responses there are, above which excess a span is flagged, and the :meth:`realised_rate`.
        """
        bins = []
        for place, known in enumerate(self.largest):
            length, longest = self._lengths(place)
            bins.append(
                {
                    "lengths": [length, longest],
                    "good_responses": len(known),
                    "threshold": self.threshold(rate, length),
                    "realised_rate": list(self.realised_rate(rate, length)),
                }
            )
        return {
            **asdict(self.source),
            "tolerance": self.tolerance,
            "gap": self.gap,
            "fitted_on": self.fitted_on,
            "bins": bins,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"format": _FORMAT, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "SpanCalibration":
        """Read what :meth:`save` wrote. Raises UserError, naming the field, for anything else."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error})") from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise UserError(f"{path}: is no span calibration; accepted: what `tokenq locate` saved")
        try:
            return cls._from_dict(found)
        except _Malformed as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def _from_dict(cls, found: Mapping[str, Any]) -> "SpanCalibration":
        source = found.get("source")
        if not isinstance(source, dict) or source.keys() != {each.name for each in _SOURCE_FIELDS}:
            raise _Malformed("field 'source' does not name the pair, beta and estimator")
        edges, largest = found.get("edges"), found.get("largest")
        if not _rising(edges):
            raise _Malformed("field 'edges' is no rising list of lengths")
        assert isinstance(edges, list)
        if (
            not isinstance(largest, list)
            or len(largest) != len(edges) + 1
            or not all(map(_rising, largest))
        ):
            raise _Malformed(f"field 'largest' is not {len(edges) + 1} rising lists of numbers")
        for name in ("tolerance", "gap", "fitted_on"):
            if not _numbers([found.get(name)]):
                raise _Malformed(f"field '{name}' is no number")
        return cls(
            BlameSource(**source),
            found["tolerance"],
            found["gap"],
            tuple(edges),
            tuple(map(tuple, largest)),
            found["fitted_on"],
        )

    def _bin(self, length: int) -> tuple[float, ...]:
        return self.largest[bisect_right(self.edges, length)]

    def _lengths(self, place: int) -> tuple[int, int | None]:
        shortest = self.edges[place - 1] if place else 1
        return shortest, self.edges[place] - 1 if place < len(self.edges) else None

    def _described(self, place: int) -> str:
        if not self.edges:
            return ""
        shortest, longest = self._lengths(place)
        return f" of {shortest} {'or more' if longest is None else f'to {longest}'} tokens"


_SOURCE_FIELDS = fields(BlameSource)
_DECISIVE = {
    "policy_hash": "policy",
    "reference_hash": "reference",
    "beta": "beta",
    "estimator": "estimator",
}


class _Malformed(Exception):
    """A field that a calibration cannot have."""


def calibrate_spans(
    blames: Sequence[Sequence[float]],
    source: BlameSource,
    *,
    tolerance: float | None = None,
    gap: int = GAP,
    length_bins: int = 1,
    fit_share: float = FIT_SHARE,
    seed: int = 0,
) -> SpanCalibration:
    """Learn how bad the worst stretch of a good response is.

    blames:      [T_i] of the text tokens of each good response, beta times nats, higher is more
                 suspicious. They must be of the kind that will be judged, and not be what the
                 policy was trained on: it has learned to like those, and the rate would not hold.
                 Several responses to one prompt count as fewer than they are.
    tolerance:   blame granted to each token. By default the mean absolute blame of the good
                 responses: only what is blamed more than a typical token adds to a stretch, so
                 stretches stay short (the mean of blame itself is smaller)
    gap:         tokens in a row, none of them above the tolerance, that a stretch may bridge
    length_bins: judge a response among good ones of like length (quantiles of their lengths, in
                 tokens). Long responses have more stretches, hence a worse worst one: with 1 bin
                 the rate holds over all responses together and is exceeded by the longest, with
                 more it holds in each bin (Mondrian conformal prediction)
    fit_share:   share of the good responses, drawn by `seed`, from which tolerance and bins are
                 taken. They are not used again, because what depends on them would not treat a new
                 response like them. 0 where there is nothing to take

    Raises UserError for fewer good responses than needed for that, ValueError for lengths of 0 or
    numbers that are not finite.
    """
    check_fit(tolerance, gap=gap, length_bins=length_bins, fit_share=fit_share, seed=seed)
    for each in blames:
        if not len(each) or not all(map(math.isfinite, each)):
            raise ValueError("a good response has no tokens, or a blame that is not finite")
    order = list(range(len(blames)))
    random.Random(seed).shuffle(order)
    share = _fitting(len(blames), tolerance, length_bins, fit_share)
    if len(blames) <= share:
        raise UserError(
            f"{len(blames)} good responses; accepted: more than {share}, some to take the "
            "tolerance from and others to calibrate with"
        )
    fit = [blames[at] for at in order[:share]]
    if tolerance is None:
        tolerance = math.fsum(abs(blame) for each in fit for blame in each) / sum(map(len, fit))
    edges = _edges([len(each) for each in fit], length_bins)
    largest: list[list[float]] = [[] for _ in range(len(edges) + 1)]
    for at in order[share:]:
        largest[bisect_right(edges, len(blames[at]))].append(_worst(blames[at], tolerance, gap))
    return SpanCalibration(
        source, tolerance, gap, edges, tuple(tuple(sorted(each)) for each in largest), share
    )


def check_fit(
    tolerance: float | None = None,
    *,
    gap: int = GAP,
    length_bins: int = 1,
    fit_share: float = FIT_SHARE,
    seed: int = 0,
) -> None:
    """Raise UserError for options that :func:`calibrate_spans` would not take."""
    granted = tolerance is None or (tolerance >= 0 and math.isfinite(tolerance))
    for name, value, fine, what in (
        ("tolerance", tolerance, granted, "0 or more"),
        ("gap", gap, gap >= 0, "0 or more tokens"),
        ("length_bins", length_bins, length_bins >= 1, "1 or more"),
        ("fit_share", fit_share, 0 < fit_share < 1, "between 0 and 1"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not fine:
            raise UserError(f"{name} is {value}; accepted: {what}")


def check_enough(
    count: int,
    rate: float,
    tolerance: float | None = None,
    *,
    length_bins: int = 1,
    fit_share: float = FIT_SHARE,
) -> None:
    """Raise UserError if `count` good responses cannot make a calibration for `rate`.

    It looks at numbers only, before anything is scored; bins may still turn out uneven.
    """
    calibrating = count - _fitting(count, tolerance, length_bins, fit_share)
    needed = math.ceil(1 / rate - 1 - _SLACK) * length_bins
    if calibrating < needed:
        raise UserError(
            f"{count} good responses are too few for a rate of {rate:g}: {max(calibrating, 0)} "
            f"would calibrate, where {needed} are needed; accepted: more good responses, or a "
            "higher rate"
        )


def blame_source(pair: Pair, beta: float, estimator: str = "plain") -> BlameSource:
    """What the blame of a loaded pair is computed with.

    The weights are hashed once, and again after they were changed by an optimiser or converted
    (not after a change in place of a tensor's `.data`, which leaves no trace).
    """
    reference = reference_of(pair)
    return BlameSource(
        pair.policy_name,
        pair.reference_name or "the reference",
        _current_hash(pair.policy),
        _current_hash(reference),
        beta,
        estimator,
    )


def text_blames(
    blames: Sequence[float], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], list[float]]:
    """Places and blames of tokens that stand for text; the end token is no place of an error."""
    places = [at for at, (start, end) in enumerate(offsets) if start < end]
    return places, [blames[at] for at in places]


def calibrated_spans(
    text: str,
    offsets: Sequence[tuple[int, int]],
    blames: Sequence[float],
    calibration: SpanCalibration,
) -> list[CalibratedSpan]:
    """All blamed stretches of one response, worst first, with their p-values.

    text:    the response
    offsets: (start, end) characters of each of its T tokens
    blames:  [T], higher is more suspicious, from the calibration's source
    """
    places, inside = text_blames(blames, offsets)
    spans = []
    for first, last, excess, p_value in calibration.segments(inside):
        whole = slice(places[first], places[last - 1] + 1)
        start, end = offsets[whole.start][0], offsets[whole.stop - 1][1]
        reward = -math.fsum(inside[first:last])
        spans.append(
            CalibratedSpan(
                whole.start, whole.stop, start, end, text[start:end], reward, excess, p_value
            )
        )
    return spans


def _stretches(
    blames: Sequence[float], tolerance: float, gap: int
) -> Iterator[tuple[int, int, float]]:
    """(first, last, excess) of the maximal segments between gaps that are too long."""
    above = [blame - tolerance for blame in blames]
    paying = [at for at, excess in enumerate(above) if excess > 0]
    cuts = [at for at, (one, two) in enumerate(pairwise(paying), start=1) if two - one > gap + 1]
    for begin, end in pairwise([0, *cuts, len(paying)]):
        if begin == end:
            continue
        offset = paying[begin]
        for first, last in maximal_segments(above[offset : paying[end - 1] + 1]):
            first, last = first + offset, last + offset
            yield first, last, math.fsum(above[first:last])


def _worst(blames: Sequence[float], tolerance: float, gap: int) -> float:
    return max((excess for _, _, excess in _stretches(blames, tolerance, gap)), default=0.0)


_hashes: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], tuple[int, str]]] = WeakKeyDictionary()
"""Of each model, by the adapters that are on: the state of its weights, and their hash."""


def _current_hash(model: nn.Module | AdapterOff) -> str:
    if isinstance(model, AdapterOff):
        module: nn.Module = model.peft_model
        adapters: tuple[str, ...] = ("off", str(model.adapter))
    else:
        module = model
        adapters = ("on", *module.active_adapters) if isinstance(module, PeftModel) else ()
    # A change in place counts a tensor's version up; a conversion gives it other memory.
    state = hash(
        tuple((each._version, each.data_ptr(), each.dtype) for each in module.parameters())
    )
    known = _hashes.setdefault(module, {})
    if adapters not in known or known[adapters][0] != state:
        known[adapters] = state, weight_hash(model)
    return known[adapters][1]


def _edges(lengths: Sequence[int], bins: int) -> tuple[int, ...]:
    """Lengths at which `bins` bins of about as many responses each divide; fewer where they tie."""
    ordered = sorted(lengths)
    cuts = {ordered[at * len(ordered) // bins] for at in range(1, bins)}
    return tuple(sorted(cuts - {ordered[0]})) if ordered else ()


def _fitting(count: int, tolerance: float | None, length_bins: int, fit_share: float) -> int:
    """How many of so many good responses are set aside to fit."""
    if tolerance is not None and length_bins == 1:
        return 0
    return max(length_bins, round(fit_share * count))


def _flagged_places(rate: float, count: int) -> int:
    return math.floor(rate * (count + 1) + _SLACK)


def _rising(values: Any) -> bool:
    return _numbers(values) and sorted(values) == values


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        for each in values
    )
