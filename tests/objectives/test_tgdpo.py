"""TGDPO against numbers worked out by hand."""

import math

import pytest
import torch
from objective_batches import HOSTILE, assert_finite, batch_for, random_pair

from tokenq.objectives import DPO, TGDPO, PairLogps, StepFeatures


def pair(chosen_rewards: list[float], rejected_rewards: list[float]) -> PairLogps:
    """One pair with log-ratios (1, -0.5) and (0.5,), each followed by a masked step."""
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    return PairLogps(
        torch.tensor([[1.0, -0.5, 9.0]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[0.5, 9.0]], dtype=torch.float64, requires_grad=True),
        zeros,
        zeros[:, :2],
        torch.tensor([[True, True, False]]),
        torch.tensor([[True, False]]),
        StepFeatures(rewards=torch.tensor([[*chosen_rewards, 9.0]], dtype=torch.float64)),
        StepFeatures(rewards=torch.tensor([[*rejected_rewards, 9.0]], dtype=torch.float64)),
    )


def test_by_hand() -> None:
    # Weights 1 + 0.5 * (0.4, -0.2) = (1.2, 0.9) and 1 - 0.5 * 0.6 = 0.7; beta 2.
    chosen, rejected = 2 * (1.2 * 1.0 - 0.9 * 0.5), 2 * 0.7 * 0.5
    batch = pair([0.4, -0.2], [0.6])
    loss, metrics = TGDPO(beta=2.0, tgdpo_alpha=0.5)(batch)
    assert loss.item() == pytest.approx(math.log1p(math.exp(rejected - chosen)))
    assert float(metrics["rewards/chosen"]) == pytest.approx(chosen)
    assert float(metrics["rewards/rejected"]) == pytest.approx(rejected)
    grads = torch.autograd.grad(loss, [batch.chosen, batch.rejected])
    # The gradients of two tokens are as their weights.
    assert float(grads[0][0, 0] / grads[0][0, 1]) == pytest.approx(1.2 / 0.9)
    assert float(-grads[1][0, 0] / grads[0][0, 1]) == pytest.approx(0.7 / 0.9)


def test_no_weight_turns_a_preference_round() -> None:
    batch = pair([-100.0, 0.0], [100.0])
    loss, metrics = TGDPO(beta=1.0, min_weight=0.01)(batch)
    assert float(metrics["rewards/chosen"]) == pytest.approx(0.01 * 1.0 - 0.5)
    assert float(metrics["rewards/rejected"]) == pytest.approx(0.01 * 0.5)
    grads = torch.autograd.grad(loss, [batch.chosen, batch.rejected])
    assert (grads[0] <= 0).all()
    assert (grads[1] >= 0).all()


def test_without_rewards_or_alpha_it_is_dpo() -> None:
    torch.testing.assert_close(
        TGDPO()(pair([0.0, 0.0], [0.0]))[0], DPO()(pair([0.0, 0.0], [0.0]))[0]
    )
    batch = random_pair()
    torch.testing.assert_close(TGDPO(tgdpo_alpha=0.0)(batch)[0], DPO()(batch)[0])


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strong_guide_is_finite(case: str) -> None:
    objective = TGDPO(tgdpo_alpha=50.0)
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@pytest.mark.parametrize(
    ("field", "value"), [("beta", -1.0), ("tgdpo_alpha", -0.1), ("min_weight", 0)]
)
def test_bad_hyper_parameters(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be >=? 0, got"):
        TGDPO(**{field: value})
