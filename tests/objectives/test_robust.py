"""Robust DPO: by hand, and unbiased over flipped labels, which conservative DPO is not."""

import math

import pytest
import torch
from objective_batches import Draw, pair_of, random_pair

from tokenq.objectives import DPO, PairLogps, RobustDPO


def test_worked_by_hand() -> None:
    # margin log 3: (-0.9 log(3/4) + 0.1 log(1/4)) / 0.8
    loss, _ = RobustDPO(beta=1.0, label_smoothing=0.1)(pair_of([[math.log(3)]], [[0.0]]))
    expected = (-0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 0.8
    torch.testing.assert_close(loss.item(), expected)


def test_the_mean_over_flips_is_the_clean_loss() -> None:
    clean = random_pair(Draw())
    flipped = PairLogps(
        clean.rejected, clean.chosen, clean.ref_rejected, clean.ref_chosen,
        clean.rejected_mask, clean.chosen_mask,
    )  # fmt: skip
    for objective, unbiased in ((RobustDPO(0.3, 0.2), True), (DPO(0.3, 0.2), False)):
        mean = 0.8 * objective(clean)[0] + 0.2 * objective(flipped)[0]
        assert torch.isclose(mean, DPO(0.3)(clean)[0]) == unbiased


@pytest.mark.parametrize("smoothing", [0.5, 1.0, -0.1])
def test_label_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        RobustDPO(label_smoothing=smoothing)
