"""Q-RM against numbers worked out by hand."""

import math

import pytest
import torch

from tokenq.objectives import QRM, PairLogps, StepFeatures


def pair(chosen: list[float], rejected: list[float]) -> PairLogps:
    """One pair with these logits; log-probabilities must not matter."""
    logits = [
        torch.tensor([[*values, 50.0]], dtype=torch.float64, requires_grad=True)
        for values in (chosen, rejected)
    ]
    nothing = [torch.full_like(values, torch.nan).detach() for values in logits]
    masks = [torch.arange(values.shape[1])[None] < values.shape[1] - 1 for values in logits]
    return PairLogps(*nothing, *nothing, *masks, *(StepFeatures(logits=each) for each in logits))


def test_by_hand() -> None:
    batch = pair([3.0, 5.0], [1.0, 2.0, 6.0])
    loss, metrics = QRM()(batch)
    margin = 0.2 * (4.0 - 3.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.0 - margin)))
    assert float(metrics["rewards/chosen"]) == pytest.approx(0.8)
    assert float(metrics["rewards/margins"]) == pytest.approx(margin)
    chosen, rejected = batch.chosen_features.logits, batch.rejected_features.logits
    grads = torch.autograd.grad(loss, [chosen, rejected])
    slope = 0.2 / (1 + math.exp(margin - 2.0))
    torch.testing.assert_close(grads[0], torch.tensor([[-slope / 2, -slope / 2, 0]]).double())
    torch.testing.assert_close(grads[1], torch.tensor([[slope / 3] * 3 + [0]]).double())


def test_it_asks_for_logits_only() -> None:
    assert QRM().needs == {"logits"}


@pytest.mark.parametrize(
    ("field", "value"), [("beta", 0.0), ("q_rm_gamma", -1.0), ("q_rm_gamma", math.nan)]
)
def test_bad_hyper_parameters(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be >=? 0, got"):
        QRM(**{field: value})
