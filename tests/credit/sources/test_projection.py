"""Scores moved between tokenisations: shares by hand, sums conserved, means kept."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenq.credit.sources import TokenScores, on_spans, project

TEXT = "un funny.\n\nbad 🎬"
END = (len(TEXT), len(TEXT))
#           "un"    " fun"  "ny."   "\n\n"   "bad"     " "+byte byte      eos
OFFSETS = ((0, 2), (2, 6), (6, 9), (9, 11), (11, 14), (14, 16), (15, 16), END)


def scores(values: list[float], offsets: tuple[tuple[int, int], ...] = OFFSETS, **options: object):  # type: ignore[no-untyped-def]
    return TokenScores(TEXT, offsets, torch.tensor(values), "s", "nats", **options)  # type: ignore[arg-type]


def test_shares_by_hand() -> None:
    found = project(
        scores([1.0, 3.0, 6.0, 10.0, 9.0, 5.0, 2.0, 7.0]),
        #"u"    "n fu"  "nny"   ".\n"    "\nba"   "d 🎬"    eos
        ((0, 1), (1, 5), (5, 8), (8, 10), (10, 13), (13, 16), END),
    )  # fmt: skip
    # " fun" has three letters of 1 each; "ny." gives 2 to the full stop; the line breaks 5 each.
    expected = [0.5, 0.5 + 2.0, 1.0 + 4.0, 2.0 + 5.0, 5.0 + 6.0, 3.0 + 7.0, 7.0]
    torch.testing.assert_close(found.scores, torch.tensor(expected))
    assert found.text == TEXT


def test_bytes_of_one_character_share_it() -> None:
    whole = ((0, 14), (14, 16), END)
    found = project(scores([0.0, 6.0, 1.0], whole), OFFSETS)
    assert found.scores.tolist() == pytest.approx([0, 0, 0, 0, 0, 3.0, 3.0, 1.0])


def test_tokens_outside_the_text() -> None:
    values = scores([4.0, 1.0, 2.0], ((0, 0), (0, 16), END))
    same = project(values, ((0, 0), (0, 16), END, END))
    # What a template writes behind the text ends with the end token.
    assert same.scores.tolist() == [4.0, 1.0, 0.0, 2.0]
    assert project(values, ((0, 16),)).scores.tolist() == [5.0]
    trimmed = project(scores([3.0, 1.0], ((0, 3), (3, 16))), ((3, 16), END))
    assert trimmed.scores.tolist() == [4.0, 0.0]


def test_a_mean_is_no_sum() -> None:
    places = scores([float(at) for at in range(8)], additive=False)
    coarse = project(places, ((0, 9), (9, 16), END))
    # By visible characters: "un" 0, "fun" 1, "ny." 2; "bad" 4, 🎬 5 and 6.
    assert coarse.scores.tolist() == pytest.approx([9 / 8, (3 * 4 + 5.5) / 4, 7.0])
    finer = project(coarse, OFFSETS)
    assert finer.scores.tolist() == pytest.approx([9 / 8] * 3 + [17.5 / 4] * 4 + [7.0])
    words = on_spans(places, [(0, 2), (3, 8)])
    assert words.scores.tolist() == pytest.approx([0.0, (3 * 1 + 2 * 2) / 5])
    # Without an end of its own, the last token stands for it.
    open_ended = scores([1.0, 4.0], ((0, 8), (8, 16)), additive=False)
    assert project(open_ended, ((0, 16), END)).scores.tolist() == pytest.approx(
        [(7 * 1 + 5 * 4) / 12, 4]
    )


def test_words_leave_out_what_lies_between() -> None:
    found = on_spans(scores([1.0, 3.0, 6.0, 10.0, 9.0, 5.0, 2.0, 7.0]), [(0, 2), (3, 8), (11, 14)])
    assert found.scores.tolist() == pytest.approx([1.0, 3.0 + 4.0, 9.0])
    assert on_spans(scores([1.0] * 8), []).scores.shape == (0,)
    with pytest.raises(ValueError, match="empty"):
        on_spans(scores([1.0] * 8), [(2, 2)])


def cuts(draw: st.DrawFn, length: int) -> tuple[tuple[int, int], ...]:
    """Any tokenisation of a text, with its end token."""
    inner = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=length)))
    edges = [0, *(at for at in inner if at < length), length]
    return (*pairwise(edges), (length, length))


@st.composite
def tokenised_twice(draw: st.DrawFn) -> tuple[TokenScores, tuple[tuple[int, int], ...]]:
    text = draw(st.text("ab é\n🎬", min_size=1, max_size=12))
    first, second = (cuts(draw, len(text)) for _ in range(2))
    values = draw(st.lists(st.floats(-9, 9), min_size=len(first), max_size=len(first)))
    return TokenScores(text, first, torch.tensor(values), "s", "nats"), second


@given(tokenised_twice())
def test_the_sum_is_conserved_and_nothing_moves_on_equal_tokens(
    given_: tuple[TokenScores, tuple[tuple[int, int], ...]],
) -> None:
    before, offsets = given_
    moved = project(before, offsets)
    assert float(moved.scores.sum()) == pytest.approx(float(before.scores.sum()), abs=1e-4)
    assert float(moved.scores[-1]) == pytest.approx(float(before.scores[-1]), abs=1e-6)
    back = project(before, before.offsets)
    torch.testing.assert_close(back.scores, before.scores, atol=1e-5, rtol=0)
    # What a token holds all of is conserved by pieces too: coarser tokens add up exactly.
    whole = project(moved, ((0, len(before.text)), before.offsets[-1]))
    assert float(whole.scores[0]) == pytest.approx(float(before.scores[:-1].sum()), abs=1e-4)


def test_no_token_in_the_text() -> None:
    with pytest.raises(ValueError, match="none of the tokens holds"):
        project(scores([1.0] * 8), (END,))


@pytest.mark.parametrize("offsets", [((0, 99),), ((3, 2),), ((-1, 2),)])
def test_offsets_must_lie_in_the_text(offsets: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match=r"offset .* in a text of 16 characters"):
        scores([1.0], offsets)
    with pytest.raises(ValueError, match=r"offset .* in a text of 16 characters"):
        project(scores([1.0] * 8), offsets)


def test_scores_and_offsets_must_agree() -> None:
    with pytest.raises(ValueError, match="but 8 offsets"):
        scores([1.0])


def test_blame_is_always_the_suspicious_side() -> None:
    assert scores([1.0] * 8).blame.tolist() == [-1.0] * 8
    assert scores([1.0] * 8, higher="suspicious").blame.tolist() == [1.0] * 8
