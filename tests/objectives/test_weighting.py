"""LD-DPO and WPO: token and pair weights worked by hand, and what they leave alone."""

import math
from dataclasses import replace

import pytest
import torch
from objective_batches import Draw, random_pair

from tokenq.objectives import DPO, PairLogps, StepFeatures
from tokenq.objectives.weighting import desensitised, on_policy_weights


def test_tokens_beyond_the_shorter_response_count_alpha() -> None:
    # chosen has 2 real steps (the second column is masked), rejected 3
    chosen_mask = torch.tensor([[True, False, True]])
    rejected_mask = torch.tensor([[True, True, True, False]])
    zeros = torch.zeros_like
    chosen = torch.tensor([[1.0, 5.0, 2.0]])
    rejected = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    batch = PairLogps(chosen, rejected, zeros(chosen), zeros(rejected), chosen_mask, rejected_mask)
    left, right = desensitised(batch, chosen, rejected, alpha=0.5)
    assert left.tolist() == [[1.0, 5.0, 2.0]]
    assert right.tolist() == [[1.0, 2.0, 1.5, 2.0]]
    # margin: 3 - (1 + 2 + 1.5) = -1.5
    loss, metrics = DPO(beta=1.0, ld_alpha=0.5)(batch)
    assert math.isclose(loss, math.log1p(math.exp(1.5)), rel_tol=1e-6)
    assert metrics["rewards/rejected"] == 4.5


def test_ends_of_the_range_of_ld_alpha() -> None:
    batch = random_pair(Draw(keep=0.5))
    assert DPO(ld_alpha=1.0)(batch)[0] == DPO()(batch)[0]
    loss, _ = DPO(ld_alpha=0.0)(batch)
    gradients = torch.autograd.grad(loss, [batch.chosen, batch.rejected])
    counts = [(gradient != 0).sum(-1) for gradient in gradients]
    shorter = torch.minimum(batch.chosen_mask.sum(-1), batch.rejected_mask.sum(-1))
    assert torch.equal(counts[0], shorter)
    assert torch.equal(counts[1], shorter)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_ld_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="ld_alpha must be"):
        DPO(ld_alpha=alpha)


def pair_of_known_policies() -> PairLogps:
    """Chosen: p = 1/2 of a fair coin, twice. Rejected: p = 1/4 of (1/4, 3/4), once."""
    chosen = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
    rejected = torch.tensor([[0.25, 1.0]]).log().requires_grad_()
    return PairLogps(
        chosen, rejected, torch.zeros(1, 2), torch.zeros(1, 2),
        torch.tensor([[True, True]]), torch.tensor([[True, False]]),
        StepFeatures(collision=torch.tensor([[0.5, 0.5]]).log()),
        StepFeatures(collision=torch.tensor([[0.625, math.nan]]).log()),
    )  # fmt: skip


def test_on_policy_weights_by_hand() -> None:
    # chosen: (1/2) / (1/4 + 1/4) = 1; rejected: (1/4) / (1/16 + 9/16) = 0.4
    batch = pair_of_known_policies()
    weights = on_policy_weights(batch)
    torch.testing.assert_close(weights, torch.tensor([0.4]))
    assert not weights.requires_grad
    loss, _ = DPO(use_weighting=True)(batch)
    torch.testing.assert_close(loss, 0.4 * DPO()(batch)[0])


def test_weights_are_asked_for_only_where_they_are_used() -> None:
    assert DPO().needs == {"reference"}
    assert DPO(use_weighting=True).needs == {"reference", "collision"}
    bare = replace(pair_of_known_policies(), chosen_features=StepFeatures())
    assert DPO()(bare)[0].isfinite()
    with pytest.raises(ValueError, match="no step feature 'collision'"):
        DPO(use_weighting=True)(bare)


def test_a_batch_of_the_policys_own_samples_has_the_mean_weight_one_per_step() -> None:
    """E_pi[ pi(a) / sum_a pi(a)^2 ] = 1: what the weights are aligned to."""
    probabilities = torch.softmax(torch.randn(50, 7, dtype=torch.float64), -1)
    weights = probabilities / (probabilities**2).sum(-1, keepdim=True)
    torch.testing.assert_close((probabilities * weights).sum(-1), torch.ones(50).double())
