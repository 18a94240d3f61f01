"""Stretches of a response that carry much of one sign: all maximal scoring segments."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A stretch of tokens.

    first, last: its tokens are `first:last`
    start, end:  its characters in the response are `start:end`
    reward:      sum of its implicit rewards (beta times nats); negative for blame
    """

    first: int
    last: int
    start: int
    end: int
    text: str
    reward: float


def maximal_segments(scores: Sequence[float]) -> list[tuple[int, int]]:
    """All maximal segments `first:last` of positive sum, left to right.

    A segment is maximal if none of its prefixes and suffixes sums to 0 or less and it lies in no
    longer segment of that kind; such segments never overlap. Ruzzo and Tompa, A linear time
    algorithm for finding all maximal scoring subsequences, ISMB 1999.
    """
    # Each candidate: first, last, the running total before it, and the running total after it.
    candidates: list[tuple[int, int, float, float]] = []
    total = 0.0
    for at, score in enumerate(scores):
        before, total = total, total + score
        if score <= 0:
            continue
        first, left, right = at, before, total
        while candidates:
            index = len(candidates) - 1
            while index >= 0 and candidates[index][2] >= left:
                index -= 1
            if index < 0 or candidates[index][3] >= right:
                break
            first, left = candidates[index][0], candidates[index][2]
            del candidates[index:]
        candidates.append((first, at + 1, left, right))
    return [(first, last) for first, last, _, _ in candidates]
