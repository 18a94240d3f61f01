"""SimPO and AlphaPO: numbers worked by hand, TRL's own loss, the exact optimum on two answers.

Intended differences from TRL: none where both are defined. A response without tokens has the mean
log-probability 0 where TRL divides 0 by 0, and AlphaPO's exponential is straight above an exponent
of 25 where TRL's grows until it overflows.
"""

import math
import random

import pytest
import torch
import trl_other_trainers as peer
from bandit import compared
from objective_batches import HOSTILE, assert_finite, batch_for

from tokenq.objectives import AlphaPO, PairLogps, SimPO
from tokenq.objectives.f_divergence import LARGEST_EXPONENT
from tokenq.objectives.simpo import shaped_reward

SEEDS = pytest.mark.parametrize("seed", range(12))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def by_hand() -> PairLogps:
    """Chosen: mean of -1 and -3 is -2. Rejected: -4, its second step masked."""
    zeros = torch.zeros(1, 2)
    return PairLogps(
        torch.tensor([[-1.0, -3.0]]), torch.tensor([[-4.0, -9.0]]), zeros, zeros,
        torch.tensor([[True, True]]), torch.tensor([[True, False]]),
    )  # fmt: skip


def test_worked_by_hand() -> None:
    loss, metrics = SimPO(beta=2.0, simpo_gamma=1.0)(by_hand())
    assert math.isclose(loss, math.log(1 + math.exp(-3)), rel_tol=1e-6)  # 2 * (-2 + 4) - 1
    assert metrics["rewards/chosen"] == -4
    assert metrics["rewards/rejected"] == -8
    smoothed, _ = SimPO(beta=2.0, simpo_gamma=1.0, label_smoothing=0.25)(by_hand())
    expected = 0.75 * math.log(1 + math.exp(-3)) + 0.25 * math.log(1 + math.exp(3))
    assert math.isclose(smoothed, expected, rel_tol=1e-6)


def test_alphapo_worked_by_hand() -> None:
    """With alpha = 1/2: r(chosen) = 2 (1 - e^1) and r(rejected) = 2 (1 - e^2), times beta 1/2."""
    loss, metrics = AlphaPO(beta=0.5, alpha=0.5, simpo_gamma=0.25)(by_hand())
    margin = math.exp(2) - math.exp(1) - 0.25
    assert math.isclose(loss, math.log(1 + math.exp(-margin)), rel_tol=1e-5)
    assert math.isclose(metrics["rewards/chosen"], 1 - math.exp(1), rel_tol=1e-6)


@SEEDS
@DTYPES
def test_simpo_is_trls(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    settings = {
        "beta": draw.uniform(0.1, 5),
        "simpo_gamma": draw.uniform(0, 2),
        "label_smoothing": draw.choice([0.0, 0.1]),
    }
    pairs = peer.random_pairs(seed, dtype)
    ours, _ = SimPO(**settings)(pairs)
    theirs = peer.cpo(pairs, loss_type="simpo", cpo_alpha=0.0, **settings)
    peer.assert_equal_with_gradients(ours, theirs, [pairs.chosen, pairs.rejected])


@SEEDS
@DTYPES
def test_alphapo_is_trls(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    settings = {
        "beta": draw.uniform(0.1, 3),
        "alpha": draw.choice([-0.5, 0.0, 0.05, 0.25, 0.5]),
        "simpo_gamma": draw.uniform(0, 1),
        "label_smoothing": draw.choice([0.0, 0.1]),
    }
    pairs = peer.random_pairs(seed, dtype)
    ours, _ = AlphaPO(**settings)(pairs)
    theirs = peer.cpo(pairs, loss_type="simpo", cpo_alpha=0.0, **settings)
    peer.assert_equal_with_gradients(ours, theirs, [pairs.chosen, pairs.rejected])


def test_alpha_near_zero_is_simpo() -> None:
    pairs = peer.random_pairs(3, torch.float64)
    near, _ = AlphaPO(beta=2.0, alpha=1e-5, simpo_gamma=0.5)(pairs)
    torch.testing.assert_close(near, SimPO(beta=2.0, simpo_gamma=0.5)(pairs)[0], rtol=1e-4, atol=0)


def test_the_shaped_reward_is_smooth_where_it_becomes_straight() -> None:
    edge = -LARGEST_EXPONENT / 0.25
    log_prob = torch.tensor([edge - 1e-6, edge + 1e-6, 10 * edge], dtype=torch.float64)
    log_prob.requires_grad_()
    rewards = shaped_reward(log_prob, 0.25)
    (slope,) = torch.autograd.grad(rewards.sum(), log_prob)
    torch.testing.assert_close(rewards[0], rewards[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(slope[0], slope[1], rtol=1e-5, atol=0)
    assert slope[2] == slope[0]


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_the_optimum_on_two_answers(gamma: float) -> None:
    """With x = log pi_1/pi_2 and a preference of q for the first, the gradient is 0 where

    q sigmoid(gamma - beta x) = (1 - q) sigmoid(gamma + beta x)

    and for gamma = 0 that is x = log(q / (1 - q)) / beta, whatever the reference.
    """
    beta, q = 2.0, 0.8
    objective = SimPO(beta=beta, simpo_gamma=gamma)
    log_policy = compared(objective, q)
    x = log_policy[0] - log_policy[1]
    left, right = q * torch.sigmoid(gamma - beta * x), (1 - q) * torch.sigmoid(gamma + beta * x)
    assert math.isclose(left, right, abs_tol=1e-9)
    if gamma == 0:
        assert math.isclose(x, math.log(q / (1 - q)) / beta, abs_tol=1e-8)


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.25, 4.0])
def test_hostile_batches_with_other_shapes(case: str, alpha: float) -> None:
    objective = AlphaPO(alpha=alpha, label_smoothing=0.1)
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"simpo_gamma": -0.1}, "simpo_gamma must be >= 0, got -0.1"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got 0.5"),
    ],
)
def test_hyper_parameters_out_of_range(settings: dict[str, float], message: str) -> None:
    for class_ in (SimPO, AlphaPO):
        with pytest.raises(ValueError, match=message):
            class_(**settings)


def test_alpha_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number, got nan"):
        AlphaPO(alpha=math.nan)
