"""AOT: by hand, what the sort makes of a batch, and the case in which it is DPO."""

import math

import pytest
import torch
from objective_batches import Draw, pair_of, random_pair, take_rows

from tokenq.objectives import AOT, DPO, AOTUnpaired, PairLogps


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_unpaired_by_hand() -> None:
    # chosen sorted -1, 2; rejected sorted -3, 1: margins 2 and 1
    batch = pair_of([[2.0], [-1.0]], [[1.0], [-3.0]])
    loss, metrics = AOTUnpaired(beta=1.0)(batch)
    torch.testing.assert_close(loss.item(), (softplus(-2) + softplus(-1)) / 2)
    assert metrics["rewards/margins"] == 1.5


def test_paired_by_hand() -> None:
    # margins of the policy 3, 1; of the reference 0, 4: sorted 1, 3 against 0, 4
    column = torch.tensor([[3.0], [1.0]]).double().requires_grad_()
    reference = torch.tensor([[0.0], [4.0]]).double()
    zeros, mask = torch.zeros(2, 1).double(), torch.ones(2, 1).bool()
    batch = PairLogps(column, zeros, reference, zeros, mask, mask)
    loss, _ = AOT(beta=1.0)(batch)
    torch.testing.assert_close(loss.item(), (softplus(-1) + softplus(1)) / 2)


@pytest.mark.parametrize("objective", [AOT(), AOTUnpaired()])
def test_a_single_pair_is_dpo(objective: AOT) -> None:
    batch = random_pair(Draw(rows=1))
    torch.testing.assert_close(objective(batch)[0], DPO(beta=0.01)(batch)[0])


def test_unpaired_knows_nothing_of_the_pairs() -> None:
    batch = random_pair(Draw())
    other = take_rows(batch, torch.arange(8).roll(3))
    mixed = PairLogps(
        batch.chosen, other.rejected, batch.ref_chosen, other.ref_rejected,
        batch.chosen_mask, other.rejected_mask,
    )  # fmt: skip
    torch.testing.assert_close(AOTUnpaired()(mixed)[0], AOTUnpaired()(batch)[0])
    assert DPO()(mixed)[0] != DPO()(batch)[0]
