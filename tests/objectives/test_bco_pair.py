"""BCO on pairs: by hand, and an upper bound of DPO."""

import math

import torch
from objective_batches import Draw, pair_of, random_pair

from tokenq.objectives import DPO, BCOPair


def test_worked_by_hand() -> None:
    # rewards log 3 and -log 7: -log(3/4) - log(7/8)
    batch = pair_of([[2 * math.log(3)]], [[-2 * math.log(7)]])
    loss, _ = BCOPair(beta=0.5)(batch)
    torch.testing.assert_close(loss.item(), -math.log(0.75) - math.log(0.875))


def test_it_bounds_dpo_from_above() -> None:
    for seed in range(20):
        batch = random_pair(Draw(seed=seed, rows=1))
        assert BCOPair(beta=0.4)(batch)[0] > DPO(beta=0.4)(batch)[0]
