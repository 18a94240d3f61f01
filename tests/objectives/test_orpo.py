"""ORPO: numbers worked by hand, TRL's own loss, the exact optimum on two answers.

Intended differences from TRL: the likelihood term covers the response only, each response a mean
over its tokens, where TRL takes all tokens of prompt and response of a micro-batch at once; TRL's
without the prompt is the odds-ratio part plus SFT. TRL computes odds in fp32 whatever the type of
the log-probs, and gives inf or NaN at a probability of 1.
"""

import math
import random

import pytest
import torch
import trl_other_trainers as peer
from bandit import compared
from objective_batches import HOSTILE, assert_finite, batch_for

from tokenq.objectives import ORPO, SFT, PairLogps
from tokenq.objectives.orpo import log_odds

SEEDS = pytest.mark.parametrize("seed", range(12))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture
def trl_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep TRL's cast of its inputs to fp32 from hiding what lies below 1e-7."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.is_floating_point() else 1.0 * x)


def test_worked_by_hand() -> None:
    """Mean probabilities 1/2 and 1/4: odds 1 and 1/3, their ratio 3, sigmoid(log 3) = 3/4."""
    half, quarter = math.log(0.5), math.log(0.25)
    zeros = torch.zeros(1, 2)
    pairs = PairLogps(
        torch.tensor([[half - 1, half + 1]]), torch.tensor([[quarter, -9.0]]), zeros, zeros,
        torch.tensor([[True, True]]), torch.tensor([[True, False]]),
    )  # fmt: skip
    loss, metrics = ORPO(beta=0.2)(pairs)
    assert math.isclose(loss, math.log(2) - 0.2 * math.log(0.75), rel_tol=1e-6)
    assert math.isclose(metrics["nll_loss"], math.log(2), rel_tol=1e-6)
    assert math.isclose(metrics["log_odds_ratio"], math.log(0.75), rel_tol=1e-6)
    assert math.isclose(metrics["log_odds_chosen"], math.log(3), rel_tol=1e-6)
    assert math.isclose(metrics["rewards/rejected"], 0.2 * quarter, rel_tol=1e-6)


@SEEDS
@DTYPES
@pytest.mark.parametrize("shape", [{"rows": 1}, {"length": 4}], ids=["one pair", "equal lengths"])
@pytest.mark.usefixtures("trl_in_float64")
def test_it_is_trls_where_the_two_means_agree(
    seed: int, dtype: torch.dtype, shape: dict[str, int]
) -> None:
    beta = random.Random(seed).uniform(0.05, 2)
    pairs = peer.random_pairs(seed, dtype, **shape)
    inputs = [pairs.chosen, pairs.rejected]
    peer.assert_equal_with_gradients(ORPO(beta)(pairs)[0], peer.orpo(pairs, beta), inputs)


@SEEDS
@DTYPES
@pytest.mark.usefixtures("trl_in_float64")
def test_the_odds_ratio_part_is_always_trls(seed: int, dtype: torch.dtype) -> None:
    beta = random.Random(seed).uniform(0.05, 2)
    pairs = peer.random_pairs(seed, dtype)
    loss, metrics = ORPO(beta)(pairs)
    chosen = pairs.chosen_side
    by_response = -(chosen.log_probs.sum(-1) / chosen.lengths).mean()
    ours = loss - by_response + SFT()(chosen)[0]
    theirs = peer.orpo(pairs, beta)
    peer.assert_equal_with_gradients(ours, theirs, [pairs.chosen, pairs.rejected])
    torch.testing.assert_close(metrics["nll_loss"], by_response.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_log_odds_near_a_probability_of_one_and_of_zero(dtype: torch.dtype) -> None:
    log_prob = torch.tensor([-1e-6, -1e4, 0.0], dtype=dtype, requires_grad=True)
    near_one, near_zero, one = log_odds(log_prob).tolist()
    assert math.isclose(near_one, math.log(1e6), rel_tol=1e-6)  # p / (1 - p) = 1e6 - 1/2
    assert near_zero == -1e4
    assert math.isclose(one, -math.log(torch.finfo(dtype).eps), rel_tol=1e-6)
    (slope,) = torch.autograd.grad(log_odds(log_prob).sum(), log_prob)
    assert math.isclose(slope[0], 1e6, rel_tol=1e-5)  # 1 / (1 - p)
    assert slope[1] == 1
    assert slope[2] == 0


def test_the_optimum_on_two_answers() -> None:
    """With p the probability of the first answer, x its logit, and a preference of q for it,

    the log of the odds ratio is 2x, and (p - q) + 2 beta (sigmoid(2x) - q) = 0.
    """
    beta, q = 0.7, 0.8
    objective = ORPO(beta)
    log_policy = compared(objective, q)
    p, x = log_policy[0].exp(), log_policy[0] - log_policy[1]
    assert abs((p - q) + 2 * beta * (torch.sigmoid(2 * x) - q)) < 1e-9
    assert p < q  # the odds ratio alone would stop at 2x = log(q / (1 - q))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str) -> None:
    assert_finite(ORPO(beta=2.0), batch_for(ORPO, HOSTILE[case]))


def test_a_response_of_probability_one_is_finite_in_both_places() -> None:
    sure = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    unsure = torch.full((1, 2), -1.0, requires_grad=True)
    for chosen, rejected in ((sure, unsure), (unsure, sure), (sure, sure)):
        pairs = PairLogps(chosen, rejected, mask * 0.0, mask * 0.0, mask, mask)
        loss, _ = ORPO()(pairs)
        gradients = torch.autograd.grad(loss, [sure, unsure], allow_unused=True)
        assert loss.isfinite()
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_hyper_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        ORPO(beta=0)
