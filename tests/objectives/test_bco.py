"""BCO: numbers worked by hand, its gradient, its relation to DPO, the exact optimum.

TRL 1.16 has no unpaired BCO to compare with. Its DPO has the loss on pairs, of which ours on the
same responses, labelled, is half.
"""

import math

import pytest
import torch
from bandit import fit, labelled
from objective_batches import (
    HOSTILE,
    Draw,
    assert_finite,
    batch_for,
    random_labelled,
    random_pair,
)
from torch.nn.functional import logsigmoid

from tokenq.objectives import BCO, DPO, LabelledLogps, PairLogps, ResponseLogps
from tokenq.objectives.bco import reward_shift


def of_log_ratios(log_ratios: list[float], labels: list[float] | list[bool]) -> LabelledLogps:
    logps = torch.tensor(log_ratios, dtype=torch.float64)[:, None]
    mask = torch.ones_like(logps, dtype=torch.bool)
    responses = ResponseLogps(logps, mask, torch.zeros_like(logps))
    return LabelledLogps(responses, torch.tensor(labels))


def test_worked_by_hand() -> None:
    """Rewards 1 and 3 are good, -2 is bad: delta = (2 - 2) / 2 = 0."""
    loss, metrics = BCO(beta=0.5)(of_log_ratios([2.0, 6.0, -4.0], [True, True, False]))
    expected = [math.log(1 + math.exp(-logit)) for logit in (1, 3, 2)]
    assert math.isclose(loss, sum(expected) / 3, rel_tol=1e-12)
    assert metrics["delta"] == 0
    assert metrics["rewards/chosen"] == 2
    assert metrics["rewards/rejected"] == -2


@pytest.mark.parametrize(
    ("labels", "delta"),
    [
        ([True, True, False], (1.5 + 6) / 2),  # each label counts the same, however often it occurs
        ([True, True, True], 3.0),  # one label: its mean
        ([False, False, False], 3.0),
        ([0.5, 0.5, 0.5], 3.0),
        ([1.0, 0.5, 0.0], ((1 + 0.5 * 2) / 1.5 + (0.5 * 2 + 6) / 1.5) / 2),
    ],
)
def test_the_shift(labels: list[float], delta: float) -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert math.isclose(reward_shift(rewards, torch.tensor(labels).float()), delta, rel_tol=1e-6)


def test_the_gradient_holds_the_shift_fixed() -> None:
    """d loss / d r = (sigmoid(r - delta) - good) / N."""
    batch = random_labelled()
    loss, metrics = BCO(beta=0.3)(batch)
    (gradient,) = torch.autograd.grad(loss, batch.responses.logps)
    rewards = 0.3 * batch.responses.log_ratios.sum(-1)
    error = torch.sigmoid(rewards - metrics["delta"]) - batch.labels.double()
    expected = 0.3 * error[:, None] * batch.responses.mask / len(batch)
    torch.testing.assert_close(gradient, expected)


def labelled_sides(pairs: PairLogps) -> LabelledLogps:
    """The chosen responses, all good, and the rejected ones, all bad."""
    sides = [side.log_ratios.sum(-1) for side in (pairs.chosen_side, pairs.rejected_side)]
    labels = [True] * len(pairs) + [False] * len(pairs)
    return of_log_ratios(torch.cat(sides).tolist(), labels)


def test_on_the_two_sides_of_pairs_it_is_half_the_loss_on_pairs() -> None:
    """TRL's bco_pair: -log sigmoid(r_w - delta) - log sigmoid(delta - r_l), delta their mean."""
    pairs = random_pair()
    chosen = 0.2 * pairs.chosen_side.log_ratios.sum(-1).detach()
    rejected = 0.2 * pairs.rejected_side.log_ratios.sum(-1).detach()
    delta = torch.cat([chosen, rejected]).mean()
    on_pairs = (-logsigmoid(chosen - delta) - logsigmoid(delta - rejected)).mean()
    loss, metrics = BCO(beta=0.2)(labelled_sides(pairs))
    torch.testing.assert_close(2 * loss, on_pairs)
    torch.testing.assert_close(metrics["delta"], delta)


@pytest.mark.parametrize("seed", range(5))
def test_it_bounds_dpo_from_above(seed: int) -> None:
    pairs = random_pair(Draw(seed=seed))
    assert 2 * BCO(beta=0.5)(labelled_sides(pairs))[0] > DPO(beta=0.5)(pairs)[0]


def test_the_optimum_on_two_answers() -> None:
    """Answers good with probability sigmoid(a) and sigmoid(-a), tried equally often: the rewards
    reach delta + a and delta - a, so log pi_1/pi_2 = 2a / beta + log pi_ref_1/pi_ref_2."""
    a, beta = 0.7, 0.5
    good = torch.sigmoid(torch.tensor([a, -a], dtype=torch.float64))
    log_ref = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    log_policy = fit(lambda policy: BCO(beta)(labelled(policy, log_ref, good))[0], 2)
    log_ratio = log_policy - log_ref
    assert math.isclose(log_ratio[0] - log_ratio[1], 2 * a / beta, abs_tol=1e-7)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str) -> None:
    assert_finite(BCO(beta=2.0), batch_for(BCO, HOSTILE[case]))


def test_hyper_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        BCO(beta=0)
