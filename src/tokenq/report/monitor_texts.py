"""What the monitor's page quotes: tokens that gained where answers part, samples of the policy.

All texts come out visible (see `visible.py`); without a tokenizer, tokens are their ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenq.models.packing import Ids
from tokenq.monitor.readings import HELD_OUT, History, ProbePair, Reading
from tokenq.report.visible import tame, visible

_TAIL = 60
"""Tokens of a prompt that are quoted: its end."""

_SHARED = 12
"""Tokens of the beginning that both answers share: its end as well."""


@dataclass(frozen=True)
class GainingToken:
    """A token that gained probability at forks.

    gain:  summed over pairs, probability
    pairs: in how many of them it is among those that gained most
    kind:  "chosen", "rejected" or "other": what it is in most of these
    """

    text: str
    gain: float
    pairs: int
    kind: str


@dataclass(frozen=True)
class ForkToken:
    """A token at one fork: probability under the reference and now; `kind` as above."""

    text: str
    kind: str
    before: float
    now: float


@dataclass(frozen=True)
class ForkExample:
    """Where the answers of one pair part: the text before, and who holds probability there.

    before: end of the prompt and of what both answers begin with
    other:  probability that neither answer's token has got, a change since the reference
    change: of the chosen answer's log-probability, nats
    """

    held_out: bool
    row: int
    prompt: str
    shared: str
    tokens: Sequence[ForkToken]
    other: float
    change: float


@dataclass(frozen=True)
class SampleExample:
    """What the policy wrote to one prompt, at an early and at a late step; None: nothing then."""

    prompt: str
    early: str | None
    late: str | None


class Words:
    """Token ids as text that is safe to show."""

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer

    @property
    def known(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    def token(self, token: int) -> str:
        """One token on one line."""
        if self._tokenizer is None:
            return f"#{token}"
        return visible(self._tokenizer.decode([token])) or f"#{token}"

    def text(self, ids: Ids) -> str:
        """Several tokens, line ends kept."""
        if self._tokenizer is None:
            return " ".join(f"#{token}" for token in ids)
        return tame(self._tokenizer.decode(list(ids)))

    def tail(self, ids: Ids, count: int) -> str:
        """The last `count` tokens, with a sign where some are left out."""
        return ("… " if len(ids) > count else "") + self.text(list(ids)[-count:])


def gaining_tokens(history: History, words: Words, count: int = 12) -> list[GainingToken]:
    """Tokens that gained most probability at the forks of the last reading, over all pairs."""
    if history.setup is None or not history.readings:
        return []
    gained: dict[int, float] = {}
    kinds: dict[int, list[str]] = {}
    for pair, gains in zip(
        history.setup.probe.pairs, history.readings[-1].forks.gains, strict=True
    ):
        for token, before, now in gains:
            if now > before:
                gained[token] = gained.get(token, 0.0) + now - before
                kinds.setdefault(token, []).append(_kind(token, pair))
    most = sorted(gained, key=lambda token: -gained[token])[:count]
    return [
        GainingToken(
            words.token(token),
            gained[token],
            len(kinds[token]),
            max(("other", "chosen", "rejected"), key=kinds[token].count),
        )
        for token in most
    ]


def fork_examples(history: History, words: Words, count: int = 6) -> list[ForkExample]:
    """Pairs whose tokens at the fork lost most mass to others, in the last reading."""
    if history.setup is None or not history.readings:
        return []
    other = history.readings[-1].forks.other
    order = sorted(np.flatnonzero(np.isfinite(other)).tolist(), key=lambda row: -other[row])
    return [_example(history, history.readings[-1], number, words) for number in order[:count]]


def sample_examples(
    history: History, words: Words, count: int = 4
) -> tuple[int, int, list[SampleExample]]:
    """Steps of the first and the last probe with samples, and texts to the same prompts."""
    drawn = [reading for reading in history.readings if reading.samples is not None]
    if history.setup is None or not drawn:
        return 0, 0, []
    first, last = _by_pair(drawn[0]), _by_pair(drawn[-1])
    both = [pair for pair in last if pair in first] or list(last)
    examples = [
        SampleExample(
            words.tail(history.setup.probe.pairs[pair].prompt, _TAIL),
            words.text(first[pair]) if pair in first and len(drawn) > 1 else None,
            words.text(last[pair]),
        )
        for pair in both[:count]
    ]
    return drawn[0].step, drawn[-1].step, examples


def _by_pair(reading: Reading) -> dict[int, Ids]:
    """The first sample to each prompt."""
    assert reading.samples is not None
    found: dict[int, Ids] = {}
    for pair, ids in zip(reading.samples.pair, reading.samples.ids, strict=True):
        found.setdefault(int(pair), ids)
    return found


def _example(history: History, reading: Reading, number: int, words: Words) -> ForkExample:
    assert history.setup is not None
    pair, baseline = history.setup.probe.pairs[number], history.setup.baseline
    at = _fork(pair)
    tokens = {}
    for side, token in enumerate((pair.chosen[at], pair.rejected[at])):
        before, now = baseline.ref_fork[side, number], reading.forks.logps[side, number]
        tokens[token] = (float(np.exp(before)), float(np.exp(now)))
    tokens |= {token: (before, now) for token, before, now in reading.forks.gains[number]}
    shown = [
        ForkToken(words.token(token), _kind(token, pair), before, now)
        for token, (before, now) in sorted(tokens.items(), key=lambda item: -item[1][1])
    ]
    change = reading.pairs.logps[0, :, number].sum() - baseline.ref_logps[0, :, number].sum()
    return ForkExample(
        pair.source == HELD_OUT,
        pair.row,
        words.tail(pair.prompt, _TAIL),
        words.tail(pair.chosen[:at], _SHARED) if at else "",
        shown,
        float(reading.forks.other[number]),
        float(change),
    )


def _fork(pair: ProbePair) -> int:
    """Position of the first differing token, which both answers have."""
    both = zip(pair.chosen, pair.rejected, strict=False)
    return next(at for at, (ours, theirs) in enumerate(both) if ours != theirs)


def _kind(token: int, pair: ProbePair) -> str:
    at = _fork(pair)
    return {pair.chosen[at]: "chosen", pair.rejected[at]: "rejected"}.get(token, "other")
