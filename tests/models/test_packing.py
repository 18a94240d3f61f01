"""Packing: integers in, integers out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenq.models.packing import Pack, pack_trees


def test_a_pair_worked_by_hand() -> None:
    (pack,) = pack_trees([[7, 8], [7, 8], [9]], [[1, 2, 3], [4], [5, 6]], token_budget=100)
    # 7 8 | 1 2 | (nothing of [4]: its only token is a target) and 9 | 5
    assert pack.input_ids.tolist() == [7, 8, 1, 2, 9, 5]
    assert pack.layout.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert pack.layout.trees.tolist() == [[0, 2, 4], [4, 5, 6]]
    assert pack.layout.responses.tolist() == [[2, 4], [5, 6]]
    assert pack.layout.segment.tolist() == [0, 0, 1, 1, 2, 3]
    assert pack.layout.prompt.tolist() == [0, 0, 0, 0, 2, 2]
    assert pack.targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert pack.target_index.tolist() == [1, 2, 3, 1, 4, 5]
    assert (pack.rows, pack.lengths, pack.layout.longest) == ((0, 1, 2), (3, 1, 2), 4)
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 1, 1],
        ]
    ).bool()
    assert torch.equal(pack.layout.dense_mask(), expected)
    assert pack.layout.dense_mask(window=2)[3].tolist() == [False, False, True, True, False, False]


def test_siblings_do_not_see_each_other() -> None:
    (pack,) = pack_trees([[1], [1]], [[2, 3], [4, 5]], token_budget=100)
    assert pack.layout.dense_mask().tolist() == [
        [True, False, False],
        [True, True, False],
        [True, False, True],
    ]


def test_equal_rows_are_computed_once_and_handed_to_each() -> None:
    (pack,) = pack_trees([[1], [1], [1]], [[2, 3], [4], [2, 3]], token_budget=100)
    assert pack.input_ids.tolist() == [1, 2]
    assert pack.targets.tolist() == [2, 3, 4]
    assert (pack.rows, pack.lengths, pack.distinct) == ((0, 2, 1), (2, 2, 1), (2, 1))
    assert pack.for_every_row(pack.targets).tolist() == [2, 3, 2, 3, 4]


@pytest.mark.parametrize(
    ("prompts", "responses", "problem"),
    [([[]], [[1]], "row 0: the prompt"), ([[1], [1]], [[1], []], "row 1: the response")],
)
def test_empty_sides_are_refused(
    prompts: list[list[int]], responses: list[list[int]], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        pack_trees(prompts, responses, 10)


def test_one_long_tree_is_split_and_a_single_row_may_exceed_the_budget() -> None:
    packs = pack_trees([[1, 2, 3]] * 5, [[4, 5, i] for i in range(5)], token_budget=7)
    assert [len(p.input_ids) for p in packs] == [7, 7, 5]
    (pack,) = pack_trees([[1] * 30], [[2] * 5], token_budget=7)
    assert len(pack.input_ids) == 34


ids = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=12), st.integers(1, 40))
def test_every_row_is_there_once_and_whole(
    rows: list[tuple[list[int], list[int]]], budget: int
) -> None:
    packs = pack_trees([p for p, _ in rows], [r for _, r in rows], budget)
    seen: dict[int, list[int]] = {}
    for pack in packs:
        offset = 0
        targets, index = map(pack.for_every_row, (pack.targets, pack.target_index))
        for row, length in zip(pack.rows, pack.lengths, strict=True):
            span = slice(offset, offset + length)
            assert targets[span].tolist() == rows[row][1]
            assert _path(pack, int(index[span][-1])) == rows[row][0] + rows[row][1][:-1]
            seen[row] = rows[row][1]
            offset += length
        assert len(pack.input_ids) <= budget or len(pack.distinct) == 1
    assert sorted(seen) == list(range(len(rows)))


def _path(pack: Pack, position: int) -> list[int]:
    """The ids that a position sees, in order."""
    return pack.input_ids[pack.layout.dense_mask()[position]].tolist()
