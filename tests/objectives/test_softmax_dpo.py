"""Softmax DPO: numbers worked by hand, Plackett-Luce and DPO beside it, the exact optimum."""

import math

import pytest
import torch
from bandit import fit, ranking, ranking_probabilities
from objective_batches import HOSTILE, assert_finite, batch_for

from tokenq.objectives import PlackettLuce, RankedLogps, ResponseLogps, SoftmaxDPO


def of_rewards(rewards: list[float], ranks: list[int]) -> RankedLogps:
    logps = torch.tensor(rewards, dtype=torch.float64)[:, None]
    present = torch.tensor(ranks)[:, None] >= 0
    return RankedLogps(
        ResponseLogps(logps, present, torch.zeros_like(logps)), torch.tensor([ranks])
    )


REWARDS = [math.log(weight) for weight in (1, 2, 3)]


@pytest.mark.parametrize(
    ("ranks", "probability"),
    [
        ([0, 1, 2], 1 / 6),
        ([0, 1, 1], 1 / 6),  # how the others rank makes no difference
        ([2, 1, 0], 3 / 6),
        ([-1, 0, 1], 2 / 5),
        ([0, 1, 0], math.sqrt(1 / 3 * 3 / 5)),  # two best: the mean of their losses
        ([3, 3, 3], 1),
    ],
)
def test_worked_by_hand(ranks: list[int], probability: float) -> None:
    loss, _ = SoftmaxDPO(beta=1.0)(of_rewards(REWARDS, ranks))
    assert math.isclose(loss, -math.log(probability), abs_tol=1e-12)


def test_it_is_the_paper_s_form() -> None:
    """-log sigmoid(-log sum over the others of exp(r_l - r_w))."""
    rewards = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64)
    others = (rewards[1:] - rewards[0]).logsumexp(0)
    loss, _ = SoftmaxDPO(beta=0.7)(of_rewards((rewards / 0.7).tolist(), [0, 1, 1, 1]))
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(-others))


def test_with_ties_below_it_is_plackett_luce() -> None:
    lists = of_rewards([0.3, -1.2, 0.8, 0.1], [1, 1, 0, 1])
    torch.testing.assert_close(SoftmaxDPO(0.4)(lists)[0], PlackettLuce(0.4)(lists)[0])


def test_it_reaches_the_boltzmann_policy() -> None:
    """On winners drawn from the softmax of rewards R: pi proportional to pi_ref exp(R / beta)."""
    rewards = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    log_ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    rankings = list(ranking_probabilities(rewards))

    def expected(log_policy: torch.Tensor) -> torch.Tensor:
        objective = SoftmaxDPO(beta=0.5)
        losses = [p * objective(ranking(log_policy, log_ref, order))[0] for order, p in rankings]
        return torch.stack(losses).sum()

    optimum = (log_ref + rewards / 0.5).log_softmax(0)
    torch.testing.assert_close(fit(expected, 3), optimum, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str) -> None:
    assert_finite(SoftmaxDPO(), batch_for(SoftmaxDPO, HOSTILE[case]))


def test_hyper_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        SoftmaxDPO(beta=0)
