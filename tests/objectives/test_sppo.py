"""SPPO with hard labels: by hand, and its target for each side."""

import torch
from objective_batches import pair_of

from tokenq.objectives import SPPOHard


def test_worked_by_hand() -> None:
    # target 1 / (2 * 0.25) = 2: (3 - 2)^2 + (-0.5 + 2)^2
    loss, _ = SPPOHard(beta=0.25)(pair_of([[1.0, 2.0]], [[-0.5]]))
    torch.testing.assert_close(loss.item(), 3.25)


def test_the_minimum_says_where_each_side_is_to_be() -> None:
    assert SPPOHard(beta=0.1)(pair_of([[5.0]], [[-5.0]]))[0] == 0
    # the same margin elsewhere is not content
    assert SPPOHard(beta=0.1)(pair_of([[4.0]], [[-6.0]]))[0] == 2
