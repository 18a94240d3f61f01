"""NCA: by hand, and where it wants the reward of chosen to be."""

import math

import torch
from objective_batches import pair_of

from tokenq.objectives import NCA


def test_worked_by_hand() -> None:
    # rewards log 3 and -log 3: -log(3/4) - 1/2 log(1/4) - 1/2 log(3/4)
    batch = pair_of([[2 * math.log(3)]], [[-2 * math.log(3)]])
    expected = -1.5 * math.log(0.75) - 0.5 * math.log(0.25)
    torch.testing.assert_close(NCA(beta=0.5)(batch)[0].item(), expected)


def test_chosen_is_held_at_log_2_whatever_rejected_does() -> None:
    batch = pair_of([[math.log(2)]], [[-30.0]])
    loss, _ = NCA(beta=1.0)(batch)
    (gradient,) = torch.autograd.grad(loss, batch.chosen)
    assert abs(gradient.item()) < 1e-15
