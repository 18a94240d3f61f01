"""Sorting digits: what is right, the exact editor, and where an answer first goes wrong."""

import itertools
import random

import pytest

from tokenq.data.edits import edit_distance
from tokenq.reproduce.synthetic import digits
from tokenq.reproduce.synthetic.digits import (
    AND,
    ASK,
    BOS,
    COMMA,
    EOS,
    FIGURE,
    STYLES,
    WORD,
    Style,
    bridge,
    first_wrong,
    is_right,
    style_of,
)

PROMPT = [BOS, FIGURE + 5, FIGURE + 2, FIGURE + 9, ASK]
"""Asks for 2, 5, 9."""
FIGURES = [FIGURE + 2, COMMA, FIGURE + 5, COMMA, FIGURE + 9, EOS]
WORDS = [WORD + 2, AND, WORD + 5, AND, WORD + 9, EOS]


def test_every_style_of_the_answer_is_right() -> None:
    answers = [style.write(digits.answer_of(PROMPT)) for style in STYLES]
    assert FIGURES in answers
    assert WORDS in answers
    assert len(answers) == 4
    assert all(is_right(PROMPT, answer) for answer in answers)
    assert all(style_of(answer) == style for answer, style in zip(answers, STYLES, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        FIGURES[:-1],
        [FIGURE + 2, COMMA, FIGURE + 5, EOS],
        [FIGURE + 2, COMMA, FIGURE + 9, COMMA, FIGURE + 5, EOS],
        [FIGURE + 2, COMMA, COMMA, COMMA, FIGURE + 9, EOS],
        [FIGURE + 2, FIGURE + 5, FIGURE + 5, COMMA, FIGURE + 9, EOS],
        [*FIGURES, EOS],
    ],
)
def test_wrong_answers(wrong: list[int]) -> None:
    assert not is_right(PROMPT, wrong)


@pytest.mark.parametrize(
    ("response", "mended", "first"),
    [
        # one digit is wrong: it alone is replaced, in the response's style
        (
            [WORD + 2, AND, WORD + 6, AND, WORD + 9, EOS],
            [WORD + 2, AND, WORD + 5, AND, WORD + 9, EOS],
            2,
        ),
        # a digit is missing: it is put in with its separator
        ([FIGURE + 2, COMMA, FIGURE + 9, EOS], FIGURES, 2),
        # one too many: it goes
        ([FIGURE + 2, COMMA, FIGURE + 3, COMMA, FIGURE + 5, COMMA, FIGURE + 9, EOS], FIGURES, 2),
        # mixed styles stay mixed
        (
            [WORD + 2, COMMA, FIGURE + 5, AND, FIGURE + 8, EOS],
            [WORD + 2, COMMA, FIGURE + 5, AND, FIGURE + 9, EOS],
            4,
        ),
        # cut off: what stands is right, so no token is wrong
        (WORDS[:4], WORDS, None),
        ([], FIGURES, None),
        (WORDS, WORDS, None),
    ],
)
def test_the_editor_by_hand(response: list[int], mended: list[int], first: int | None) -> None:
    assert bridge(PROMPT, response) == mended
    assert first_wrong(PROMPT, response) == first


def test_the_editor_makes_the_fewest_edits() -> None:
    """Against the distance to every right answer, however its style is mixed."""
    places = [(FIGURE + 2, WORD + 2), (COMMA, AND), (FIGURE + 5, WORD + 5), (COMMA, AND)]
    right = [list(choice) for choice in itertools.product(*places, (FIGURE + 9, WORD + 9), (EOS,))]
    draw = random.Random(0)
    alphabet = [FIGURE + 2, WORD + 5, FIGURE + 9, WORD + 3, COMMA, AND, EOS]
    for _ in range(200):
        response = [draw.choice(alphabet) for _ in range(draw.randrange(9))]
        mended = bridge(PROMPT, response)
        assert is_right(PROMPT, mended)
        fewest = min(edit_distance(response, answer) for answer in right)
        assert edit_distance(response, mended) == fewest


def test_slips_change_the_asked_for_share_and_nothing_else() -> None:
    draw = random.Random(0)
    given = [3, 7] * 5000
    slipped = digits.slips(given, 0.2, draw)
    changed = sum(a != b for a, b in zip(given, slipped, strict=True))
    assert changed / len(given) == pytest.approx(0.2, abs=0.02)
    assert set(slipped) <= set(range(10))


def test_style_of_nothing_is_the_first() -> None:
    assert style_of([EOS]) == Style(FIGURE, COMMA) == STYLES[0]
