"""What holds for all pair objectives: gradients, known constants, hostile batches, each variant."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from objective_batches import HOSTILE, Draw, assert_finite, pair_of, random_pair
from torch import Tensor

from tokenq.objectives import (
    AOT,
    DPO,
    DPOP,
    EXO,
    IPO,
    NCA,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    Hinge,
    LengthNormalisedDPO,
    PairLogps,
    RobustDPO,
    SPPOHard,
)
from tokenq.objectives.pairwise import DivergencePairwise, Pairwise

LN2 = math.log(2)

AT_THE_REFERENCE: dict[Pairwise, float] = {
    DPO(): LN2,
    DPO(label_smoothing=0.2): LN2,
    LengthNormalisedDPO(): LN2,
    RobustDPO(): LN2,
    DPOP(): LN2,
    IPO(beta=0.5): 1.0,
    Hinge(): 1.0,
    EXO(label_smoothing=0.1): -LN2 - 0.5 * math.log(0.09),
    NCA(): 2 * LN2,
    BCOPair(): 2 * LN2,
    SPPOHard(beta=0.5): 2.0,
    APOZero(): 1.0,
    APODown(): 1.0,
    AOT(): LN2,
    AOTUnpaired(): LN2,
    DiscoPOP(): 0.5 * LN2 + 0.5,
}
"""The loss while the policy still is the reference, worked by hand."""

CLASSES = list(dict.fromkeys(type(objective) for objective in AT_THE_REFERENCE))


def variants() -> list[Pairwise]:
    """Each class with each option that changes its formula."""
    options: list[dict[str, Any]] = [{}, {"ld_alpha": 0.4}, {"use_weighting": True}]
    divergences: list[dict[str, Any]] = [
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 10.0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": -10.0},
    ]
    found = [IPO(length_normalize=False), AOT(ld_alpha=0.4), AOTUnpaired(ld_alpha=0.4)]
    for class_ in CLASSES:
        if not issubclass(class_, AOT):
            extra = divergences if issubclass(class_, DivergencePairwise) else []
            found += [class_(**each) for each in options + extra]
    return found


@pytest.mark.parametrize("objective", AT_THE_REFERENCE, ids=repr)
def test_the_loss_at_the_reference(objective: Pairwise) -> None:
    batch = random_pair(Draw(keep=0.6))
    start = dataclasses.replace(batch, chosen=batch.ref_chosen, rejected=batch.ref_rejected)
    loss, metrics = objective(start)
    assert math.isclose(loss, AT_THE_REFERENCE[objective], rel_tol=1e-12)
    assert all(value == 0 for value in metrics.values())


@pytest.mark.parametrize("objective", variants(), ids=repr)
def test_every_variant_stays_finite(objective: Pairwise) -> None:
    for draw in HOSTILE.values():
        assert_finite(objective, random_pair(draw))


@pytest.mark.parametrize(
    "objective", [each for each in variants() if not each.use_weighting], ids=repr
)
def test_gradients(objective: Pairwise) -> None:
    batch = random_pair(Draw(rows=3, width=2, seed=4))
    if getattr(objective, "f_alpha_divergence_coef", 0.5) != 0.5:
        objective = dataclasses.replace(objective, f_alpha_divergence_coef=1.7, beta=0.1)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective(dataclasses.replace(batch, chosen=chosen, rejected=rejected))[0]

    assert torch.autograd.gradcheck(loss, (batch.chosen, batch.rejected), eps=1e-7, rtol=1e-5)


@pytest.mark.parametrize("class_", CLASSES)
def test_swapping_the_sides_turns_the_margin_round(class_: type[Pairwise]) -> None:
    batch = random_pair(Draw())
    swapped = PairLogps(
        batch.rejected, batch.chosen, batch.ref_rejected, batch.ref_chosen,
        batch.rejected_mask, batch.chosen_mask,
    )  # fmt: skip
    metrics, turned = class_()(batch)[1], class_()(swapped)[1]
    assert metrics["rewards/margins"] == -turned["rewards/margins"]
    assert metrics["rewards/chosen"] == turned["rewards/rejected"]
    assert metrics["rewards/accuracies"] == 1 - turned["rewards/accuracies"]


@pytest.mark.parametrize("class_", [c for c in CLASSES if issubclass(c, DivergencePairwise)])
def test_an_f_divergence_replaces_the_log_ratio_by_its_score(class_: type[Any]) -> None:
    batch = pair_of([[1.0], [-0.5]], [[0.25], [2.0]])

    def score(x: float) -> float:
        return 1 - math.exp(-x)

    scored = pair_of([[score(1.0)], [score(-0.5)]], [[score(0.25)], [score(2.0)]])
    loss, metrics = class_(f_divergence_type="forward_kl")(batch)
    torch.testing.assert_close(loss, class_()(scored)[0])
    assert metrics == class_()(batch)[1]  # the reward stays beta times the log-ratio


def test_unknown_divergences_and_orders() -> None:
    with pytest.raises(ValueError, match="f_divergence_type must be one of reverse_kl, forward_kl"):
        DPO(f_divergence_type="kl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="f_alpha_divergence_coef must be in"):
        DPO(f_alpha_divergence_coef=math.nan)


@pytest.mark.parametrize("class_", CLASSES)
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_beta_out_of_range(class_: type[Pairwise], beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be > 0"):
        class_(beta=beta)
