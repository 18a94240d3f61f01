"""Token values summed over words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenq.credit import sum_over_spans, word_spans


def test_words() -> None:
    text = "It's a well-made, 2nd-rate film — naïve_ish."
    words = [text[a:b] for a, b in word_spans(text)]
    assert words == ["It's", "a", "well-made", "2nd-rate", "film", "naïve", "ish"]


def test_sums_over_words_by_hand() -> None:
    text = "un funny. bad"
    #        "un"    " fun"  "ny."   " bad"  eos
    offsets = [(0, 2), (2, 6), (6, 9), (9, 13), (13, 13)]
    values = torch.tensor([1.0, 2.0, 3.0, -4.0, 9.0])
    found = sum_over_spans(values, offsets, text, word_spans(text))
    # "ny." gives two thirds of its 3 to the word; the end token's 9 goes nowhere.
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0, -4.0]))


def test_tokens_that_share_a_character_all_count() -> None:
    found = sum_over_spans(torch.tensor([1.0, 2.0]), [(0, 1), (0, 1)], "🎬", [(0, 1)])
    assert found.tolist() == [3.0]


@given(st.lists(st.tuples(st.text("ab c", min_size=1, max_size=4), st.floats(-5, 5)), min_size=1))
def test_sums_over_all_characters_keep_the_total(tokens: list[tuple[str, float]]) -> None:
    text = "".join(token for token, _ in tokens)
    offsets, at = [], 0
    for token, _ in tokens:
        offsets.append((at, at + len(token)))
        at += len(token)
    values = torch.tensor([value for _, value in tokens], dtype=torch.float64)
    total = sum_over_spans(values, offsets, text, [(0, len(text))])
    expected = sum(value for token, value in tokens if token.strip())
    assert float(total) == pytest.approx(expected, abs=1e-9)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 values but 2 offsets"):
        sum_over_spans(torch.ones(1), [(0, 1), (1, 2)], "ab", [])
