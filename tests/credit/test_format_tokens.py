"""Which tokens are form, how much of the credit they hold, and when the reader is warned."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.credit.format_tokens import FormatShare, content_margin, token_classes


def classes(*tokens: str) -> list[str]:
    """Classes of tokens that make up a text, and of an end token."""
    text, offsets = "".join(tokens), []
    for token in tokens:
        start = offsets[-1][1] if offsets else 0
        offsets.append((start, start + len(token)))
    return token_classes(text, [*offsets, (len(text), len(text))])


def side(tokens: list[str], rewards: list[float]) -> dict:
    """A saved response: the tokens, and an end token that has the last reward."""
    text = "".join(tokens)
    reached, offsets = 0, []
    for token in tokens:
        offsets.append([reached, reached + len(token)])
        reached += len(token)
    offsets.append([len(text), len(text)])
    return {"response": text, "offsets": offsets, "rewards": rewards}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([" A", " film", "."], ["content", "content", "punctuation"]),
        (["Yes", "\n\n", "No", ".\n"], ["content", "line break", "content", "line break"]),
        (["a", "  ", "b"], ["content", "blank", "content"]),
        (["#", " Head", "\n", "-", " item"],
         ["markup", "content", "line break", "markup", "content"]),
        (["**", "bold", "**", "`", "x", "`"],
         ["markup", "content", "markup", "markup", "content", "markup"]),
        (["1", ".", " one", "\n", "2", ")", " two"],
         ["markup", "markup", "content", "line break", "markup", "markup", "content"]),
        # Signs that mean something, a minus inside a line, a decimal number, letters after a quote.
        (["5", "%", " -", "3", "n", "'t"],
         ["content", "content", "punctuation", "content", "content", "content"]),
        (["2", ".", "5"], ["content", "punctuation", "content"]),
        (["はい", "。", "👍"], ["content", "punctuation", "content"]),
    ],
)  # fmt: skip
def test_classes(tokens: list[str], expected: list[str]) -> None:
    assert classes(*tokens) == [*expected, "end"]


def test_bytes_of_one_character_are_of_its_class() -> None:
    assert token_classes("é…", [(0, 1), (0, 1), (1, 2), (1, 2), (2, 2)]) == [
        "content", "content", "punctuation", "punctuation", "end"]  # fmt: skip


def test_shares_are_those_counted_by_hand() -> None:
    share = FormatShare()
    share.add({"row": 0, "skipped": "too long"})
    share.add({"responses": {"completion": side(["a", " b", ".", "\n"], [1, -2, 0.5, -0.5, 4])}})
    plain = share.to_dict()
    assert plain["share_of_credit"] == 5 / 8
    assert plain["share_of_tokens"] == 3 / 5
    assert plain["by_class"]["end"] == {"share_of_credit": 4 / 8, "share_of_tokens": 1 / 5}
    assert plain["by_class"]["content"] == {"share_of_credit": 3 / 8, "share_of_tokens": 2 / 5}
    assert plain["pairs_decided_by_format"] is None
    # 5/3 a format token, 3/2 another: no concentration.
    assert plain["warning"] is None


@pytest.mark.parametrize(
    ("end", "warned"),
    # Eight content tokens of 1. Two format tokens with 2 each have twice the mean and 1/3 of all.
    [(3.0, True), (2.9, False)],
)
def test_the_warning_comes_at_twice_the_mean(end: float, warned: bool) -> None:
    share = FormatShare()
    share.add({"responses": {"completion": side([*["w "] * 8, "."], [1.0] * 8 + [1.0, -end])}})
    warning = share.to_dict()["warning"]
    assert (warning is not None) == warned
    if warning:
        assert "33% of the credit" in warning
        assert "20% of the tokens" in warning
        assert "most of it: end" in warning


def test_few_format_tokens_warn_nobody() -> None:
    share = FormatShare()
    share.add({"responses": {"completion": side(["w "] * 40, [1.0] * 40 + [8.0])}})
    assert share.share_of_credit == pytest.approx(8 / 48)
    assert share.warning is None


def test_nothing_scored_has_no_shares() -> None:
    plain = FormatShare().to_dict()
    assert plain["share_of_credit"] is None
    assert plain["warning"] is None


def test_pairs_that_only_their_form_decides_are_counted() -> None:
    by_end = {"chosen": side(["good"], [-0.5, 2.0]), "rejected": side(["bad"], [0.5, 0.0])}
    by_words = {"chosen": side(["good"], [0.5, 2.0]), "rejected": side(["bad"], [-0.5, 0.0])}
    assert content_margin({"responses": by_end}) == (1.0, -1.0)
    share = FormatShare()
    for responses in (by_end, by_words):
        share.add({"responses": responses})
    assert share.to_dict()["pairs_decided_by_format"] == 0.5


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", ".", "\n", " ", "#"]), st.floats(-3, 3))))
def test_shares_are_shares(tokens: list[tuple[str, float]]) -> None:
    share = FormatShare()
    responses = {"completion": side([t for t, _ in tokens], [r for _, r in tokens] + [1.0])}
    share.add({"responses": responses})
    plain = share.to_dict()
    for name in ("share_of_credit", "share_of_tokens"):
        assert 0 <= plain[name] <= 1
        parts = [each[name] for each in plain["by_class"].values()]
        assert sum(parts) == pytest.approx(1)
        assert sum(parts[:-1]) == pytest.approx(plain[name])
