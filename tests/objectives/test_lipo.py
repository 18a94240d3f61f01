"""LiPO-lambda: numbers worked by hand, the discounted gain by brute force, DPO for two answers."""

import math
from collections.abc import Sequence

import pytest
import torch
from objective_batches import HOSTILE, Draw, assert_finite, batch_for, random_ranked
from torch.nn.functional import logsigmoid

from tokenq.objectives import DPO, LiPO, RankedLogps, ResponseLogps
from tokenq.objectives.lipo import places, share_won, swap_gains


def of_rewards(rewards: Sequence[float], ranks: list[int]) -> RankedLogps:
    logps = torch.tensor(rewards, dtype=torch.float64)[:, None]
    present = torch.tensor(ranks)[:, None] >= 0
    return RankedLogps(
        ResponseLogps(logps, present, torch.zeros_like(logps)), torch.tensor([ranks])
    )


def test_labels_are_shares_of_comparisons_won() -> None:
    ranks = torch.tensor([[0, 1, 2], [1, 0, 1], [-1, 0, 1], [-1, -1, 0], [2, 2, 2]])
    expected = [[1, 0.5, 0], [0.25, 1, 0.25], [0, 1, 0], [0, 0, 0], [0.5, 0.5, 0.5]]
    assert share_won(ranks).tolist() == expected


def test_places_are_by_reward_and_absent_answers_come_last() -> None:
    rewards = torch.tensor([[0.1, 2.0, -1.0], [9.0, 0.0, 1.0], [5.0, 5.0, 5.0]])
    ranks = torch.tensor([[0, 1, 2], [-1, 0, 1], [2, 1, 0]])
    assert places(rewards, ranks).tolist() == [[2, 1, 3], [3, 2, 1], [1, 2, 3]]


def test_worked_by_hand() -> None:
    """Rewards 1, 2, 0 of answers ranked best, second, last: places 2, 1, 3 and shares 1, 1/2, 0."""
    gain = [1.0, math.sqrt(2) - 1, 0.0]
    discount = [1 / math.log(3), 1 / math.log(2), 1 / math.log(4)]
    reward = [1.0, 2.0, 0.0]
    expected = sum(
        (gain[i] - gain[j])
        * abs(discount[i] - discount[j])
        * math.log(1 + math.exp(reward[j] - reward[i]))
        for i, j in [(0, 1), (0, 2), (1, 2)]
    )
    loss, metrics = LiPO(beta=0.5)(of_rewards([2.0, 4.0, 0.0], [0, 1, 2]))
    assert math.isclose(loss, expected, rel_tol=1e-12)
    assert metrics["rewards/accuracies"] == pytest.approx(2 / 3)


def test_a_weight_is_what_a_swap_does_to_the_discounted_gain() -> None:
    rewards = torch.tensor([[0.4, -0.3, 1.2, 0.9]], dtype=torch.float64)
    ranks = torch.tensor([[1, 0, 2, 2]])
    gain = [2**won - 1 for won in share_won(ranks)[0].tolist()]
    order = rewards[0].argsort(descending=True).tolist()

    def discounted_gain(listed: list[int]) -> float:
        return sum(gain[answer] / math.log(2 + at) for at, answer in enumerate(listed))

    weights = swap_gains(rewards, ranks)[0]
    for i in range(4):
        for j in range(4):
            swap = {i: j, j: i}
            swapped = [swap.get(answer, answer) for answer in order]
            change = abs(discounted_gain(swapped) - discounted_gain(order))
            assert math.isclose(weights[i, j], change, abs_tol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_two_answers_are_dpo_up_to_a_factor(seed: int) -> None:
    lists = random_ranked(Draw(seed=seed, rows=1))
    pairs = RankedLogps(lists.answers, torch.tensor([[0, 1, -1]]))
    factor = 1 / math.log(2) - 1 / math.log(3)
    expected = factor * DPO(beta=0.3)(pairs.pairs())[0]
    torch.testing.assert_close(LiPO(beta=0.3)(pairs)[0], expected)


def test_weights_take_no_gradient() -> None:
    """The gradient is that of the same sum with the weights as constants."""
    batch = random_ranked()
    loss, _ = LiPO(beta=0.3)(batch)
    (gradient,) = torch.autograd.grad(loss, batch.answers.logps)
    rewards = 0.3 * batch.per_answer(batch.answers.log_ratios.sum(-1))
    weights = swap_gains(rewards.detach(), batch.ranks).flatten(1)
    better, worse = batch.pair_indices()
    lists, width = better // 3, 3
    constant = weights[lists, (better % width) * width + worse % width]
    flat = rewards.flatten()
    same = -(constant * logsigmoid(flat[better] - flat[worse])).sum() / LiPO().weight(batch)
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(gradient, torch.autograd.grad(same, batch.answers.logps)[0])


def test_it_starts_to_learn_where_all_rewards_are_equal() -> None:
    """Policy and reference are the same at first; a weight of 0 for equal places would be stuck."""
    logps = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(3, 1, dtype=torch.bool)
    lists = RankedLogps(ResponseLogps(logps, mask, torch.zeros(3, 1)), torch.tensor([[2, 0, 1]]))
    (gradient,) = torch.autograd.grad(LiPO()(lists)[0], logps)
    assert gradient[1] < 0 < gradient[0]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str) -> None:
    assert_finite(LiPO(beta=2.0), batch_for(LiPO, HOSTILE[case]))


def test_hyper_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        LiPO(beta=0)
