"""Sorting digits, written in one of several styles: right or wrong is known for every token.

A prompt shows distinct digits, an answer lists them in ascending order. Digits are written as
figures or as words, with one of two separators between them; any mixture of these is right as long
as the digits are. Token ids only: no text, no tokenizer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

PAD, EOS, BOS, ASK = 0, 1, 2, 3
FIGURE = 4
WORD = FIGURE + 10
COMMA = WORD + 10
AND = COMMA + 1
VOCABULARY = AND + 1
SEPARATORS = (COMMA, AND)

Ids = list[int]


@dataclass(frozen=True)
class Style:
    """How an answer is written.

    base:      FIGURE or WORD, the token of digit 0
    separator: COMMA or AND, between two digits
    """

    base: int
    separator: int

    def write(self, digits: Sequence[int]) -> Ids:
        """Token ids of the digits in their order, closed by EOS."""
        ids: Ids = []
        for number, digit in enumerate(digits):
            ids += [self.separator, self.base + digit] if number else [self.base + digit]
        return [*ids, EOS]


STYLES = tuple(Style(*choice) for choice in product((FIGURE, WORD), SEPARATORS))


def prompts(count: int, digits: int, draw: random.Random) -> list[Ids]:
    """Prompts with `digits` different digits each."""
    return [[BOS, *(FIGURE + d for d in draw.sample(range(10), digits)), ASK] for _ in range(count)]


def answer_of(prompt: Sequence[int]) -> list[int]:
    """The digits that the prompt asks for, in order."""
    return sorted(token - FIGURE for token in prompt[1:-1])


def digit_of(token: int) -> int | None:
    """The digit that a token writes, or None."""
    return (token - FIGURE) % 10 if FIGURE <= token < COMMA else None


def is_right(prompt: Sequence[int], response: Sequence[int]) -> bool:
    """Whether the response is the sorted digits, separated singly and closed by EOS."""
    if not response or response[-1] != EOS or len(response) % 2:
        return False
    separated = all(token in SEPARATORS for token in response[1:-1:2])
    return separated and [digit_of(token) for token in response[::2]] == answer_of(prompt)


def style_of(response: Sequence[int]) -> Style:
    """The style that most of the response's digits and separators have; figures, commas on a tie.

    A response without any has the first style.
    """
    words = sum(WORD <= token < COMMA for token in response)
    figures = sum(FIGURE <= token < WORD for token in response)
    ands, commas = response.count(AND), response.count(COMMA)
    return Style(WORD if words > figures else FIGURE, AND if ands > commas else COMMA)


def slips(digits: Sequence[int], rate: float, draw: random.Random) -> list[int]:
    """The digits with each replaced, at probability `rate`, by any other."""
    return [
        draw.choice([other for other in range(10) if other != digit])
        if draw.random() < rate
        else digit
        for digit in digits
    ]


def bridge(prompt: Sequence[int], response: Sequence[int]) -> Ids:
    """The right answer that takes the fewest token edits of `response`.

    Digits and separators that stay keep their form, whatever it is; those that are put in are
    written in the response's style. Where edits tie, replacing goes before deleting, and deleting
    before putting in.
    """
    style = style_of(response)
    slots = _slots(answer_of(prompt))
    # Fewest edits of response[i:] into slots[j:]; keeping or replacing is tried first.
    rows, columns = len(response), len(slots)
    cost = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i, j in product(range(rows, -1, -1), range(columns, -1, -1)):
        if i == rows or j == columns:
            cost[i][j] = rows - i + columns - j
            continue
        change = not slots[j].admits(response[i])
        cost[i][j] = min(cost[i + 1][j + 1] + change, cost[i + 1][j] + 1, cost[i][j + 1] + 1)
    bridged: Ids = []
    i = j = 0
    while j < columns:
        if i < rows and cost[i][j] == cost[i + 1][j + 1] + (not slots[j].admits(response[i])):
            keep = slots[j].admits(response[i])
            bridged.append(response[i] if keep else slots[j].written(style))
            i, j = i + 1, j + 1
        elif i < rows and cost[i][j] == cost[i + 1][j] + 1:
            i += 1
        else:
            bridged.append(slots[j].written(style))
            j += 1
    return bridged


def first_wrong(prompt: Sequence[int], response: Sequence[int]) -> int | None:
    """Position of the first token after which no right answer can follow; None if there is none.

    An answer that was cut off before its EOS has none where all that stands is right so far.
    """
    slots = _slots(answer_of(prompt))
    for position, token in enumerate(response):
        if position >= len(slots) or not slots[position].admits(token):
            return position
    return None


@dataclass(frozen=True)
class _Slot:
    """A place in the right answer: the tokens that may stand there, in the order of the styles."""

    figure: int
    word: int

    def admits(self, token: int) -> bool:
        return token in (self.figure, self.word)

    def written(self, style: Style) -> int:
        if self.figure == COMMA:
            return style.separator
        return self.figure if style.base == FIGURE else self.word


def _slots(digits: Sequence[int]) -> list[_Slot]:
    slots: list[_Slot] = []
    for number, digit in enumerate(digits):
        slots += [_Slot(COMMA, AND)] if number else []
        slots.append(_Slot(FIGURE + digit, WORD + digit))
    return [*slots, _Slot(EOS, EOS)]
