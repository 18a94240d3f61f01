"""SePO against numbers worked out by hand, and its selection against sorting by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_batches import random_pair

from tokenq.objectives import PairLogps, SePO, SimPO, StepFeatures
from tokenq.objectives.sepo import greatest


def test_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0, -3.0, -4.0, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    zeros = torch.zeros_like(logps)
    batch = PairLogps(
        logps.clone().requires_grad_(),
        logps.clone().requires_grad_(),
        zeros,
        zeros,
        mask,
        mask,
        StepFeatures(rewards=torch.tensor([[0.1, 0.9, 0.5, 0.2, 9.0]])),
        StepFeatures(rewards=torch.tensor([[0.1, 0.9, -0.5, 0.2, -9.0]])),
    )
    # Half of 4 tokens: chosen 2 and 3 (-2, -3), rejected 3 and 1 (-3, -1), the masked one never.
    loss, metrics = SePO(beta=2.0, chosen_ratio=0.5, rejected_ratio=0.5)(batch)
    assert float(metrics["rewards/chosen"]) == pytest.approx(2 * -2.5)
    assert float(metrics["rewards/rejected"]) == pytest.approx(2 * -2.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(1.0)))
    grads = torch.autograd.grad(loss, [batch.chosen, batch.rejected])
    assert [bool(g) for g in grads[0][0]] == [False, True, True, False, False]
    assert [bool(g) for g in grads[1][0]] == [True, False, True, False, False]


def test_the_default_keeps_three_tokens_of_ten() -> None:
    rewards = torch.arange(10.0)[None]
    selected = greatest(rewards, torch.ones(1, 10, dtype=torch.bool), SePO().chosen_ratio)
    assert selected[0].nonzero().flatten().tolist() == [7, 8, 9]


def test_with_all_tokens_it_is_simpo_without_a_margin() -> None:
    batch = random_pair()
    ours = SePO(beta=1.5, chosen_ratio=1.0, rejected_ratio=1.0)(batch)[0]
    torch.testing.assert_close(ours, SimPO(beta=1.5, simpo_gamma=0.0)(batch)[0])


@given(
    rewards=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    ratio=st.floats(0.01, 1.0),
    data=st.data(),
)
def test_the_selection_is_the_head_of_a_sorted_list(
    rewards: list[int], ratio: float, data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards)))
    candidates = [i for i, keep in enumerate(kept) if keep]
    count = max(1, math.floor(ratio * len(candidates)))
    want = sorted(candidates, key=lambda i: (-rewards[i], i))[:count]
    got = greatest(torch.tensor([rewards]).float(), torch.tensor([kept]), ratio)
    assert got[0].nonzero().flatten().tolist() == sorted(want)


@pytest.mark.parametrize(
    ("field", "value"), [("beta", 0.0), ("chosen_ratio", 0.0), ("rejected_ratio", 1.1)]
)
def test_bad_hyper_parameters(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got"):
        SePO(**{field: value})
