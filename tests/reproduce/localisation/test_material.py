"""Pairs and texts as tokens: truth by characters, steps, sides that change places."""

import pytest
from tiny_training import tiny_tokenizer

from tokenq.reproduce.localisation.material import (
    Encoder,
    TrainingPair,
    differing_step,
    truth_of,
)


def test_a_token_is_wrong_if_one_of_its_letters_is() -> None:
    text = "a big cat"
    offsets = [(0, 1), (1, 5), (5, 7), (7, 9), (9, 9)]
    assert truth_of(offsets, text, [(2, 5)]) == [0, 1, 0, 0, 0]
    assert truth_of(offsets, text, [(6, 8)]) == [0, 0, 1, 1, 0]
    # The blank that a token begins with is no part of what it says.
    assert truth_of(offsets, text, [(0, 2)]) == [1, 0, 0, 0, 0]
    assert truth_of(offsets, text, []) == [0] * 5


def test_turned_pairs_have_the_wrong_label() -> None:
    pair = TrainingPair("p", "good", "bad", step=True)
    assert pair.turned() == TrainingPair("p", "bad", "good", step=True)
    assert pair.turned().turned() == pair


@pytest.mark.parametrize(
    ("sides", "numbers", "prompt", "kept"),
    [
        # They differ in their second step, and have a third one.
        (
            [[1, 2, 3, 4, 5], [1, 2, 9, 5]],
            [[0, 0, 1, 1, 2], [0, 0, 1, 2]],
            [7, 1, 2],
            [[3, 4], [9]],
        ),
        # In the middle of the first step.
        ([[1, 2, 5], [1, 3, 5]], [[0, 0, 1], [0, 0, 1]], [7], [[1, 2], [1, 3]]),
        # One is the other's beginning: a last token is left.
        ([[1, 2], [1, 2, 3]], [[0, 1], [0, 1, 1]], [7, 1], [[2], [2, 3]]),
    ],
)
def test_the_step_in_which_two_answers_differ(
    sides: list[list[int]], numbers: list[list[int]], prompt: list[int], kept: list[list[int]]
) -> None:
    assert differing_step([7], sides, numbers) == (prompt, kept)


def test_rows_hold_the_tokens_and_what_differs() -> None:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer)
    first, second = "It is dull. The plot shines.", "It is dull. The plot fails. Yes."
    whole, step = encoder.rows(
        [TrainingPair("Say ", first, second), TrainingPair("Say ", first, second, step=True)]
    )
    assert tokenizer.decode(whole["chosen_ids"]) == f"{first}<eos>"
    assert tokenizer.decode(whole["prompt_ids"]) == "Say "
    left = [
        token
        for token, edited in zip(whole["rejected_ids"], whole["rejected_edits"], strict=True)
        if not edited
    ]
    assert 0 < len(left) < len(whole["rejected_ids"])
    assert tokenizer.decode(step["prompt_ids"]) == "Say It is dull."
    assert tokenizer.decode(step["chosen_ids"]) == " The plot shines.<eos>"
    assert tokenizer.decode(step["rejected_ids"]) == " The plot fails."
