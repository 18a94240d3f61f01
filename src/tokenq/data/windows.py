"""Tokenised preference rows in the portions in which models read them."""

from collections.abc import Iterable, Iterator
from typing import Any


def pair_windows(rows: Iterable[dict[str, Any]], tokens: int) -> Iterator[list[dict[str, Any]]]:
    """Part rows, in order, into lists that hold just enough to have `tokens` tokens or more.

    rows: with ``prompt_ids``, ``chosen_ids``, ``rejected_ids``; the tokens of all three count

    The last list may hold less.
    """
    window: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        window.append(row)
        size += sum(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        if size >= tokens:
            yield window
            window, size = [], 0
    if window:
        yield window
