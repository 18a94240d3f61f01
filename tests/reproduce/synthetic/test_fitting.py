"""Tiny policies: samples, schedules, references, and that training does what it should."""

import copy
from dataclasses import replace

import pytest
import torch

from tokenq.objectives import DPO
from tokenq.reproduce.synthetic.fitting import (
    AveragedReference,
    FixedReference,
    Pairs,
    Schedule,
    fit_pairs,
    fit_responses,
    pair_logps,
)
from tokenq.reproduce.synthetic.policies import sample, scores, sums, tiny_policy

VOCABULARY = 12
PAIRS = Pairs(
    prompts=[[2, 3], [2, 4], [2, 5], [2, 6]],
    chosen=[[7, 7, 1], [8, 1], [7, 8, 7, 1], [8, 8, 1]],
    rejected=[[9, 1], [10, 9, 1], [9, 9, 9, 1], [10, 1]],
)


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule(steps=100, batch_size=4, learning_rate=1.0)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(9) == pytest.approx(0.91)
    assert schedule.rate(50) == pytest.approx(0.5)
    assert schedule.rate(99) == pytest.approx(0.01)


def test_supervised_training_is_learned_and_repeatable() -> None:
    prompts, responses = PAIRS.prompts * 4, PAIRS.chosen * 4
    schedule = Schedule(steps=40, batch_size=8, learning_rate=1e-2)
    models = [tiny_policy(VOCABULARY, 0) for _ in range(2)]
    for model in models:
        fit_responses(model, prompts, responses, schedule, 5)
    first, second = (torch.cat(scores(model, prompts, responses)) for model in models)
    assert torch.equal(first, second)
    assert first.exp().min() > 0.7
    assert sample(models[0], PAIRS.prompts, 6, 0) == PAIRS.chosen


def test_samples_end_at_eos_or_at_the_limit_and_leave_the_generator_alone() -> None:
    model = tiny_policy(VOCABULARY, 0)
    before = torch.get_rng_state()
    rows = sample(model, [[2, 3]] * 40, 5, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert rows == sample(model, [[2, 3]] * 40, 5, seed=3)
    assert rows != sample(model, [[2, 3]] * 40, 5, seed=4)
    assert all(row.index(1) == len(row) - 1 if 1 in row else len(row) == 5 for row in rows)
    assert any(1 in row for row in rows)
    assert any(1 not in row for row in rows)


def test_samples_follow_the_model() -> None:
    """Frequency of the first token against its probability."""
    model = tiny_policy(VOCABULARY, 1)
    rows = sample(model, [[2, 3]] * 3000, 1, seed=0)
    probability = float(scores(model, [[2, 3]], [[7]])[0].exp())
    frequency = sum(row == [7] for row in rows) / len(rows)
    assert frequency == pytest.approx(probability, abs=4 * (probability / 3000) ** 0.5)


def test_the_batch_of_an_objective_is_the_models_scores() -> None:
    model, other = tiny_policy(VOCABULARY, 0), tiny_policy(VOCABULARY, 1)
    pairs = replace(
        PAIRS,
        chosen_edits=[[True] + [False] * (len(ids) - 1) for ids in PAIRS.chosen],
        rejected_edits=[[False] * len(ids) for ids in PAIRS.rejected],
    )
    batch = pair_logps(model, pairs, FixedReference.of(other, pairs), [2, 0])
    wanted = sums(scores(model, PAIRS.prompts, PAIRS.chosen))[[2, 0]]
    ref = sums(scores(other, PAIRS.prompts, PAIRS.rejected))[[2, 0]]
    torch.testing.assert_close(batch.chosen_side.log_probs.sum(-1), wanted)
    torch.testing.assert_close(batch.ref_rejected.sum(-1), ref)
    assert batch.chosen_features.edits is not None
    assert batch.chosen_features.edits.sum(-1).tolist() == [1, 1]
    assert batch.chosen_mask.sum(-1).tolist() == [4, 3]


def test_dpo_separates_the_pairs() -> None:
    start = tiny_policy(VOCABULARY, 0)
    policy = copy.deepcopy(start)
    schedule = Schedule(steps=20, batch_size=4, learning_rate=1e-2)
    steps = fit_pairs(policy, PAIRS, DPO(), FixedReference.of(start, PAIRS), schedule, 0)
    assert list(steps) == list(range(1, 21))
    gap = sums(scores(policy, PAIRS.prompts, PAIRS.chosen)) - sums(
        scores(policy, PAIRS.prompts, PAIRS.rejected)
    )
    assert gap.min() > 3


def test_an_averaged_reference_goes_part_of_the_way_every_few_steps() -> None:
    start, policy = tiny_policy(VOCABULARY, 0), tiny_policy(VOCABULARY, 1)
    reference = AveragedReference(copy.deepcopy(start), PAIRS, mixup=0.25, every=2)
    reference.follow(policy, 1)
    assert all(map(torch.equal, reference.model.parameters(), start.parameters()))
    reference.follow(policy, 2)
    for own, old, new in zip(
        reference.model.parameters(), start.parameters(), policy.parameters(), strict=True
    ):
        torch.testing.assert_close(own, 0.75 * old + 0.25 * new)
    chosen, rejected = reference.logps([1, 3])
    assert [len(row) for row in chosen] == [2, 3]
    torch.testing.assert_close(
        rejected, scores(reference.model, [[2, 4], [2, 6]], [PAIRS.rejected[1], PAIRS.rejected[3]])
    )


def test_a_pass_over_the_rows_takes_each_once() -> None:
    seen: list[int] = []

    class Watching(FixedReference):
        def logps(self, rows):  # type: ignore[no-untyped-def]
            seen.extend(rows)
            return super().logps(rows)

    model = tiny_policy(VOCABULARY, 0)
    fixed = FixedReference.of(model, PAIRS)
    schedule = Schedule(steps=4, batch_size=2, learning_rate=1e-4)
    for _ in fit_pairs(model, PAIRS, DPO(), Watching(*fixed.sides), schedule, 7):
        pass
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]
