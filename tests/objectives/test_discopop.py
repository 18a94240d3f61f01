"""DiscoPOP: by hand, the two losses that it goes between, and its overflow that is none."""

import math

import pytest
import torch
from objective_batches import pair_of

from tokenq.objectives import DiscoPOP


def test_worked_by_hand() -> None:
    # margin log 3, tau 1/2: weight sigmoid(log 9) = 0.9
    loss, _ = DiscoPOP(beta=1.0, discopop_tau=0.5)(pair_of([[math.log(3)]], [[0.0]]))
    torch.testing.assert_close(loss.item(), 0.1 * -math.log(0.75) + 0.9 / 3)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(2.0, math.exp(-2.0)), (-2.0, math.log1p(math.exp(2.0))), (-1e4, 1e4), (1e4, 0.0)],
)
def test_exponential_above_0_and_logistic_below(margin: float, expected: float) -> None:
    loss, _ = DiscoPOP(beta=1.0)(pair_of([[margin]], [[0.0]]))
    torch.testing.assert_close(loss.item(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.5, math.nan])
def test_tau_out_of_range(tau: float) -> None:
    with pytest.raises(ValueError, match="discopop_tau must be in"):
        DiscoPOP(discopop_tau=tau)
