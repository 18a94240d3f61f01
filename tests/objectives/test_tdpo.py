"""TDPO against numbers worked out by hand, and its limits."""

import math

import pytest
import torch
from objective_batches import HOSTILE, assert_finite, batch_for, random_pair

from tokenq.objectives import DPO, TDPO, PairLogps, StepFeatures


def pair(kl_chosen: list[float], kl_rejected: list[float]) -> PairLogps:
    """One pair: log-ratios 0.5 + 0.5 of the chosen and 0.25 of the rejected response."""
    mask = torch.tensor([[True, True, False]])
    short = torch.tensor([[True, False]])
    features = [
        StepFeatures(kl=torch.tensor([[*values, 99.0]], dtype=torch.float64, requires_grad=True))
        for values in (kl_chosen, kl_rejected)
    ]
    return PairLogps(
        torch.tensor([[-1.0, -2.0, 7.0]]).double(),
        torch.tensor([[-1.0, 7.0]]).double(),
        torch.tensor([[-1.5, -2.5, 7.0]]).double(),
        torch.tensor([[-1.25, 7.0]]).double(),
        mask,
        short,
        *features,
    )


@pytest.mark.parametrize(
    ("form", "margin"),
    [
        # u: 1.0 and 0.25; D: 0.1 + 0.2 = 0.3 and 0.7; beta 2
        ("tdpo1", 2 * (1.0 - 0.25 - (0.7 - 0.3))),
        ("tdpo2", 2 * (1.0 - 0.25 - 0.5 * (0.7 - 0.3))),
    ],
)
def test_by_hand(form: str, margin: float) -> None:
    loss, metrics = TDPO(beta=2.0, tdpo_alpha=0.5, tdpo_form=form)(pair([0.1, 0.2], [0.7]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)))
    assert float(metrics["rewards/margins"]) == pytest.approx(margin)
    assert float(metrics["kl/chosen"]) == pytest.approx(0.3)
    assert float(metrics["kl/rejected"]) == pytest.approx(0.7)


@pytest.mark.parametrize("form", ["tdpo1", "tdpo2"])
def test_only_tdpo1_lets_the_chosen_side_diverge(form: str) -> None:
    batch = pair([0.1, 0.2], [0.7])
    loss, _ = TDPO(tdpo_form=form)(batch)
    chosen, rejected = batch.chosen_features.kl, batch.rejected_features.kl
    grads = torch.autograd.grad(loss, [chosen, rejected], materialize_grads=True, allow_unused=True)
    assert (grads[0] < 0).any() == (form == "tdpo1")
    assert (grads[1] > 0).any()


def test_without_divergences_it_is_dpo() -> None:
    batch = random_pair()
    torch.testing.assert_close(TDPO(tdpo_alpha=0.0)(batch)[0], DPO()(batch)[0])


def test_gradients_by_finite_differences() -> None:
    batch = random_pair()

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        features = StepFeatures(kl=chosen), StepFeatures(kl=rejected)
        return TDPO(tdpo_form="tdpo1")(
            PairLogps(
                batch.chosen.detach() - chosen,
                batch.rejected.detach() + rejected,
                batch.ref_chosen,
                batch.ref_rejected,
                batch.chosen_mask,
                batch.rejected_mask,
                *features,
            )
        )[0]

    kl = [batch.chosen_features.kl, batch.rejected_features.kl]
    assert torch.autograd.gradcheck(loss, kl)


@pytest.mark.parametrize("case", HOSTILE)
def test_tdpo1_is_finite(case: str) -> None:
    objective = TDPO(tdpo_form="tdpo1")
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta", 0.0), ("tdpo_alpha", -0.1), ("tdpo_form", "tdpo3"), ("beta", math.inf)],
)
def test_bad_hyper_parameters(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got"):
        TDPO(**{field: value})


def test_the_divergence_is_asked_for() -> None:
    batch = pair([0.1, 0.2], [0.7])
    bare = PairLogps(
        batch.chosen, batch.rejected, batch.ref_chosen, batch.ref_rejected,
        batch.chosen_mask, batch.rejected_mask,
    )  # fmt: skip
    with pytest.raises(ValueError, match="'kl'"):
        TDPO()(bare)
