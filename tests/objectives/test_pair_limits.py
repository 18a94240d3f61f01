"""What the pages say that pair objectives converge to: stationary points of the mean over labels.

Two answers, the first of which wins with probability `q`; each label is a pair, chosen first.
"""

import math

import pytest
import torch
from objective_batches import pair_of
from torch import Tensor

from tokenq.objectives import (
    DPO,
    EXO,
    IPO,
    NCA,
    BCOPair,
    DiscoPOP,
    Hinge,
    LengthNormalisedDPO,
    RobustDPO,
    SPPOHard,
)
from tokenq.objectives.pairwise import Pairwise

BETA = 0.4


def logit(q: float) -> float:
    return math.log(q / (1 - q))


def mean_loss(objective: Pairwise, first: Tensor, second: Tensor, q: float) -> Tensor:
    """Mean over both orders of the labels; log-ratios [1] of the two answers."""
    return q * objective.losses(first, second) + (1 - q) * objective.losses(second, first)


def gradient(objective: Pairwise, first: float, second: float, q: float) -> tuple[float, float]:
    """Slopes of the mean loss in the log-ratio of each answer."""
    at = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (first, second)]
    slopes = torch.autograd.grad(mean_loss(objective, at[0], at[1], q).sum(), at)
    return slopes[0].item(), slopes[1].item()


@pytest.mark.parametrize("q", [0.5, 0.6, 0.9])
@pytest.mark.parametrize(
    ("objective", "margin"),
    [
        (DPO(BETA), lambda q: logit(q) / BETA),
        (LengthNormalisedDPO(BETA), lambda q: logit(q) / BETA),
        (IPO(BETA, length_normalize=False), lambda q: (2 * q - 1) / (2 * BETA)),
        (EXO(BETA, 0.05), lambda q: (2 * q - 1) * logit(0.95) / BETA),
    ],
    ids=["dpo", "sigmoid_norm", "ipo", "exo_pair"],
)
def test_the_margin_of_losses_of_a_difference(objective: Pairwise, margin, q: float) -> None:  # type: ignore[no-untyped-def]
    slopes = gradient(objective, 1.5 + margin(q), 1.5, q)
    assert slopes == pytest.approx((0, 0), abs=1e-12)
    assert gradient(objective, 1.6 + margin(q), 1.5, q)[0] > 0


@pytest.mark.parametrize("q", [0.5, 0.6, 0.9])
@pytest.mark.parametrize(
    ("objective", "level"),
    [
        (NCA(BETA), lambda q: math.log(2 * q) / BETA),
        (BCOPair(BETA), lambda q: logit(q) / BETA),
        (SPPOHard(BETA), lambda q: (2 * q - 1) / (2 * BETA)),
    ],
    ids=["nca_pair", "bco_pair", "sppo_hard"],
)
def test_the_level_of_losses_of_single_answers(objective: Pairwise, level, q: float) -> None:  # type: ignore[no-untyped-def]
    slopes = gradient(objective, level(q), level(1 - q), q)
    assert slopes == pytest.approx((0, 0), abs=1e-12)
    assert gradient(objective, level(q) + 0.1, level(1 - q), q)[0] > 0


def test_robust_finds_the_clean_margin_from_flipped_labels() -> None:
    q, flips = 0.8, 0.15
    seen = q * (1 - flips) + (1 - q) * flips
    slopes = gradient(RobustDPO(BETA, flips), logit(q) / BETA, 0.0, seen)
    assert slopes == pytest.approx((0, 0), abs=1e-12)


def test_conservative_dpo_stops_where_its_page_says() -> None:
    slopes = gradient(DPO(BETA, 0.1), logit(0.9) / BETA, 0.0, q=1.0)
    assert slopes == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("q", [0.55, 0.95])
def test_hinge_takes_a_vote(q: float) -> None:
    objective = Hinge(BETA)
    assert gradient(objective, 0.99 / BETA, 0.0, q)[0] < 0
    assert gradient(objective, 1.01 / BETA, 0.0, q)[0] > 0


def test_discopop_begins_between_a_minimum_and_a_maximum() -> None:
    objective = DiscoPOP(beta=1.0)
    slopes = [gradient(objective, m, 0.0, q=1.0)[0] for m in (-0.13, -0.11, 0.0, 0.06, 0.08)]
    assert [slope > 0 for slope in slopes] == [False, True, True, True, False]
    loss, _ = objective(pair_of([[-0.11857]], [[0.0]]))
    assert math.isclose(loss.item(), 0.785924, abs_tol=1e-6)
