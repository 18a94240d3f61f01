"""Which texts a probe reads, and how their tokens lie one behind the other."""

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenq.models.packing import Ids
from tokenq.monitor.likelihood import PARTS, answer_parts
from tokenq.monitor.readings import SIDES, Array, ProbePair, ProbeSet, SetName

_MOST_NEW_TOKENS = 128
_FEWEST_NEW_TOKENS = 8


def probe_pairs(
    rows: Iterable[Mapping[str, Any]],
    source: SetName,
    count: int,
    seed: int,
    longest: int | None = None,
) -> list[ProbePair]:
    """Draw `count` pairs from tokenised rows, or all if there are fewer; in the rows' order.

    rows:    with `prompt_ids`, `chosen_ids` and `rejected_ids`; rows in which one is empty are
             passed over. Of a stream, which has no length, the first are taken
    longest: most tokens of prompt and answer together; longer rows are passed over; None: any
    """
    known = rows if isinstance(rows, Sized) and hasattr(rows, "__getitem__") else None
    numbered = enumerate(rows) if known is None else _shuffled(known, f"{seed} {source}")
    kept: list[ProbePair] = []
    for number, row in numbered:
        if len(kept) == count:
            break
        pair = _pair(row, source, number)
        size = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        if _whole(pair) and (longest is None or size <= longest):
            kept.append(pair)
    return sorted(kept, key=lambda pair: pair.row)


def new_tokens_for(pairs: Sequence[ProbePair]) -> int:
    """Most tokens of a response: twice what nine of ten answers keep to, from 8 to 128."""
    lengths = [len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    usual = 2 * math.ceil(float(np.quantile(lengths, 0.9)))
    return max(_FEWEST_NEW_TOKENS, min(_MOST_NEW_TOKENS, usual))


def fork(pair: ProbePair) -> int | None:
    """How many tokens both answers begin with; None where one begins with the whole other one."""
    for place, (ours, theirs) in enumerate(zip(pair.chosen, pair.rejected, strict=False)):
        if ours != theirs:
            return place
    return None


class Rows:
    """Answers to prompts, whose tokens lie one behind the other: R rows, P tokens in all."""

    def __init__(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> None:
        self.prompts = prompts
        self.answers = answers

    @cached_property
    def tokens(self) -> list[int]:
        """[P] all tokens of the answers."""
        return [token for answer in self.answers for token in answer]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[R]."""
        return np.array([len(answer) for answer in self.answers], dtype=np.int64)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """[R] position of each row's first token."""
        return np.cumsum(self.lengths) - self.lengths

    def span(self, row: int) -> slice:
        """Positions of a row."""
        start = int(self.starts[row])
        return slice(start, start + int(self.lengths[row]))

    def sums(self, values: Array) -> Array:
        """Sum values [P] over each row: [R]."""
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return np.bincount(owner, values, minlength=len(self.lengths)).astype(np.float64)

    def means(self, values: Array) -> Array:
        """[R]."""
        return self.sums(values) / self.lengths


class ProbeRows(Rows):
    """The rows of a probe: chosen and rejected of pair 0, of pair 1 and so on, then the responses.

    N pairs, M responses. `ends`: ids of end tokens
    """

    def __init__(self, probe: ProbeSet, ends: Collection[int]) -> None:
        answers = [answer for pair in probe.pairs for answer in (pair.chosen, pair.rejected)]
        prompts = [pair.prompt for pair in probe.pairs for _ in SIDES]
        super().__init__(
            prompts + [probe.pairs[each.pair].prompt for each in probe.responses],
            answers + [each.ids for each in probe.responses],
        )
        self.probe = probe
        self.ends = frozenset(ends)

    def of_sides(self, by_row: Array) -> Array:
        """The pairs' part of values [R]: [2, N]."""
        return by_row[: self._sides].reshape(-1, len(SIDES)).T

    def of_responses(self, by_row: Array) -> Array:
        """The responses' part of values [R]: [M]."""
        return by_row[self._sides :]

    def of_parts(self, values: Array) -> Array:
        """Sum values [P] over side and part of each pair, see `likelihood.PARTS`: [2, 4, N]."""
        size = self._sides * len(PARTS)
        flat = np.bincount(self._places, values[: len(self._places)], minlength=size)
        return flat.astype(np.float64).reshape(-1, len(SIDES), len(PARTS)).transpose(1, 2, 0)

    @cached_property
    def forked(self) -> list[int]:
        """[F] numbers of the pairs of which neither answer begins with the whole other one."""
        return [n for n, pair in enumerate(self.probe.pairs) if fork(pair) is not None]

    @cached_property
    def fork_positions(self) -> NDArray[np.int64]:
        """[2, F] positions of the chosen and of the rejected token that differ first."""
        numbers = np.array(self.forked, dtype=np.int64)
        shared = np.array([fork(self.probe.pairs[n]) for n in self.forked], dtype=np.int64)
        return np.stack([self.starts[2 * numbers + side] + shared for side in range(len(SIDES))])

    @property
    def _sides(self) -> int:
        return len(SIDES) * len(self.probe.pairs)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """4 * row + part of each token of the pairs."""
        parts = [
            part
            for pair in self.probe.pairs
            for ours, theirs in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
            for part in answer_parts(ours, theirs, self.ends)
        ]
        owner = np.repeat(np.arange(self._sides), self.lengths[: self._sides])
        return len(PARTS) * owner + np.array(parts, dtype=np.int64)


def _shuffled(rows: Any, seed: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return ((number, rows[number]) for number in order)


def _pair(row: Mapping[str, Any], source: SetName, number: int) -> ProbePair:
    prompt, chosen, rejected = (
        [int(token) for token in row[f"{name}_ids"]] for name in ("prompt", *SIDES)
    )
    return ProbePair(source, number, prompt, chosen, rejected)


def _whole(pair: ProbePair) -> bool:
    return bool(len(pair.prompt) and len(pair.chosen) and len(pair.rejected))
