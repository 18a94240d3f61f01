"""What a response's tokens tell: repetition, and which of the two answers it resembles."""

import math

import numpy as np
import pytest
import torch

from tokenq.monitor.readings import ProbePair, ProbeResponse
from tokenq.monitor.samples import WordVectors, likeness, repetition, seed_of


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0.0),
        ([1, 1], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 1, 1, 1], 1 / 2),
        ([1, 2, 3, 1, 2, 3], 1 / 4),
        ([1, 2, 1, 2, 1, 2, 1, 2], 4 / 6),
    ],
)
def test_repetition_is_the_share_of_3_grams_seen_before(ids: list[int], share: float) -> None:
    assert repetition(ids) == pytest.approx(share)


TABLE = torch.tensor([[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 0.0]])


def test_rare_tokens_weigh_more_and_lengths_of_embeddings_nothing() -> None:
    embed = WordVectors(TABLE, [[0, 1], [0, 2]])
    (vector,) = embed([[0, 1, 1, 3]])
    # Token 0 stands in both texts, 1 in one, 3 in none.
    assert vector.tolist() == pytest.approx([math.log(3) / 4, 2 * math.log(3 / 2) / 4, 0], abs=1e-6)


def test_a_response_is_like_the_answer_whose_words_it_has() -> None:
    pair = ProbePair("held_out", 0, [9], [0, 1], [0, 2])
    embed = WordVectors(TABLE, [pair.chosen, pair.rejected])
    responses = [ProbeResponse(0, ids, True) for ids in ([1], [2, 0], [1, 2], [0])]
    found = likeness(embed, [pair], responses)
    # In units of log(3/2) / 4 and along tokens 1 and 2, the answers lie at (2, 0) and (0, 2) around
    # (1, 1), the responses at (4, 0), (0, 2), (2, 2) and (0, 0).
    cosine = (3 * 1 + 1 * 1) / math.sqrt(10 * 2)
    assert found == pytest.approx([2 * cosine, -2, 0, 0], abs=1e-6)


def test_nothing_to_compare() -> None:
    pair = ProbePair("held_out", 0, [9], [0, 1], [0, 2])
    assert likeness(WordVectors(TABLE, []), [pair], []).shape == (0,)
    same = ProbePair("held_out", 0, [9], [0], [0])
    embed = WordVectors(TABLE, [same.chosen, same.rejected])
    assert not np.any(likeness(embed, [same], [ProbeResponse(0, [1], True)]))


def test_seeds_of_samples_differ_by_step_and_seed() -> None:
    seeds = {seed_of(seed, step) for seed in range(3) for step in range(50)}
    assert len(seeds) == 150
    assert min(seeds) >= 0
