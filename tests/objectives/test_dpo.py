"""DPO: numbers worked by hand, the peer's own formula, and parts that add up to the whole."""

import math

import pytest
import torch

from tokenq.objectives import DPO, PairLogps


def batch(rows: int = 6, seed: int = 0) -> PairLogps:
    generator = torch.Generator().manual_seed(seed)

    def logps(width: int) -> torch.Tensor:
        return -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3

    chosen_mask = torch.rand(rows, 5, generator=generator) < 0.7
    rejected_mask = torch.rand(rows, 8, generator=generator) < 0.7
    return PairLogps(logps(5), logps(8), logps(5), logps(8), chosen_mask, rejected_mask)


def test_worked_by_hand() -> None:
    # chosen log-ratio: (-1 + 2) + (-0.5 + 0.5) = 1; rejected: -3 + 1 = -2, second step masked
    pair = PairLogps(
        chosen=torch.tensor([[-1.0, -0.5]]),
        rejected=torch.tensor([[-3.0, -9.0]]),
        ref_chosen=torch.tensor([[-2.0, -0.5]]),
        ref_rejected=torch.tensor([[-1.0, 0.0]]),
        chosen_mask=torch.tensor([[True, True]]),
        rejected_mask=torch.tensor([[True, False]]),
    )
    loss, metrics = DPO(beta=0.5)(pair)
    assert math.isclose(loss, math.log(1 + math.exp(-1.5)), rel_tol=1e-6)
    assert math.isclose(metrics["rewards/chosen"], 0.5)
    assert math.isclose(metrics["rewards/rejected"], -1.0)
    assert math.isclose(metrics["rewards/margins"], 1.5)
    assert metrics["rewards/accuracies"] == 1


def test_gradient_is_the_update_weight_of_the_paper() -> None:
    """d loss / d log pi(a_t) = -beta * sigmoid(-margin) / B on chosen steps, + on rejected ones."""
    pairs = batch()
    pairs.chosen.requires_grad_()
    pairs.rejected.requires_grad_()
    loss, _ = DPO(beta=0.3)(pairs)
    loss.backward()
    chosen = ((pairs.chosen - pairs.ref_chosen) * pairs.chosen_mask).sum(-1)
    rejected = ((pairs.rejected - pairs.ref_rejected) * pairs.rejected_mask).sum(-1)
    weight = 0.3 * torch.sigmoid(-0.3 * (chosen - rejected)) / 6
    torch.testing.assert_close(pairs.chosen.grad, -weight[:, None] * pairs.chosen_mask)
    torch.testing.assert_close(pairs.rejected.grad, weight[:, None] * pairs.rejected_mask)


def test_label_smoothing_is_the_mean_over_flipped_labels() -> None:
    pairs = batch()
    flipped = PairLogps(
        pairs.rejected, pairs.chosen, pairs.ref_rejected, pairs.ref_chosen,
        pairs.rejected_mask, pairs.chosen_mask,
    )  # fmt: skip
    smooth, _ = DPO(0.2, label_smoothing=0.1)(pairs)
    expected = 0.9 * DPO(0.2)(pairs)[0] + 0.1 * DPO(0.2)(flipped)[0]
    torch.testing.assert_close(smooth, expected)


def test_parts_combine_exactly() -> None:
    whole = batch(7)

    def rows(part: slice) -> PairLogps:
        names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_mask", "rejected_mask")
        return PairLogps(*(getattr(whole, name)[part] for name in names))

    objective = DPO(0.2)
    parts = [rows(slice(0, 2)), rows(slice(2, 3)), rows(slice(3, 7))]
    weights = torch.stack([objective.weight(part) for part in parts])
    losses = torch.stack([objective(part)[0] for part in parts])
    torch.testing.assert_close((weights * losses).sum() / weights.sum(), objective(whole)[0])


def test_what_is_masked_does_not_matter_even_if_it_is_not_finite() -> None:
    pairs = batch()
    poisoned = PairLogps(
        torch.where(pairs.chosen_mask, pairs.chosen, torch.nan).requires_grad_(),
        torch.where(pairs.rejected_mask, pairs.rejected, -torch.inf),
        pairs.ref_chosen, pairs.ref_rejected, pairs.chosen_mask, pairs.rejected_mask,
    )  # fmt: skip
    loss, _ = DPO()(poisoned)
    torch.testing.assert_close(loss, DPO()(pairs)[0])
    loss.backward()
    assert poisoned.chosen.grad.isfinite().all()


def test_large_margins_stay_finite() -> None:
    pairs = batch()
    extreme = PairLogps(
        pairs.chosen * 1e4, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected,
        pairs.chosen_mask, pairs.rejected_mask,
    )  # fmt: skip
    assert DPO(beta=1.0)(extreme)[0].isfinite()


@pytest.mark.parametrize(("beta", "smoothing"), [(0.0, 0.0), (-1.0, 0.0), (0.1, 0.5), (0.1, -0.1)])
def test_hyper_parameters_out_of_range(beta: float, smoothing: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        DPO(beta, smoothing)


def test_shapes_that_do_not_belong_together() -> None:
    good = batch()
    with pytest.raises(ValueError, match=r"ref_chosen must be \[B, T\] like chosen_mask"):
        PairLogps(
            good.chosen, good.rejected, good.ref_rejected, good.ref_rejected,
            good.chosen_mask, good.rejected_mask,
        )  # fmt: skip
