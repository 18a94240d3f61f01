"""DPO-Positive: by hand, and the chosen likelihood that it does not give up."""

import math

import pytest
import torch
from objective_batches import Draw, pair_of, random_pair

from tokenq.objectives import DPO, DPOP


@pytest.mark.parametrize(("chosen", "argument"), [(1.0, 3.0), (-1.0, 1.0 - 2.0 * 1.0)])
def test_worked_by_hand(chosen: float, argument: float) -> None:
    loss, _ = DPOP(beta=0.5, dpop_lambda=2.0)(pair_of([[chosen]], [[-2.0]]))
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-0.5 * argument)))


def test_lambda_0_is_dpo() -> None:
    batch = random_pair(Draw())
    torch.testing.assert_close(DPOP(0.2, dpop_lambda=0.0)(batch)[0], DPO(0.2)(batch)[0])


def test_lowering_both_sides_together_is_no_way_out() -> None:
    """Of one margin, DPO does not care where it stands; DPOP does once chosen is below 0."""
    high, low = pair_of([[0.0]], [[-4.0]]), pair_of([[-3.0]], [[-7.0]])
    torch.testing.assert_close(DPO()(high)[0], DPO()(low)[0])
    assert DPOP()(low)[0] > DPOP()(high)[0] + 1


def test_the_penalty_is_on_the_response_not_on_its_tokens() -> None:
    assert DPOP()(pair_of([[-3.0, 4.0]], [[0.0]]))[0] == DPOP()(pair_of([[1.0]], [[0.0]]))[0]


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_lambda_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="dpop_lambda must be in"):
        DPOP(dpop_lambda=value)
