"""What every registered objective keeps: its fields, its metrics, and parts that add up."""

import dataclasses
import re

import pytest
import torch
from objective_batches import Draw, batch_for, policy_tensors, take_rows, without_features

from tokenq.objectives import OBJECTIVES

names = pytest.mark.parametrize("name", OBJECTIVES)


@names
def test_each_hyper_parameter_has_a_default_and_a_line_of_documentation(name: str) -> None:
    objective = OBJECTIVES[name]
    assert dataclasses.is_dataclass(objective)
    documentation = "\n".join(each.__doc__ or "" for each in objective.__mro__)
    for field in dataclasses.fields(objective):
        assert field.default is not dataclasses.MISSING, field.name
        assert re.search(rf"^    {field.name}: +\S", documentation, re.MULTILINE), field.name


@names
def test_the_loss_is_a_differentiable_number_and_metrics_are_not(name: str) -> None:
    objective = OBJECTIVES[name]()
    batch = batch_for(objective)
    loss, metrics = objective(batch)
    gradients = torch.autograd.grad(loss, policy_tensors(batch), allow_unused=True)
    assert loss.ndim == 0
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert metrics
    for value in metrics.values():
        assert value.ndim == 0
        assert not value.requires_grad


@names
def test_parts_of_a_batch_combine_exactly(name: str) -> None:
    objective = OBJECTIVES[name]()
    if objective.couples_rows:
        pytest.skip("its terms depend on other rows")
    whole = batch_for(objective, Draw(rows=9))
    parts = [take_rows(whole, rows) for rows in torch.arange(9).split([1, 3, 5])]
    weights = torch.stack([objective.weight(part) for part in parts])
    losses = torch.stack([objective(part)[0] for part in parts])
    torch.testing.assert_close((weights * losses).sum() / weights.sum(), objective(whole)[0])


@names
def test_the_weight_does_not_look_at_the_policy(name: str) -> None:
    objective = OBJECTIVES[name]()
    batch = batch_for(objective)
    before = objective.weight(batch)
    for tensor in policy_tensors(batch):
        tensor.data.mul_(1.7)
    assert torch.equal(objective.weight(batch), before)
    assert not before.requires_grad


@names
def test_it_is_called_with_no_more_than_it_needs(name: str) -> None:
    """A feature that is not in `needs` is never looked at."""
    objective = OBJECTIVES[name]()
    batch = batch_for(objective)
    loss, _ = objective(without_features(batch, keep=objective.needs))
    torch.testing.assert_close(loss, objective(batch)[0])
