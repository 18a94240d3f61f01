"""BMC against numbers worked out by hand: both forms and what separates them."""

import math

import pytest
import torch
from objective_batches import HOSTILE, assert_finite, batch_for, random_pair

from tokenq.objectives import BMC, DPO, PairLogps, StepFeatures
from tokenq.objectives.bmc import edit_weights

HALF, TENTH, FIFTH = math.log(0.5), math.log(0.1), math.log(0.2)


def pair(edited: bool) -> PairLogps:
    """Chosen: tokens of probability .5 and .1 (reference .5 and .2), the second edited.

    Rejected: one edited token, .5 under both.
    """

    def row(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    return PairLogps(
        row(HALF, TENTH, -9.0).requires_grad_(),
        row(HALF, -9.0).requires_grad_(),
        row(HALF, FIFTH, -9.0),
        row(HALF, -9.0),
        torch.tensor([[True, True, False]]),
        torch.tensor([[True, False]]),
        StepFeatures(edits=torch.tensor([[False, edited, True]])),
        StepFeatures(edits=torch.tensor([[edited, True]])),
    )


def test_the_papers_form_by_hand() -> None:
    # The edited token: 1/pi = 10, held at 3, so weight 4 for the whole log-ratio log .1/.2.
    batch = pair(edited=True)
    loss, metrics = BMC(beta=0.5, delta=3.0)(batch)
    chosen = 0.5 * 4 * (TENTH - FIFTH)
    assert float(metrics["rewards/chosen"]) == pytest.approx(chosen)
    assert float(metrics["rewards/rejected"]) == pytest.approx(0.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-chosen)))
    grads = torch.autograd.grad(loss, [batch.chosen, batch.rejected])
    # Weights carry no gradient: 1 and 4 on the chosen tokens, 1 + 1/.5 = 3 on the rejected one.
    slope = 0.5 / (1 + math.exp(chosen))
    torch.testing.assert_close(grads[0], slope * torch.tensor([[-1.0, -4, 0]]).double())
    torch.testing.assert_close(grads[1], slope * torch.tensor([[3.0, 0]]).double())


def test_the_released_form_by_hand() -> None:
    # delta 6: the policy's weight is 1 + 6, the reference's 1 + 1/.2 = 6.
    _, metrics = BMC(beta=0.5, delta=6.0, bmc_form="released")(pair(edited=True))
    assert float(metrics["rewards/chosen"]) == pytest.approx(0.5 * (7 * TENTH - 6 * FIFTH))
    # At delta 3 both weights are at the limit, and the forms agree.
    for form in ("paper", "released"):
        _, metrics = BMC(beta=0.5, delta=3.0, bmc_form=form)(pair(edited=True))
        assert float(metrics["rewards/chosen"]) == pytest.approx(0.5 * 4 * (TENTH - FIFTH))


def test_the_forms_agree_where_policy_and_reference_do() -> None:
    batch = random_pair()
    same = PairLogps(
        batch.chosen, batch.rejected, batch.chosen, batch.rejected,
        batch.chosen_mask, batch.rejected_mask, batch.chosen_features, batch.rejected_features,
    )  # fmt: skip
    losses = [BMC(bmc_form=form)(same)[0] for form in ("paper", "released")]
    torch.testing.assert_close(*losses)
    assert losses[0].item() == pytest.approx(math.log(2))
    different = [BMC(bmc_form=form)(batch)[0] for form in ("paper", "released")]
    assert abs((different[0] - different[1]).item()) > 1e-3


@pytest.mark.parametrize("form", ["paper", "released"])
def test_without_edits_or_extra_weight_it_is_dpo(form: str) -> None:
    batch = pair(edited=False)
    torch.testing.assert_close(BMC(beta=0.1, bmc_form=form)(batch)[0], DPO()(batch)[0])
    batch = random_pair()
    torch.testing.assert_close(BMC(beta=0.1, delta=0.0, bmc_form=form)(batch)[0], DPO()(batch)[0])


def test_weights() -> None:
    logps = torch.tensor([[0.0, math.log(0.5), math.log(0.01), -1e9]]).double()
    edits = torch.tensor([[True, True, True, True]])
    assert edit_weights(logps, edits, 2.5)[0].tolist() == pytest.approx([2.0, 3.0, 3.5, 3.5])
    assert edit_weights(logps, ~edits, 2.5)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("case", HOSTILE)
def test_the_released_form_is_finite(case: str) -> None:
    objective = BMC(bmc_form="released")
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@pytest.mark.parametrize(("field", "value"), [("beta", 0.0), ("delta", -1.0), ("bmc_form", "new")])
def test_bad_hyper_parameters(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got"):
        BMC(**{field: value})
