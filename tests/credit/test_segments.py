"""Maximal segments against their definition, and spans worked out by hand."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenq.credit import Credit
from tokenq.credit.segments import maximal_segments


def by_definition(scores: list[int], shift: int = 0) -> list[tuple[int, int]]:
    """Ruzzo and Tompa's definition: the best segment (shortest of equals), then left and right."""
    sums = {
        (first, last): sum(scores[first:last])
        for first in range(len(scores))
        for last in range(first + 1, len(scores) + 1)
    }
    if not sums or max(sums.values()) <= 0:
        return []
    first, last = min(sums, key=lambda s: (-sums[s], s[1] - s[0], s[0]))
    left = by_definition(scores[:first], shift)
    right = by_definition(scores[last:], shift + last)
    return [*left, (shift + first, shift + last), *right]


@given(st.lists(st.integers(-50, 50), max_size=14))
def test_maximal_segments_follow_the_definition(scores: list[int]) -> None:
    found = maximal_segments([float(score) for score in scores])
    # Segments of sum 0 next to another may be cut in more than one way.
    if all(sum(scores[a:b]) for a in range(len(scores)) for b in range(a + 1, len(scores) + 1)):
        assert found == by_definition(scores)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))


def test_the_papers_example() -> None:
    scores = [4, -5, 3, -3, 1, 2, -2, 2, -2, 1, 5]
    assert maximal_segments(scores) == [(0, 1), (2, 3), (4, 11)]


def credit_of(text: str, rewards: list[float]) -> Credit:
    words = text.split(" ")
    tokens = [words[0], *(" " + word for word in words[1:])]
    offsets, at = [], 0
    for token in tokens:
        offsets.append((at, at + len(token)))
        at += len(token)
    logps = torch.tensor(rewards)
    return Credit(
        prompt="", response=text, beta=1.0, token_ids=tuple(range(len(tokens))),
        tokens=tuple(tokens), offsets=tuple(offsets), logps=logps,
        ref_logps=torch.zeros(len(tokens)), policy_name="p", reference_name="r",
    )  # fmt: skip


def test_spans_of_a_wrong_number() -> None:
    credit = credit_of("it has 41 metres or so", [0.1, 0.0, -3.0, -1.5, 0.2, -0.1])
    [span] = credit.spans()
    assert (span.text, span.first, span.last) == (" 41 metres", 2, 4)
    assert credit.response[span.start : span.end] == span.text
    assert span.reward == pytest.approx(-4.5)
    assert credit.spans("liked", tolerance=0.0)[0].text == " or"


def test_spans_are_ordered_limited_and_bridge_calm_tokens() -> None:
    credit = credit_of("a b c d e f", [-1.0, 0.1, -1.0, 2.0, -5.0, 0.0])
    assert [span.text for span in credit.spans(tolerance=0.0)] == [" e", "a b c"]
    assert [span.text for span in credit.spans(tolerance=0.0, limit=1)] == [" e"]


def test_equal_models_have_no_spans() -> None:
    credit = credit_of("a b c", [0.0, 0.0, 0.0])
    assert credit.spans() == credit.spans("liked") == []
