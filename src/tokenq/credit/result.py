"""`Credit`: one response, token by token."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokenq.credit.segments import Span, maximal_segments
from tokenq.credit.vocabulary import Alternative, VocabularyReader
from tokenq.data.formats import Messages

_DECIMALS = 6
_PLAUSIBLE = 0.01


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

    def __post_init__(self) -> None:
        count = len(self.token_ids)
        sizes = (len(self.tokens), len(self.offsets), *self.logps.shape, *self.ref_logps.shape)
        if set(sizes) != {count}:
            raise ValueError(f"{count} tokens, but fields of sizes {sizes}")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def rewards(self) -> Tensor:
        """[T] implicit rewards beta * (logps - ref_logps): the optimal advantages (2404.12358,
        eq. 10) of the task that the policy solves best."""
        return self.beta * (self.logps - self.ref_logps)

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

    def alternatives(
        self, position: int, k: int = 5, *, min_probability: float = 0.0
    ) -> list[Alternative]:
        """The `k` best tokens at `position`, by implicit reward, over the whole vocabulary.

        min_probability: leave out tokens to which the policy gives less. The highest log-ratios of
                         a vocabulary are as a rule those of tokens that neither model would ever
                         say: both probabilities are tiny there and their ratio is mostly noise.
                         0.01 shows what the policy might really have said.

        The token that stands there is listed if it is among the best. The first call runs both
        models once more; later ones are cheap. Raises IndexError outside the response, ValueError
        for a `Credit` without its models (one that was read from a file).
        """
        count = len(self)
        if not -count <= position < count:
            raise IndexError(f"position {position} of a response of {count} tokens")
        position %= count
        reader = self._reader()
        return reader.best(position, position + 1, k, self.beta, min_probability)[0]

    def spans(
        self,
        sign: Literal["blamed", "liked"] = "blamed",
        *,
        tolerance: float | None = None,
        limit: int | None = None,
    ) -> list[Span]:
        """Stretches that carry much blame (or liking), strongest first.

        They are the maximal segments of summed blame after each token is granted `tolerance`: with
        b_t = -rewards[t] - tolerance, no part at either end of a stretch sums to 0 or less, and no
        longer stretch has that property. A calm token inside is bridged if what follows pays.

        tolerance: beta times nats a token. By default the response's own mean absolute reward, so
                   that only what is blamed more than the typical token counts; the cut is relative
                   and not calibrated: a flawless response has stretches too.
        limit:     at most this many
        """
        rewards = self.rewards.tolist()
        if tolerance is None:
            tolerance = sum(map(abs, rewards)) / len(rewards)
        direction = {"blamed": -1.0, "liked": 1.0}[sign]
        segments = maximal_segments([direction * reward - tolerance for reward in rewards])
        spans = [self._span(first, last) for first, last in segments]
        spans.sort(key=lambda span: -direction * span.reward)
        return spans[:limit]

    def to_dict(self, *, alternatives: int = 0, min_probability: float = 0.0) -> dict[str, Any]:
        """All of it as JSON types; `alternatives` tokens a position if that is positive."""
        listed = None
        if alternatives:
            reader = self._reader()
            listed = reader.best(0, len(self), alternatives, self.beta, min_probability)
        names = {"policy": self.policy_name, "reference": self.reference_name, "beta": self.beta}
        return {**names, "prompt": self.prompt, **self.response_record(listed)}

    def response_record(
        self, alternatives: Sequence[Sequence[Alternative]] | None
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

    def _reader(self) -> VocabularyReader:
        if self.vocabulary is None:
            raise ValueError("this Credit holds no models; compute it with tokenq.credit(...)")
        return self.vocabulary

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


def _rounded(values: Tensor) -> list[float]:
    return [round(value, _DECIMALS) for value in values.tolist()]


def _rounded_fields(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, _DECIMALS) if isinstance(value, float) else value
        for name, value in record.items()
    }
