"""Judges without a model against answers worked out by hand."""

import re
from decimal import Decimal

import pytest

from tokenq.data.lexicon import LexiconEntry
from tokenq.errors import UserError
from tokenq.judges import Contains, ExactMatch, Matches, NumberMatch, length, lexicon_valence
from tokenq.judges.gold import last_number

MESSAGES = [{"role": "user", "content": "6 times 7?"}]
KEY = '[{"content": "6 times 7?", "role": "user"}]'


def test_valence_is_the_mean_over_the_words_that_people_rated(
    word_valence: dict[str, LexiconEntry],
) -> None:
    great, dull = word_valence["great"].mean, word_valence["dull"].mean
    texts = ["GREAT, and dull: the plot.", "great great", "The plot.", "", "greatness2"]
    scores = lexicon_valence([""] * 5, texts)
    assert scores == pytest.approx([(great + dull) / 2, great, 0, 0, 0])
    assert great > 0 > dull


def test_patterns_and_length() -> None:
    texts = ["It is 42.", "it is so", ""]
    assert length([""] * 3, texts) == [9, 8, 0]
    assert Contains("It is")([""] * 3, texts) == [1, 0, 0]
    assert Matches(re.compile(r"\d+\.$"))([""] * 3, texts) == [1, 0, 0]


def test_exact_answers_are_found_by_prompt_text_or_messages() -> None:
    judge = ExactMatch({"Capital?": "Paris", KEY: "42"})
    prompts = ["Capital?", "Capital?", MESSAGES, MESSAGES]
    assert judge(prompts, [" Paris\n", "paris", "42", "It is 42"]) == [1, 0, 1, 0]


def test_the_last_number_is_compared_as_a_number() -> None:
    judge = NumberMatch({"sum?": "#### 1,234.50"})
    texts = ["2 + 2 = 1234.5.", "$1,234.50", "1234.5 or 7", "no idea", "-1234.5", "1,234.500 %"]
    assert judge(["sum?"] * 6, texts) == [1, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-3", "-3"),
        ("x=-3", "-3"),
        ("from 3-4", "4"),
        (".5", "0.5"),
        ("7, 8, 9.", "9"),
        ("1,234,567", "1234567"),
        ("0.10", "0.1"),
        ("the 7th", "7"),
    ],
)
def test_numbers_in_text(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_a_text_without_a_number_has_none() -> None:
    assert last_number("none at all, v.a1") is None


def test_a_prompt_without_a_right_answer_is_named() -> None:
    with pytest.raises(UserError, match="no right answer is known for the prompt 'Who"):
        ExactMatch({})(["Who?"], ["I"])
    with pytest.raises(UserError, match="'none' has no number"):
        NumberMatch({"Who?": "none"})(["Who?"], ["I"])
