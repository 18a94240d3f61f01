"""DMPO against numbers worked out by hand and the limits of its discount."""

import math

import numpy as np
import pytest
import torch
from objective_batches import random_pair

from tokenq.mdp import PrefixTree, TokenMDP, bradley_terry, expected_pair_loss, uniform_pairs
from tokenq.mdp.arrays import log_sum_exp
from tokenq.objectives import DMPO, DPO, PairLogps, StepFeatures
from tokenq.objectives.dmpo import turn_weights


def pair(chosen_turns: list[int], rejected_turns: list[int]) -> PairLogps:
    """One pair whose every token has the log-ratio 1; the last token is masked."""

    def side(turns: list[int]) -> tuple[torch.Tensor, torch.Tensor, StepFeatures]:
        logps = torch.ones(1, len(turns), dtype=torch.float64)
        mask = torch.tensor([[turn >= 0 for turn in turns]])
        return logps, mask, StepFeatures(segments=torch.tensor([turns]))

    chosen, chosen_mask, chosen_features = side(chosen_turns)
    rejected, rejected_mask, rejected_features = side(rejected_turns)
    return PairLogps(
        chosen,
        rejected,
        torch.zeros_like(chosen),
        torch.zeros_like(rejected),
        chosen_mask,
        rejected_mask,
        chosen_features,
        rejected_features,
    )


def test_by_hand() -> None:
    # gamma 1/2, 3 turns: phi = 1, 1/2 * (3/4)/(7/8) = 3/7, 1/4 * (1/2)/(7/8) = 1/7; one turn: 1.
    batch = pair([0, 0, -1, 1, -1, 2, 2], [0, -1])
    loss, metrics = DMPO(beta=0.7, dmpo_gamma=0.5)(batch)
    chosen, rejected = 0.7 * (2 * 1 + 3 / 7 + 2 * 1 / 7), 0.7
    assert float(metrics["rewards/chosen"]) == pytest.approx(chosen)
    assert float(metrics["rewards/rejected"]) == pytest.approx(rejected)
    assert loss.item() == pytest.approx(math.log1p(math.exp(rejected - chosen)))


def test_weights_as_sums_over_what_is_left() -> None:
    """phi(j, n) is the discounted number of turns from j on, over that of all turns."""
    for gamma in (0.1, 0.7, 0.999999, 1.0):
        for n in (1, 2, 7):
            powers = [gamma**k for k in range(n)]
            want = [sum(powers[j:]) / sum(powers) for j in range(n)]
            got = turn_weights(torch.arange(n, dtype=torch.float64)[None], gamma)[0]
            assert got.tolist() == pytest.approx(want, rel=1e-9)


def test_the_discount_goes_over_into_a_straight_line() -> None:
    batch = random_pair()
    limit = DMPO(dmpo_gamma=1.0)(batch)[0]
    torch.testing.assert_close(DMPO(dmpo_gamma=1 - 1e-9)(batch)[0], limit, rtol=0, atol=1e-8)
    assert abs((DMPO(dmpo_gamma=0.7)(batch)[0] - limit).item()) > 1e-4


def test_one_turn_alone_is_dpo() -> None:
    for gamma in (0.3, 1.0):
        batch = pair([0, 0, 0, -1], [0, 0])
        torch.testing.assert_close(DMPO(dmpo_gamma=gamma)(batch)[0], DPO()(batch)[0])


def test_turns_converge_to_a_policy_of_a_temperature_each() -> None:
    """Three turns of one token, Bradley-Terry labels: the policy that is optimal when turn j has
    the temperature beta * phi(j, 3), made from the last turn back."""
    tree, beta, gamma = PrefixTree(vocabulary=2, horizon=3), 0.6, 0.5
    mdp = TokenMDP.random(tree, np.random.default_rng(0))
    phi = np.repeat([1, 3 / 7, 1 / 7], [1, 2, 4])  # of each state, by its level
    step = mdp.reward / beta / phi[:, None] + mdp.ref_logps
    value = tree.backward(
        lambda level, following: (
            beta * phi[level] * log_sum_exp(step[level] + following / beta / phi[level, None])
        ),
        (),
    )
    law = step + (tree.next_values(value) - value[:, None]) / beta / phi[:, None]
    np.testing.assert_allclose(np.exp(law).sum(-1), 1)
    features = StepFeatures(segments=torch.arange(3)[None])

    def slope(gamma: float) -> float:
        def loss(*sides: torch.Tensor) -> torch.Tensor:
            return DMPO(beta, gamma)(PairLogps(*sides, features, features))[0]

        policy = torch.tensor(law, requires_grad=True)
        expected = expected_pair_loss(
            loss, tree, policy.log_softmax(-1), torch.tensor(mdp.ref_logps),
            torch.tensor(bradley_terry(mdp.returns)), uniform_pairs(tree),
        )  # fmt: skip
        return float(torch.autograd.grad(expected, policy)[0].abs().max())

    assert slope(gamma) < 1e-14
    assert slope(0.7) > 1e-3


def test_thousands_of_turns_are_finite() -> None:
    weights = turn_weights(torch.arange(5000.0)[None], 0.7)
    assert weights.isfinite().all()
    assert weights[0, 0] == 1


@pytest.mark.parametrize(
    ("field", "value"), [("beta", 0.0), ("dmpo_gamma", 0.0), ("dmpo_gamma", 1.1)]
)
def test_bad_hyper_parameters(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got"):
        DMPO(**{field: value})
