"""Length-normalised DPO: by hand, and repeating a response's tokens changes nothing."""

import math

import torch
from objective_batches import pair_of

from tokenq.objectives import DPO, LengthNormalisedDPO


def test_worked_by_hand() -> None:
    # means 1.5 and -0.5
    loss, metrics = LengthNormalisedDPO(beta=0.5)(pair_of([[1.0, 2.0]], [[-0.5]]))
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-1.0)))
    assert metrics["rewards/chosen"] == 1.5


def test_a_longer_response_has_no_larger_say() -> None:
    short, long = pair_of([[1.0]], [[-0.5]]), pair_of([[1.0] * 9], [[-0.5] * 2])
    objective = LengthNormalisedDPO()
    torch.testing.assert_close(objective(short)[0], objective(long)[0])
    torch.testing.assert_close(objective(short)[0], DPO(beta=5.0)(short)[0])
