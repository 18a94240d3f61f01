"""APO: by hand, and the direction in which each side is pushed."""

import math

import torch
from objective_batches import Draw, pair_of, random_pair

from tokenq.objectives import APODown, APOZero


def test_worked_by_hand() -> None:
    # rewards log 3 and log(1/4): sigmoids 3/4 and 1/5, of the difference 12/13
    batch = pair_of([[2 * math.log(3)]], [[-2 * math.log(4)]])
    torch.testing.assert_close(APOZero(beta=0.5)(batch)[0].item(), 0.25 + 0.2)
    torch.testing.assert_close(APODown(beta=0.5)(batch)[0].item(), 0.75 + 1 / 13)


def test_zero_raises_chosen_and_lowers_rejected() -> None:
    batch = random_pair(Draw(keep=1.0))
    gradients = torch.autograd.grad(APOZero()(batch)[0], [batch.chosen, batch.rejected])
    assert (gradients[0] < 0).all()
    assert (gradients[1] > 0).all()


def test_down_lowers_rejected_and_a_chosen_that_is_well_ahead() -> None:
    batch = pair_of([[3.0]], [[-8.0]])
    gradients = torch.autograd.grad(APODown(beta=1.0)(batch)[0], [batch.chosen, batch.rejected])
    assert gradients[0] > 0
    assert gradients[1] > 0
