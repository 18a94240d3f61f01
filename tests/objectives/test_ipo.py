"""IPO: summed and averaged by hand, and the margin at which it is content."""

import pytest
import torch
from objective_batches import pair_of

from tokenq.objectives import IPO


@pytest.mark.parametrize(
    ("length_normalize", "expected"),
    [(False, 0.25), (True, 1.0)],  # 3 - 0.5 - 2 = 0.5; 3/2 - 0.5 - 2 = -1
)
def test_worked_by_hand(length_normalize: bool, expected: float) -> None:
    objective = IPO(beta=0.25, length_normalize=length_normalize)
    loss, metrics = objective(pair_of([[1.0, 2.0]], [[0.5]]))
    torch.testing.assert_close(loss.item(), expected)
    torch.testing.assert_close(metrics["rewards/chosen"].item(), 0.75)


def test_the_minimum_is_at_a_finite_margin() -> None:
    batch = pair_of([[7.0]], [[2.0]])
    loss, _ = IPO(beta=0.1)(batch)
    assert loss == 0
    assert torch.autograd.grad(loss, batch.chosen)[0] == 0


def test_an_empty_response_has_the_score_0() -> None:
    loss, _ = IPO(beta=0.5)(pair_of([[2.0], [3.0]], [[], [1.0]]))
    torch.testing.assert_close(loss.item(), 1.0)
