"""Diverse beam search against a plain implementation, and what groups of beams must have."""

import itertools
from typing import Any

import pytest
from sharp_models import sharp
from tabular_search import Case, random_case

from tokenq.errors import UserError
from tokenq.search import SearchResults, beam_search, diverse_beam_search

V = 24
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [20, 3, 21, 4, 9]]


def plain(
    case: Case, prompt: int, width: int, groups: int, penalty: float, length_penalty: float
) -> list[tuple[float, tuple[int, ...], int]]:
    """The algorithm with lists: every group in turn, everything sorted, early_stopping=False."""
    tree, table = case.tree, case.tables["policy"]
    beams = [[(0.0, ())] for _ in range(groups)]
    whole: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(groups)]
    done = [False] * groups
    for length in range(1, tree.horizon + 1):
        taken: list[int] = []
        for group in range(groups):
            if done[group]:
                continue
            options = []
            for score, tokens in beams[group]:
                row = table[tree.state(prompt, tokens)]
                for token in range(tree.vocabulary):
                    cost = penalty * taken.count(token)
                    options.append((score + row[token] - cost, (*tokens, token)))
            options.sort(key=lambda option: -option[0])
            going = []
            for place, (score, tokens) in enumerate(options[: 2 * width]):
                if tokens[-1] == tree.eos or length == tree.horizon:
                    if place < width:
                        whole[group].append((score / length**length_penalty, tokens))
                elif len(going) < width:
                    going.append((score, tokens))
            whole[group] = sorted(whole[group], key=lambda each: -each[0])[:width]
            taken += [tokens[-1] for _, tokens in going]
            beams[group] = going
            full = len(whole[group]) == width
            done[group] = not going or (
                full and going[0][0] / length**length_penalty <= whole[group][-1][0]
            )
    found = [(*each, group) for group in range(groups) for each in whole[group]]
    return sorted(found, key=lambda each: -each[0])


def said(results: SearchResults) -> list[list[tuple[list[int], float]]]:
    return [[(one.token_ids, one.score) for one in row] for row in results]


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_the_plain_algorithm_finds(seed: int) -> None:
    case = random_case(seed, vocabulary=4 + seed % 2, horizon=4)
    for (width, groups), penalty, length_penalty in itertools.product(
        ((1, 2), (1, 3), (2, 2), (2, 3), (3, 2)), (0.0, 0.4, 3.0), (1.0, 0.0)
    ):
        results = diverse_beam_search(
            case.models,
            case.prompts,
            width * groups,
            4,
            num_beam_groups=groups,
            diversity_penalty=penalty,
            length_penalty=length_penalty,
        )
        for prompt, row in enumerate(results):
            want = plain(case, prompt, width, groups, penalty, length_penalty)
            assert [tuple(one.token_ids) for one in row] == [each[1] for each in want]
            assert [one.details["group"] for one in row] == [each[2] for each in want]
            for one, (score, *_) in zip(row, want, strict=True):
                assert one.score == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_one_group_is_beam_search(early_stopping: Any) -> None:
    model = sharp("llama", V, 1)
    options: dict[str, Any] = {"early_stopping": early_stopping, "length_penalty": 2.0}
    ours = diverse_beam_search(model, PROMPTS, 4, 10, num_beam_groups=1, **options)
    assert said(ours) == said(beam_search(model, PROMPTS, 4, 10, **options))


def test_without_a_penalty_every_group_is_the_same_beam_search() -> None:
    model = sharp("llama", V, 2)
    ours = diverse_beam_search(model, PROMPTS, 6, 10, num_beam_groups=3, diversity_penalty=0)
    narrow = said(beam_search(model, PROMPTS, 2, 10))
    for row, want in zip(ours, narrow, strict=True):
        for group in range(3):
            theirs = [one for one in row if one.details["group"] == group]
            assert [one.token_ids for one in theirs] == [tokens for tokens, _ in want]
            assert [one.score for one in theirs] == pytest.approx([s for _, s in want], abs=1e-4)


def test_a_strong_penalty_lets_no_two_groups_begin_alike() -> None:
    model = sharp("llama", V, 3)
    results = diverse_beam_search(
        model,
        PROMPTS,
        4,
        10,
        num_beam_groups=4,
        diversity_penalty=1e4,
        min_new_tokens=2,
        num_return_sequences=4,
    )
    for row in results:
        assert len({one.token_ids[0] for one in row}) == 4
        assert min(one.score for one in row) > -1e3, "a group was charged for a free token"


def test_prompts_do_not_see_each_other() -> None:
    model = sharp("llama", V, 4)
    options: dict[str, Any] = {"num_beam_groups": 2, "diversity_penalty": 0.7}
    together = said(diverse_beam_search(model, PROMPTS, 4, 8, **options))
    for prompt, want in zip(PROMPTS[::-1], together[::-1], strict=True):
        (alone,) = said(diverse_beam_search(model, [prompt], 4, 8, **options))
        assert [tokens for tokens, _ in alone] == [tokens for tokens, _ in want]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beam_groups": 4}, "num_beam_groups is 4; accepted: a divisor of num_beams, 6"),
        ({"num_beam_groups": 0}, "num_beam_groups is 0; accepted: a divisor"),
        ({"diversity_penalty": -1.0}, "diversity_penalty is -1.0; accepted: 0 or more"),
        ({"num_return_sequences": 7}, "num_return_sequences is 7; accepted: 1 to 6"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        diverse_beam_search(sharp("llama", V, 1), PROMPTS, 6, **options)
