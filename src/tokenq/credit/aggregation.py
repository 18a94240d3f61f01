"""From tokens to words or any other stretches of characters."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word: letters and digits, with inner apostrophes and hyphens."""
    return [match.span() for match in _WORD.finditer(text)]


def sum_over_spans(
    values: Tensor,
    offsets: Sequence[tuple[int, int]],
    text: str,
    spans: Sequence[tuple[int, int]],
) -> Tensor:
    """Sum per-token values over stretches of characters: [S] for values [T] and S spans.

    offsets: (start, end) characters of each token in `text`
    spans:   (start, end) characters

    A token's value is shared equally by its characters other than blanks, so that a token that
    reaches into two spans is divided between them, and the blank that begins a token costs
    nothing. Tokens without such a character (the end token, line breaks) belong to no span. Where
    spans cover all the text, their sums add up to that of all other tokens.

    Raises ValueError where values and offsets differ in length.
    """
    if len(values) != len(offsets):
        raise ValueError(f"{len(values)} values but {len(offsets)} offsets")
    per_character = [0.0] * len(text)
    for value, (start, end) in zip(values.tolist(), offsets, strict=True):
        visible = [at for at in range(start, end) if not text[at].isspace()]
        for at in visible:
            per_character[at] += value / len(visible)
    sums = [sum(per_character[start:end]) for start, end in spans]
    return torch.tensor(sums, dtype=values.dtype)
