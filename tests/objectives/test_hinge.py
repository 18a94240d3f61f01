"""Hinge: a number worked by hand, and pairs that are far enough apart are left alone."""

import torch
from objective_batches import pair_of

from tokenq.objectives import Hinge


def test_worked_by_hand() -> None:
    # scores 1 + 2 = 3 and -1: 1 - 0.2 * 4 = 0.2
    loss, metrics = Hinge(beta=0.2)(pair_of([[1.0, 2.0]], [[-1.0]]))
    torch.testing.assert_close(loss.item(), 0.2)
    torch.testing.assert_close(metrics["rewards/margins"].item(), 0.8)


def test_only_pairs_within_the_margin_have_a_gradient() -> None:
    batch = pair_of([[4.0], [6.0]], [[0.0], [0.0]])
    loss, _ = Hinge(beta=0.2)(batch)
    (gradient,) = torch.autograd.grad(loss, batch.chosen)
    torch.testing.assert_close(gradient, torch.tensor([[-0.1], [0.0]]).double())
