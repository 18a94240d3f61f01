"""Hostile batches, for every objective: finite loss, metrics and gradients, or a ValueError.

An objective with hyper-parameters that change its formula repeats `assert_finite` over `HOSTILE`
in its own test file.
"""

import contextlib

import pytest
import torch
from objective_batches import HOSTILE, Draw, assert_finite, batch_for, policy_tensors

from tokenq.objectives import OBJECTIVES

names = pytest.mark.parametrize("name", OBJECTIVES)


@names
@pytest.mark.parametrize("seed", range(2))
def test_an_ordinary_batch_is_never_refused(name: str, seed: int) -> None:
    objective = OBJECTIVES[name]()
    assert_finite(objective, batch_for(objective, Draw(seed=seed)))


@names
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches_are_finite_or_refused(name: str, case: str) -> None:
    objective = OBJECTIVES[name]()
    batch = batch_for(objective, HOSTILE[case])
    with contextlib.suppress(ValueError):
        assert_finite(objective, batch)


@names
def test_what_is_masked_does_not_matter_even_if_it_is_not_finite(name: str) -> None:
    objective = OBJECTIVES[name]()
    results = []
    for poison in (False, True):
        batch = batch_for(objective, Draw(poison=poison))
        loss, _ = objective(batch)
        tensors = policy_tensors(batch)
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        results.append([loss, *gradients])
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(poisoned, clean)
