"""The longest common prefix, of texts, token ids or anything else in a row."""

from collections.abc import Sequence
from typing import Any


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Number of leading items that two sequences share."""
    if first == second[: len(first)]:
        return len(first)
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
