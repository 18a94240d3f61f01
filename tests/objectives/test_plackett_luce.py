"""Plackett-Luce DPO: all rankings by brute force, DPO as its special case, the exact optimum."""

import math

import pytest
import torch
from bandit import fit, ranking, ranking_probabilities
from objective_batches import HOSTILE, Draw, assert_finite, batch_for, random_pair, random_ranked

from tokenq.objectives import DPO, PlackettLuce, RankedLogps, ResponseLogps


def of_rewards(rewards: list[list[float]], ranks: list[list[int]]) -> RankedLogps:
    """Lists of answers of one step whose log-ratios are these."""
    logps = torch.tensor(rewards, dtype=torch.float64).reshape(-1, 1)
    present = torch.tensor(ranks).flatten()[:, None] >= 0
    return RankedLogps(ResponseLogps(logps, present, torch.zeros_like(logps)), torch.tensor(ranks))


def loss_of(rewards: list[float], ranks: list[int]) -> float:
    return PlackettLuce(beta=1.0)(of_rewards([rewards], [ranks]))[0].item()


def test_worked_by_hand() -> None:
    """exp(r) = 1, 2, 3, the second best, then the third: 2/6 * 3/4."""
    rewards = [math.log(weight) for weight in (1, 2, 3)]
    assert math.isclose(loss_of(rewards, [2, 0, 1]), -math.log(2 / 6 * 3 / 4))


def test_ties_are_not_compared_worked_by_hand() -> None:
    """Two best answers, exp(r) = 1 and 3, each against the one below, exp(r) = 2: 1/3 * 3/5."""
    rewards = [math.log(weight) for weight in (1, 2, 3)]
    assert math.isclose(loss_of(rewards, [0, 1, 0]), -math.log(1 / 3 * 3 / 5))
    # two worst answers: the best against both, then nothing
    assert math.isclose(loss_of(rewards, [1, 1, 0]), -math.log(3 / 6))
    assert loss_of(rewards, [0, 0, 0]) == 0


def test_ranks_need_not_be_dense_and_absent_answers_do_not_count() -> None:
    dense = loss_of([0.3, -1.0, 2.0], [1, 0, 2])
    assert loss_of([0.3, -1.0, 2.0], [4, 1, 9]) == dense
    assert math.isclose(loss_of([0.3, 5.0, -1.0, 2.0], [1, -1, 0, 2]), dense)


def test_every_ranking_has_the_probability_of_drawing_it() -> None:
    rewards = torch.tensor([0.4, -1.3, 0.9, 0.1], dtype=torch.float64)
    total = 0.0
    for order, probability in ranking_probabilities(rewards):
        ranks = [order.index(arm) for arm in range(4)]
        assert math.isclose(math.exp(-loss_of(rewards.tolist(), ranks)), probability)
        total += probability
    assert math.isclose(total, 1)


@pytest.mark.parametrize("seed", range(5))
def test_two_answers_are_dpo(seed: int) -> None:
    pairs = random_pair(Draw(seed=seed))
    chosen, rejected = pairs.chosen_side, pairs.rejected_side
    width = rejected.mask.shape[1] - chosen.mask.shape[1]

    def rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        left = torch.nn.functional.pad(left, (0, width))
        return torch.stack([left, right], dim=1).flatten(0, 1)

    answers = ResponseLogps(
        rows(chosen.logps, rejected.logps),
        rows(chosen.mask, rejected.mask),
        rows(chosen.ref_logps, rejected.ref_logps),
    )
    lists = RankedLogps(answers, torch.tensor([[0, 1]] * len(pairs)))
    ours, metrics = PlackettLuce(beta=0.3)(lists)
    theirs, theirs_metrics = DPO(beta=0.3)(pairs)
    inputs = [pairs.chosen, pairs.rejected]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    )
    torch.testing.assert_close(metrics, theirs_metrics)


def test_the_gradient_is_choice_minus_probability() -> None:
    """d loss / d r_k of a full ranking: sum over the choices k takes part in, of p(k) less 1 for
    its own. Checked against finite differences of the loss."""
    rewards, ranks = [0.2, -0.7, 1.1, 0.4], [1, 3, 0, 1]
    logps = torch.tensor(rewards, dtype=torch.float64)[:, None].requires_grad_()
    mask = torch.ones(4, 1, dtype=torch.bool)
    lists = RankedLogps(ResponseLogps(logps, mask, torch.zeros(4, 1)), torch.tensor([ranks]))
    loss, _ = PlackettLuce(beta=1.0)(lists)
    (gradient,) = torch.autograd.grad(loss, logps)
    step = 1e-5
    for k in range(4):
        up, down = (
            [value + sign * step * (i == k) for i, value in enumerate(rewards)] for sign in (1, -1)
        )
        slope = (loss_of(up, ranks) - loss_of(down, ranks)) / (2 * step)
        assert math.isclose(gradient[k], slope, rel_tol=1e-6, abs_tol=1e-9)


def test_a_list_that_compares_nothing_weighs_nothing() -> None:
    """All tied, alone, or absent: the mean is over the one list that ranks two answers."""
    rewards = [[0.0, 1.0], [3.0, 4.0], [5.0, 6.0], [0.0, 0.0]]
    lists = of_rewards(rewards, [[1, 0], [0, 0], [-1, 0], [-1, -1]])
    objective = PlackettLuce(beta=1.0)
    assert objective.weight(lists) == 1
    assert math.isclose(objective(lists)[0], math.log(1 + math.exp(-1)))


def test_metrics_are_those_of_all_pairs() -> None:
    _, metrics = PlackettLuce(beta=0.5)(of_rewards([[4.0, 2.0, 6.0]], [[0, 1, 2]]))
    assert metrics["rewards/chosen"] == pytest.approx((2 + 2 + 1) / 3)
    assert metrics["rewards/rejected"] == pytest.approx((1 + 3 + 3) / 3)
    assert metrics["rewards/margins"] == pytest.approx((1 - 1 - 2) / 3)
    assert metrics["rewards/accuracies"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_it_reaches_the_boltzmann_policy(beta: float) -> None:
    """Rankings drawn with rewards R: the policy is proportional to pi_ref exp(R / beta)."""
    rewards = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    log_ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    rankings = list(ranking_probabilities(rewards))

    def expected(log_policy: torch.Tensor) -> torch.Tensor:
        objective = PlackettLuce(beta)
        losses = [p * objective(ranking(log_policy, log_ref, order))[0] for order, p in rankings]
        return torch.stack(losses).sum()

    optimum = (log_ref + rewards / beta).log_softmax(0)
    fitted = fit(expected, 3)
    assert (optimum.exp() * (optimum - fitted)).sum() < 1e-8
    torch.testing.assert_close(fitted, optimum, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str) -> None:
    assert_finite(PlackettLuce(beta=2.0), batch_for(PlackettLuce, HOSTILE[case]))


def test_large_rewards_keep_their_precision_in_float32() -> None:
    """Rewards near 1e4 whose differences are 1: the loss is that of the differences."""
    lists = random_ranked(Draw(rows=1, width=1, keep=1.0, dtype=torch.float32))
    near = torch.tensor([[10002.0], [10001.0], [10000.0]])
    answers = ResponseLogps(near, lists.answers.mask, torch.zeros_like(near))
    loss, _ = PlackettLuce(beta=1.0)(RankedLogps(answers, torch.tensor([[0, 1, 2]])))
    expected = math.log(1 + math.exp(-1) + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert math.isclose(loss, expected, rel_tol=1e-6)


def test_hyper_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        PlackettLuce(beta=0)
