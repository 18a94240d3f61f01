"""Mass at a fork, worked out by hand."""

import math

import pytest
import torch
from torch import nn

from tokenq.models.head import Head, Predictions
from tokenq.monitor.forks import Moved, moved_mass

# Token 0 is chosen, 1 rejected; 2 lies at the chosen one, 3 opposite it, 4 between both, 5 opposite
# that. Besides, all have something in common, which says nothing of any.
ROWS = [[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [-3.0, 0.0], [4.0, 4.0], [-6.0, -6.0]]
TABLE = torch.tensor(ROWS, dtype=torch.float64) + torch.tensor([32.0, -16.0])
REFERENCE = [0.4, 0.2, 0.1, 0.1, 0.1, 0.1]


def moved(policy: list[float], gains: int = 5) -> Moved:
    """One fork, whose state is the one number 1, so that a head's column is its logits."""

    def head(chances: list[float]) -> Head:
        module = nn.Linear(1, 6, bias=False).double()
        module.weight.data[:, 0] = torch.tensor([math.log(chance) for chance in chances])
        return Head(module)

    state = torch.ones(1, 1, dtype=torch.float64)
    reference = Predictions(head(REFERENCE), state)
    return moved_mass(head(policy), state, reference, torch.tensor([[0, 1]]), TABLE, gains)


def test_where_the_mass_went() -> None:
    found = moved([0.3, 0.1, 0.25, 0.05, 0.2, 0.1])
    assert found.other[0] == pytest.approx(0.15 - 0.05 + 0.1)
    # Token 3 has cosine -1 with the chosen and 0 with the rejected token: nearer to the latter.
    assert found.toward[0] == pytest.approx(0.15 + 0.05)


def test_what_lies_between_both_counts_for_neither() -> None:
    found = moved([0.3, 0.1, 0.1, 0.1, 0.15, 0.25])
    assert found.other[0] == pytest.approx(0.2)
    assert found.toward[0] == pytest.approx(0, abs=1e-12)


def test_gains_are_the_tokens_that_grew_greatest_first() -> None:
    (gains,) = moved([0.5, 0.05, 0.05, 0.1, 0.25, 0.05]).gains
    assert [token for token, _, _ in gains] == [4, 0]
    assert gains[0][1:] == pytest.approx((0.1, 0.25))
    assert gains[1][1:] == pytest.approx((0.4, 0.5))
    assert [len(row) for row in moved([0.5, 0.05, 0.05, 0.1, 0.25, 0.05], gains=1).gains] == [1]
    assert moved([0.5, 0.05, 0.05, 0.1, 0.25, 0.05], gains=0).gains == [[]]
