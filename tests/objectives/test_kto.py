"""KTO and unpaired APO-zero: numbers worked by hand, TRL's own loss, what they converge to.

Intended differences from TRL: none in the loss. Labels may also be probabilities, and an empty
batch has the loss 0.
"""

import math
import random

import pytest
import torch
import trl_other_trainers as peer
from bandit import fit, labelled
from objective_batches import HOSTILE, assert_finite, batch_for

from tokenq.objectives import KTO, APOZeroUnpaired, LabelledLogps, ResponseLogps

SEEDS = pytest.mark.parametrize("seed", range(12))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LOSSES = pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
CLASSES = {"kto": KTO, "apo_zero_unpaired": APOZeroUnpaired}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def of_log_ratios(log_ratios: list[list[float]]) -> ResponseLogps:
    logps = torch.tensor(log_ratios)
    return ResponseLogps(logps, torch.ones_like(logps, dtype=torch.bool), torch.zeros_like(logps))


def by_hand(mismatched: list[list[float]]) -> LabelledLogps:
    """A good response with the log-ratio 1 + 2 = 3 and a bad one with -1 + 2 = 1."""
    responses = of_log_ratios([[1.0, 2.0], [-1.0, 2.0]])
    return LabelledLogps(responses, torch.tensor([True, False]), of_log_ratios(mismatched))


def random_labelled(seed: int, dtype: torch.dtype) -> LabelledLogps:
    responses = peer.random_response(2 * seed, 6, dtype)
    mismatched = peer.random_response(2 * seed + 1, 6, dtype)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(6, generator=generator) < [0.5, 0.5, 0.0, 1.0][seed % 4]
    return LabelledLogps(responses, labels, mismatched)


@pytest.mark.parametrize(
    ("mismatched", "kl"),
    [([[1.0, 1.0], [2.0, 0.0]], 2.0), ([[-1.0, 0.0], [-2.0, 1.0]], 0.0)],
    ids=["KL point 2", "KL point at least 0"],
)
def test_kto_worked_by_hand(mismatched: list[list[float]], kl: float) -> None:
    objective = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    loss, metrics = objective(by_hand(mismatched))
    good, bad = 1 - sigmoid(0.5 * (3 - kl)), 1 - sigmoid(0.5 * (kl - 1))
    assert math.isclose(loss, (2 * good + 3 * bad) / 2, rel_tol=1e-6)
    assert metrics["kl"] == kl
    assert metrics["rewards/chosen"] == 1.5
    assert metrics["rewards/rejected"] == 0.5
    assert metrics["rewards/margins"] == 1.0


def test_apo_zero_worked_by_hand() -> None:
    objective = APOZeroUnpaired(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    loss, _ = objective(by_hand([[5.0, 5.0], [5.0, 5.0]]))
    expected = (2 * (1 - sigmoid(1.5)) + 3 * sigmoid(0.5)) / 2
    assert math.isclose(loss, expected, rel_tol=1e-6)


@SEEDS
@DTYPES
@LOSSES
def test_it_is_trls(seed: int, dtype: torch.dtype, name: str) -> None:
    draw = random.Random(seed)
    settings = {
        "beta": draw.uniform(0.05, 1),
        "desirable_weight": draw.uniform(0.5, 2),
        "undesirable_weight": draw.uniform(0.5, 2),
    }
    batch = random_labelled(seed, dtype)
    assert batch.mismatched is not None
    ours, _ = CLASSES[name](**settings)(batch)
    theirs = peer.kto(batch, loss_type=name, **settings)
    inputs = [batch.responses.logps, batch.mismatched.logps]
    peer.assert_equal_with_gradients(ours, theirs, inputs)


@LOSSES
def test_a_label_that_is_a_probability_is_the_mean_over_both_labels(name: str) -> None:
    batch = random_labelled(0, torch.float64)
    objective = CLASSES[name](beta=0.3, desirable_weight=1.2)

    def with_labels(labels: torch.Tensor) -> torch.Tensor:
        loss, _ = objective(LabelledLogps(batch.responses, labels, batch.mismatched))
        return loss

    ones = torch.ones(6)
    expected = 0.3 * with_labels(ones) + 0.7 * with_labels(0 * ones)
    torch.testing.assert_close(with_labels(0.3 * ones.double()), expected)


def test_the_kl_point_takes_no_gradient() -> None:
    batch = random_labelled(0, torch.float64)
    assert batch.mismatched is not None
    loss, _ = KTO()(batch)
    (gradient,) = torch.autograd.grad(loss, batch.mismatched.logps, allow_unused=True)
    assert gradient is None


@LOSSES
def test_an_answer_that_is_mostly_good_takes_all(name: str) -> None:
    """The loss is linear in the sigmoid: with answers good 60 and 40 times of 100 it has no finite
    optimum, unlike a logistic loss. That is what they converge to: the sign of the majority."""
    good = torch.tensor([0.6, 0.4], dtype=torch.float64)
    log_ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    objective = CLASSES[name](beta=0.5)
    log_policy = fit(lambda policy: objective(labelled(policy, log_ref, good))[0], 2)
    assert log_policy[0].exp() > 0.999


def test_kto_without_mismatched_responses_is_refused() -> None:
    batch = random_labelled(0, torch.float64)
    with pytest.raises(ValueError, match="no mismatched responses, which this objective needs"):
        KTO()(LabelledLogps(batch.responses, batch.labels))


@LOSSES
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches(case: str, name: str) -> None:
    objective = CLASSES[name](beta=2.0, undesirable_weight=3.0)
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@LOSSES
@pytest.mark.parametrize("field", ["beta", "desirable_weight", "undesirable_weight"])
def test_hyper_parameters_out_of_range(name: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be > 0, got -1"):
        CLASSES[name](**{field: -1})
