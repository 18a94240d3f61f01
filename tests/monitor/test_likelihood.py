"""Answers divided into what both share, the first difference, the rest and the end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenq.monitor.likelihood import PARTS, answer_parts, likelihood_split

EOS = 9
ids = st.lists(st.integers(0, 8), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("answer", "other", "expected"),
    [
        ([1, 2, 3, EOS], [1, 2, 4, EOS], "shared shared first end"),
        ([1, 2, 3, 4, EOS], [1, 5], "shared first later later end"),
        ([1, EOS], [1, 2, EOS], "shared end"),
        ([1, 2], [1, 2, 3], "shared shared"),
        ([1, 2, 3], [1, 2], "shared shared first"),
        ([1, 2, EOS], [1, 2, EOS], "shared shared end"),
        ([EOS, 1], [1], "first later"),
    ],
)
def test_parts(answer: list[int], other: list[int], expected: str) -> None:
    assert [PARTS[part] for part in answer_parts(answer, other, {EOS})] == expected.split()


@given(ids, ids, st.booleans())
def test_parts_add_up(answer: list[int], other: list[int], ended: bool) -> None:
    answer = [*answer, EOS] if ended else answer
    parts = answer_parts(answer, other, {EOS})
    logps = -torch.arange(1.0, len(answer) + 1)
    ref_logps = -2 * torch.arange(1.0, len(answer) + 1)
    split = likelihood_split(logps, ref_logps, parts)
    assert sum(split.tokens.values()) == len(answer)
    assert split.tokens["end"] == ended
    assert sum(split.logps.values()) == pytest.approx(float(logps.sum()))
    rewards = split.rewards(beta=0.5)
    assert sum(rewards.values()) == pytest.approx(0.5 * float((logps - ref_logps).sum()))


def test_sums_are_those_of_each_part() -> None:
    parts = answer_parts([1, 2, 3, 4, EOS], [1, 2, 5], {EOS})
    logps = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0])
    split = likelihood_split(logps, torch.zeros(5), parts)
    assert split.logps == {"shared": -3.0, "first": -4.0, "later": -8.0, "end": -16.0}
    assert split.tokens == {"shared": 2, "first": 1, "later": 1, "end": 1}
