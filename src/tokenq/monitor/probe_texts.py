"""Which texts a probe reads, and how their tokens lie one behind the other."""

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Rows:
    """Answers to prompts, whose tokens lie one behind the other: R rows, P tokens in all.

    Of a probe: chosen and rejected of pair 0, of pair 1 and so on, then the responses.
    """

    prompts: Sequence[Ids]
    answers: Sequence[Ids]

    @classmethod
    def of(cls, probe: ProbeSet) -> "Rows":
        """All rows of a probe."""
        sides = [answer for pair in probe.pairs for answer in (pair.chosen, pair.rejected)]
        prompts = [pair.prompt for pair in probe.pairs for _ in SIDES]
        return cls(
            prompts + [probe.pairs[each.pair].prompt for each in probe.responses],
            sides + [each.ids for each in probe.responses],
        )

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
        return np.bincount(owner, values, minlength=len(self.lengths))

    def means(self, values: Array) -> Array:
        """[R]."""
        return self.sums(values) / self.lengths


@dataclass(frozen=True, eq=False)
class PairParts:
    """Sums over the parts of the answers of N pairs, the first 2 N rows of a probe.

    place: [P] 4 * row + part of each token
    """

    place: NDArray[np.int64]
    pairs: int

    @classmethod
    def of(cls, pairs: Sequence[ProbePair], ends: Collection[int]) -> "PairParts":
        """ends: ids of end tokens."""
        parts = [
            part
            for pair in pairs
            for ours, theirs in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
            for part in answer_parts(ours, theirs, ends)
        ]
        lengths = [len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
        owner = np.repeat(np.arange(len(lengths)), lengths)
        return cls(len(PARTS) * owner + np.array(parts, dtype=np.int64), len(pairs))

    def sums(self, values: Array) -> Array:
        """Sum values of the pairs' tokens by side and part: [2, 4, N]."""
        size = len(SIDES) * len(PARTS) * self.pairs
        flat = np.bincount(self.place, values[: len(self.place)], minlength=size)
        return flat.reshape(self.pairs, len(SIDES), len(PARTS)).transpose(1, 2, 0)


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
