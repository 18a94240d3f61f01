"""EXO: by hand, as a KL divergence, and the margin at which policy and label agree."""

import math

import pytest
import torch
from objective_batches import pair_of
from torch.distributions import Bernoulli, kl_divergence

from tokenq.objectives import EXO


def test_worked_by_hand() -> None:
    # margin log 3: p = 3/4, against labels of 3/4 and of 9/10
    batch = pair_of([[math.log(3)]], [[0.0]])
    torch.testing.assert_close(EXO(beta=1.0, label_smoothing=0.25)(batch)[0].item(), 0.0)
    expected = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)
    torch.testing.assert_close(EXO(beta=1.0, label_smoothing=0.1)(batch)[0].item(), expected)


def test_it_is_the_divergence_from_the_policy_to_the_label() -> None:
    batch = pair_of([[0.7], [-2.0]], [[-0.4], [1.0]])
    policy = Bernoulli(logits=0.3 * torch.tensor([1.1, -3.0], dtype=torch.float64))
    label = Bernoulli(torch.tensor(0.99, dtype=torch.float64))
    loss, _ = EXO(beta=0.3, label_smoothing=0.01)(batch)
    torch.testing.assert_close(loss, kl_divergence(policy, label).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.5, -0.1, math.nan])
def test_without_smoothing_there_is_no_divergence(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        EXO(label_smoothing=smoothing)
