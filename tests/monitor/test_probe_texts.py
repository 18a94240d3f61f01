"""Drawing pairs, and how the tokens of a probe lie."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
from probes import END, held_out, trained

from tokenq.monitor import probe_pairs
from tokenq.monitor.probe_texts import ProbeRows, fork, new_tokens_for
from tokenq.monitor.readings import ProbePair, ProbeResponse, ProbeSet


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt_ids": [1] * (1 + number), "chosen_ids": [number], "rejected_ids": [number, 2]}
        for number in range(count)
    ]


def test_a_draw_is_fixed_by_its_seed_and_in_order() -> None:
    found = probe_pairs(rows(100), "train", 10, seed=3)
    assert found == probe_pairs(datasets.Dataset.from_list(rows(100)), "train", 10, seed=3)
    numbers = [pair.row for pair in found]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 10
    assert found[0] == ProbePair(
        "train", numbers[0], [1] * (1 + numbers[0]), [numbers[0]], [numbers[0], 2]
    )
    assert numbers != [pair.row for pair in probe_pairs(rows(100), "train", 10, seed=4)]


def test_a_draw_is_even() -> None:
    counts = np.zeros(20)
    for seed in range(400):
        for pair in probe_pairs(rows(20), "held_out", 5, seed):
            counts[pair.row] += 1
    # Each row is drawn 100 times in expectation, with a standard deviation of 8.7.
    assert counts.min() > 60
    assert counts.max() < 140


def test_all_where_there_are_no_more() -> None:
    assert [pair.row for pair in probe_pairs(rows(4), "train", 10, seed=0)] == [0, 1, 2, 3]
    assert probe_pairs(rows(4), "train", 0, seed=0) == []
    assert probe_pairs([], "train", 3, seed=0) == []


def test_of_a_stream_the_first() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield from rows(5)

    assert [pair.row for pair in probe_pairs(endless(), "train", 7, seed=0)] == list(range(7))


def test_rows_that_are_no_pairs_or_too_long_are_passed_over() -> None:
    given = rows(6)
    given[1]["chosen_ids"] = []
    given[2]["prompt_ids"] = []
    # Row n has n + 1 tokens of prompt and an answer of 2.
    found = probe_pairs(given, "train", 6, seed=0, longest=7)
    assert [pair.row for pair in found] == [0, 3, 4]


def test_responses_may_be_twice_as_long_as_most_answers() -> None:
    def pair(length: int) -> ProbePair:
        return ProbePair("train", 0, [1], [1] * length, [1] * length)

    assert new_tokens_for([pair(20)] * 9 + [pair(500)]) <= 2 * 500
    assert new_tokens_for([pair(20)] * 19 + [pair(500)]) == 40
    assert new_tokens_for([pair(2)]) == 8
    assert new_tokens_for([pair(300)]) == 128


@pytest.mark.parametrize(("number", "place"), [(0, 1), (1, 0), (2, None)])
def test_forks(number: int, place: int | None) -> None:
    assert fork(held_out()[number]) == place


def test_rows_of_a_probe() -> None:
    pairs = [*held_out(), *trained()]
    responses = [ProbeResponse(1, [9, 8], False), ProbeResponse(0, [7, END], True)]
    probe_rows = ProbeRows(ProbeSet(pairs, responses, 2), [END])
    assert probe_rows.prompts[-2] == pairs[1].prompt
    assert probe_rows.forked == [0, 1, 3, 5]
    tokens = np.array(probe_rows.tokens)
    expected = [[21, 30, 50, END], [23, 32, 54, 71]]
    assert tokens[probe_rows.fork_positions].tolist() == expected
    assert tokens[probe_rows.span(2)].tolist() == [30, 31, END]
    counts = probe_rows.of_parts(np.ones(len(tokens)))
    # Of shared, first, later, end: chosen and rejected of pairs 0 and 5.
    assert counts[:, :, 0].tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]
    assert counts[:, :, 5].tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert counts.sum() == len(tokens) - 4
    sums = probe_rows.sums(tokens.astype(float))
    assert probe_rows.of_responses(sums).tolist() == [17, 9]
    assert probe_rows.of_sides(sums)[:, 1].tolist() == [63, 136]
    assert probe_rows.of_responses(probe_rows.means(tokens.astype(float))).tolist() == [8.5, 4.5]
