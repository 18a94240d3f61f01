"""`Credit`: one response, token by token."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokenq.credit.aggregation import (
    Shares,
    sentence_units,
    without_outer_blanks,
    word_units,
)
from tokenq.credit.calibration import (
    CalibratedSpan,
    SpanCalibration,
    blame_source,
    calibrated_spans,
)
from tokenq.credit.estimators import estimator
from tokenq.credit.gauge import Gauge, SoftValues, check_gauge
from tokenq.credit.segments import Span, maximal_segments
from tokenq.credit.vocabulary import Alternative, StateFacts, VocabularyReader
from tokenq.data.formats import Messages
from tokenq.data.steps import compile_step_pattern, step_starts
from tokenq.data.turns import OTHERS
from tokenq.errors import UserError

_DECIMALS = 6
_PLAUSIBLE = 0.01
_SAVED = (
    *("prompt", "response", "beta", "token_ids", "tokens", "offsets", "logps", "ref_logps"),
    *("policy", "reference"),
)
"""Fields of :meth:`Credit.to_dict` that a credit is made of."""


@dataclass(frozen=True, eq=False)
class Credit:
    """What each of the T tokens of a response, its end token included, is worth.

    prompt:     text or messages
    response:   its text
    beta:       strength of the KL penalty; scales rewards and values
    token_ids:  [T]
    tokens:     text of each token; tokens that are bytes of one character all show it, and tokens
                outside the text (the end token) show their name
    offsets:    (start, end) characters of each token in `response`; empty for the end token
    logps:      [T] log pi(y_t | x, y_<t), nats
    ref_logps:  [T] the same under the reference
    facts:      what both models say at each position beside that: entropies, divergences, logits;
                None where only log-probs were computed
    turn_numbers: of the model's turn that each token belongs to, from 0, or -1 for what somebody
                else wrote in between; None for an answer of one turn

    All tensors are float32 on the CPU and were computed when the credit was: training that goes on
    does not change them.
    """

    prompt: str | Messages
    response: str
    beta: float
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    logps: Tensor
    ref_logps: Tensor
    policy_name: str
    reference_name: str
    vocabulary: VocabularyReader | None = field(default=None, repr=False)
    facts: StateFacts | None = field(default=None, repr=False)
    turn_numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.token_ids)
        sizes = [len(self.tokens), len(self.offsets), *self.logps.shape, *self.ref_logps.shape]
        if self.turn_numbers is not None:
            sizes.append(len(self.turn_numbers))
        if self.facts is not None:
            sizes += self.facts.entropy.shape
        if set(sizes) != {count}:
            raise ValueError(f"{count} tokens, but fields of sizes {tuple(sizes)}")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def rewards(self) -> Tensor:
        """[T] implicit rewards beta * (logps - ref_logps): the optimal advantages (2404.12358,
        eq. 10) of the task that the policy solves best. 0 for what somebody else wrote."""
        return self._own(self.beta * (self.logps - self.ref_logps))

    @property
    def values(self) -> Tensor:
        """[T+1] prefix values: running sums of the rewards, from values[0] = 0.

        values[t] = beta * log E[exp(r(y) / beta)] over what the reference writes after the first t
        tokens, with r(y) the sum of rewards of the whole response (2412.01981, Prop. 3.1).
        """
        return torch.cat([self.rewards.new_zeros(1), self.rewards.cumsum(0)])

    @property
    def reward(self) -> float:
        """Sum of all rewards, beta times nats."""
        return float(self.rewards.sum())

    @property
    def surprisals(self) -> Tensor:
        """[T] -log pi of each token, nats."""
        return -self.logps

    @property
    def ref_surprisals(self) -> Tensor:
        """[T] -log pi_ref of each token, nats."""
        return -self.ref_logps

    @property
    def entropies(self) -> Tensor:
        """[T] of the policy's distribution over the next token, nats."""
        return self._facts().entropy

    @property
    def ref_entropies(self) -> Tensor:
        """[T] of the reference's distribution over the next token, nats."""
        return self._facts().ref_entropy

    @property
    def divergences(self) -> Tensor:
        """[T] KL(pi_ref(. | s_t) || pi(. | s_t)), nats."""
        return self._facts().divergence

    @property
    def policy_divergences(self) -> Tensor:
        """[T] KL(pi(. | s_t) || pi_ref(. | s_t)), nats."""
        return self._facts().policy_divergence

    @property
    def ratio_variances(self) -> Tensor:
        """[T] variance of log(pi / pi_ref) under the reference, nats squared."""
        return self._facts().ratio_variance

    @property
    def expected_rewards(self) -> Tensor:
        """[T] mean implicit reward over what the reference might have said instead:
        -beta * divergences (2404.12358, eq. 16), never above 0."""
        return -self.beta * self.divergences

    def q(self, gauge: Gauge) -> SoftValues:
        """[T] soft Q of each token where it stands, in the gauge that is named (:data:`Gauge`).

        beta * logit in "logits"; values[t] + beta * logps in "outcome". Raises ValueError in
        "logits" for a `Credit` without facts.
        """
        if gauge == "logits":
            return SoftValues("Q", gauge, self.beta * self._facts().taken)
        return SoftValues("Q", gauge, self.v(gauge).values + self.beta * self.logps)

    def v(self, gauge: Gauge) -> SoftValues:
        """[T] soft V of the state before each token, in the gauge that is named (:data:`Gauge`).

        beta * logsumexp of the logits in "logits"; values[t] in "outcome", 0 at the root. Raises as
        :meth:`q` does.
        """
        check_gauge(gauge)
        if gauge == "logits":
            return SoftValues("V", gauge, self.beta * self._facts().normaliser)
        return SoftValues("V", gauge, self.values[:-1])

    def estimate(self, name: str = "plain") -> Tensor:
        """[T] token credit by the estimator of that name (:mod:`tokenq.credit.estimators`).

        0 for what somebody else wrote, as in `rewards`.

        Raises UserError for a name that there is not, ValueError for one that needs facts where
        there are none.
        """
        return self._own(estimator(name).read(self).float())

    def words(self, values: Tensor | None = None) -> list[Span]:
        """Words, signs and line ends, and the tokens without text (the end token) by themselves.

        values: [T] what is summed; the rewards by default, an estimate for instance

        They part the response: the sums add up to that of all tokens. A token that reaches into two
        words is divided by characters (:class:`Shares`). A span's tokens are all that have a part
        in it; its characters are without the blanks around it.
        """
        return self._by_characters(word_units(self.response), values)

    def sentences(self, values: Tensor | None = None, *, language: str = "en") -> list[Span]:
        """Sentences, the empty lines between them, and the tokens without text, as in `words`.

        language: ISO 639 code; decides which abbreviations end no sentence
        """
        return self._by_characters(sentence_units(self.response, language), values)

    def steps(self, pattern: str = "lines", values: Tensor | None = None) -> list[Span]:
        """Reasoning steps, as step-wise training numbers them.

        pattern: "lines", "paragraphs", "numbered", or a regular expression that matches where a
                 step begins

        A token belongs as a whole to the step in which it begins, the end token to the last one.
        Raises UserError for a pattern that is no regular expression.
        """
        starts = step_starts(self.response, compile_step_pattern(pattern))
        numbers = [bisect_right(starts, first) - 1 for first, _ in self.offsets]
        places = [*zip(starts, [*starts[1:], len(self.response)], strict=True)]
        return self._numbered(numbers, places, values)

    def turns(self, values: Tensor | None = None) -> list[Span]:
        """The model's own turns, each with its end token; what others wrote is in none."""
        numbers = [0] * len(self) if self.turn_numbers is None else list(self.turn_numbers)
        places = []
        for number in range(max(numbers) + 1):
            own = [o for o, n in zip(self.offsets, numbers, strict=True) if n == number]
            places.append((own[0][0], own[-1][1]))
        return self._numbered(numbers, places, values)

    def advantages(self, position: int) -> Tensor:
        """[V] implicit reward of every token of the vocabulary at `position`, beta times nats.

        V: the tokens that the tokenizer knows and both models score; NaN where both exclude one.
        Their mean under the reference is `expected_rewards[position]`, but for tokens that are
        padding of the heads. Raises as `alternatives`.
        """
        logps, ref_logps = self._reader().logps(self._place(position))
        return self.beta * (logps - ref_logps)

    def alternatives(
        self, position: int, k: int = 5, *, min_probability: float = 0.0
    ) -> list[Alternative]:
        """The `k` best tokens at `position`, by implicit reward, over the whole vocabulary.

        min_probability: leave out tokens to which the policy gives less. The highest log-ratios of
                         a vocabulary are as a rule those of tokens that neither model would ever
                         say: both probabilities are tiny there and their ratio is mostly noise.
                         0.01 shows what the policy might really have said.

        The token that stands there is listed if it is among the best. The states are those of the
        time when the credit was computed; only the heads run again. Raises IndexError outside the
        response, ValueError for a `Credit` without its models (one that was read from a file),
        UserError where a head has changed since.
        """
        position, reader = self._place(position), self._reader()
        return reader.best(position, position + 1, k, self.beta, min_probability)[0]

    def spans(
        self,
        sign: Literal["blamed", "liked"] = "blamed",
        *,
        tolerance: float | None = None,
        limit: int | None = None,
        calibration: SpanCalibration | None = None,
        rate: float | None = None,
    ) -> Sequence[Span]:
        """Stretches that carry much blame (or liking), strongest first.

        They are the maximal segments of summed blame after each token is granted `tolerance`: with
        b_t = -rewards[t] - tolerance, no part at either end of a stretch sums to 0 or less, and no
        longer stretch has that property. A calm token inside is bridged if what follows pays.

        tolerance: beta times nats a token. By default the response's own mean absolute reward, so
                   that only what is blamed more than the typical token counts; the cut is relative
                   and not calibrated: a flawless response has stretches too.
        limit:     at most this many
        calibration: what the worst stretches of good responses are like
                   (:func:`tokenq.credit.calibrate_spans`). Blamed stretches are then found as it
                   was made, with its tolerance and its estimator of credit, in the text alone, and
                   carry a `p_value`: :class:`CalibratedSpan`
        rate:      with a calibration, only stretches so bad that at most this share of good
                   responses has any; None: all of them

        Raises UserError for a calibration of another pair (which takes a look at all weights, once
        for each model), another beta, or one of too few responses for the rate; ValueError for
        arguments that do not go together, or a `Credit` without its models.
        """
        if calibration is not None:
            if sign != "blamed" or tolerance is not None:
                raise ValueError("a calibration is of blame, and has its own tolerance")
            return self._calibrated(calibration, rate)[:limit]
        if rate is not None:
            raise ValueError("a rate needs a calibration")
        rewards = self.rewards.tolist()
        if tolerance is None:
            tolerance = sum(map(abs, rewards)) / len(rewards)
        direction = {"blamed": -1.0, "liked": 1.0}[sign]
        segments = maximal_segments([direction * reward - tolerance for reward in rewards])
        spans = [self._span(first, last) for first, last in segments]
        spans.sort(key=lambda span: -direction * span.reward)
        return spans[:limit]

    def to_dict(
        self,
        *,
        alternatives: int = 0,
        min_probability: float = 0.0,
        estimators: Sequence[str] = (),
    ) -> dict[str, Any]:
        """All of it as JSON types.

        alternatives, min_probability: best tokens listed at each position, as :meth:`alternatives`
        estimators:                    names of token credits that are listed beside the rewards
        """
        listed = None
        if alternatives:
            reader = self._reader()
            listed = reader.best(0, len(self), alternatives, self.beta, min_probability)
        names = {"policy": self.policy_name, "reference": self.reference_name, "beta": self.beta}
        record = self.response_record(listed, estimators)
        return {**names, "prompt": self.prompt, **record}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Credit":
        """Read back what :meth:`to_dict` wrote; other fields are left aside.

        A response of a scored data set lacks what it shares with its row and run: give
        `{**record["responses"]["chosen"], "prompt": ..., "beta": ..., "policy": ..., "reference":
        ...}`. Numbers have the digits of the file. Without its models it tells no alternatives,
        and without what they say of each state no entropies and divergences.

        Raises UserError for a field that is missing, ValueError for fields of different lengths.
        """
        missing = [name for name in _SAVED if name not in record]
        if missing:
            raise UserError(
                f"a saved credit lacks '{missing[0]}'; accepted: the fields {', '.join(_SAVED)}"
            )
        turns = record.get("turn_numbers")
        return cls(
            prompt=record["prompt"],
            response=record["response"],
            beta=record["beta"],
            token_ids=tuple(record["token_ids"]),
            tokens=tuple(record["tokens"]),
            offsets=tuple((start, end) for start, end in record["offsets"]),
            logps=torch.tensor(record["logps"], dtype=torch.float32),
            ref_logps=torch.tensor(record["ref_logps"], dtype=torch.float32),
            policy_name=record["policy"],
            reference_name=record["reference"],
            turn_numbers=None if turns is None else tuple(turns),
        )

    def response_record(
        self,
        alternatives: Sequence[Sequence[Alternative]] | None,
        estimators: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The response's part of :meth:`to_dict`, with given alternatives at each position."""
        record: dict[str, Any] = {
            "response": self.response,
            "reward": round(self.reward, _DECIMALS),
            "tokens": list(self.tokens),
            "token_ids": list(self.token_ids),
            "offsets": [list(offset) for offset in self.offsets],
            "logps": _rounded(self.logps),
            "ref_logps": _rounded(self.ref_logps),
            "rewards": _rounded(self.rewards),
            "values": _rounded(self.values),
        }
        if self.facts is not None:
            for name in ("entropies", "ref_entropies", "divergences"):
                record[name] = _rounded(getattr(self, name))
        if self.turn_numbers is not None:
            record["turn_numbers"] = list(self.turn_numbers)
        if estimators:
            record["estimates"] = {name: _rounded(self.estimate(name)) for name in estimators}
        if alternatives is not None:
            record["alternatives"] = [
                [_rounded_fields(asdict(each)) for each in best] for best in alternatives
            ]
        return record

    def save_html(self, path: str | Path) -> None:
        """Write a self-contained page with the response's tokens, coloured by implicit reward."""
        # The page is made in the next room, which must not be needed to compute credit.
        from tokenq.report.html import single_page

        record = self.to_dict(alternatives=3, min_probability=_PLAUSIBLE)
        single_page(record, Path(path), min_probability=_PLAUSIBLE)

    def _own(self, values: Tensor) -> Tensor:
        """The values [T] with 0 in place of those of tokens that somebody else wrote."""
        if self.turn_numbers is None:
            return values
        own = torch.tensor(self.turn_numbers) != OTHERS
        return values.where(own, torch.zeros_like(values))

    def _place(self, position: int) -> int:
        count = len(self)
        if not -count <= position < count:
            raise IndexError(f"position {position} of a response of {count} tokens")
        return position % count

    def _facts(self) -> StateFacts:
        if self.facts is None:
            raise ValueError(
                "this Credit has log-probs only, no entropies, divergences or logits; compute it "
                "with tokenq.credit(...)"
            )
        return self.facts

    def _by_characters(self, units: Sequence[tuple[int, int]], values: Tensor | None) -> list[Span]:
        """Spans of units of text that have tokens, and of stretches of tokens without text."""
        values = self._summed(values)
        shares = Shares.of(self.offsets, self.response, units)
        members: dict[int, list[int]] = {}
        for token, unit in zip(shares.token.tolist(), shares.unit.tolist(), strict=True):
            members.setdefault(unit, []).append(token)
        sums = shares.sums(values).tolist()
        spans = []
        for unit, tokens in members.items():
            start, end = without_outer_blanks(self.response, *units[unit])
            text = self.response[start:end]
            spans.append(Span(tokens[0], tokens[-1] + 1, start, end, text, sums[unit]))
        bare = [token for token, (start, end) in enumerate(self.offsets) if start == end]
        for first, last in _stretches(bare):
            place = self.offsets[first][0]
            spans.append(Span(first, last, place, place, "", float(values[first:last].sum())))
        return sorted(spans, key=lambda span: (span.first, span.last, span.start))

    def _numbered(
        self,
        numbers: Sequence[int],
        places: Sequence[tuple[int, int]],
        values: Tensor | None,
    ) -> list[Span]:
        """Spans of whole tokens that have one number; none for a number that no token has."""
        values = self._summed(values)
        spans = []
        for number, place in enumerate(places):
            tokens = [token for token, each in enumerate(numbers) if each == number]
            if tokens:
                first, last = tokens[0], tokens[-1] + 1
                start, end = without_outer_blanks(self.response, *place)
                reward = float(values[first:last].sum())
                spans.append(Span(first, last, start, end, self.response[start:end], reward))
        return spans

    def _summed(self, values: Tensor | None) -> Tensor:
        values = self.rewards if values is None else values
        if values.shape != self.logps.shape:
            raise ValueError(f"{len(self)} tokens, but values of shape {tuple(values.shape)}")
        return values.double()

    def _reader(self) -> VocabularyReader:
        if self.vocabulary is None:
            raise ValueError("this Credit holds no models; compute it with tokenq.credit(...)")
        return self.vocabulary

    def _calibrated(self, calibration: SpanCalibration, rate: float | None) -> list[CalibratedSpan]:
        name = calibration.source.estimator
        calibration.check_source(blame_source(self._reader().pair, self.beta, name))
        blames = (-self.estimate(name)).tolist()
        spans = calibrated_spans(self.response, self.offsets, blames, calibration)
        if rate is None:
            return spans
        calibration.check_rate(rate)
        return [span for span in spans if calibration.flags(span.p_value, rate)]

    def _span(self, first: int, last: int) -> Span:
        start, end = self.offsets[first][0], self.offsets[last - 1][1]
        reward = float(self.rewards[first:last].sum())
        return Span(first, last, start, end, self.response[start:end], reward)


def token_texts(
    response: str, offsets: Sequence[tuple[int, int]], names: Sequence[str]
) -> tuple[str, ...]:
    """Each token's characters of the response, or its name where it has none."""
    if any(later[0] < earlier[0] for earlier, later in pairwise(offsets)):
        raise ValueError("offsets go back")
    return tuple(
        response[start:end] or name for (start, end), name in zip(offsets, names, strict=True)
    )


def _stretches(tokens: Sequence[int]) -> list[tuple[int, int]]:
    """`first:last` of each run of consecutive tokens, which are in order."""
    present = set(tokens)
    starts = [token for token in tokens if token - 1 not in present]
    ends = [token + 1 for token in tokens if token + 1 not in present]
    return list(zip(starts, ends, strict=True))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, _DECIMALS) for value in values.tolist()]


def _rounded_fields(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, _DECIMALS) if isinstance(value, float) else value
        for name, value in record.items()
    }
