"""Portions of tokenised pairs."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tokenq.data.windows import pair_windows


def row(prompt: int, chosen: int, rejected: int) -> dict[str, Any]:
    return {
        "prompt_ids": [0] * prompt,
        "chosen_ids": [0] * chosen,
        "rejected_ids": [0] * rejected,
    }


def test_a_window_closes_with_the_row_that_fills_it() -> None:
    rows = [row(1, 1, 1), row(2, 2, 3), row(0, 10, 0), row(1, 0, 0)]
    assert list(pair_windows(rows, 10)) == [rows[:2], rows[2:3], rows[3:]]
    assert list(pair_windows([], 10)) == []


@given(st.lists(st.builds(row, *[st.integers(0, 9)] * 3)), st.integers(1, 40))
def test_windows_hold_every_row_in_order_and_no_more_than_needed(
    rows: list[dict[str, Any]], tokens: int
) -> None:
    windows = list(pair_windows(rows, tokens))
    assert [each for window in windows for each in window] == rows
    sizes = [[sum(map(len, each.values())) for each in window] for window in windows]
    assert all(sum(window[:-1]) < tokens for window in sizes)
    assert all(sum(window) >= tokens for window in sizes[:-1])
