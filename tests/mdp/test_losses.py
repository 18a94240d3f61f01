"""Expected losses: by hand, against a loop over pairs, and where their minimum lies."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.mdp import (
    PrefixTree,
    TokenMDP,
    bradley_terry,
    expected_margin_loss,
    expected_pair_loss,
    step_logps,
    uniform_pairs,
)
from tokenq.objectives import DPO, PairLogps

TREE = PrefixTree(vocabulary=3, horizon=2, eos=1, prompts=2)
BETA = 0.5


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
) -> Tensor:
    return DPO(beta=BETA)(
        PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask)
    )[0]


def test_margin_loss_by_hand() -> None:
    scores = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    preferences = torch.tensor([[[0.5, 0.25], [0.75, 0.5]]], dtype=torch.float64)
    loss = expected_margin_loss(lambda m: m**2 + m, scores, preferences, torch.ones(1, 2, 2))
    # one pair: 1/4 of (-2)^2 - 2 and 3/4 of 2^2 + 2
    assert math.isclose(loss, 0.25 * 2 + 0.75 * 6)


def test_pair_loss_is_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    mdp = TokenMDP.random(TREE, rng)
    policy = torch.tensor(rng.normal(size=mdp.reward.shape)).log_softmax(-1)
    reference = torch.as_tensor(mdp.ref_logps)
    preferences = torch.as_tensor(bradley_terry(mdp.returns))
    pairs = torch.as_tensor(rng.random((2, TREE.responses, TREE.responses)))
    pairs = pairs + pairs.mT
    loss = expected_pair_loss(dpo, TREE, policy, reference, preferences, pairs)

    total = weight = 0.0
    law, ref_law = (TREE.totals(x.numpy()) for x in (policy, reference))
    for prompt in range(2):
        for i in range(TREE.responses):
            for j in range(i):
                ratio = BETA * (law - ref_law)[prompt]
                margin = float(ratio[i] - ratio[j])
                p, w = float(preferences[prompt, i, j]), float(pairs[prompt, i, j])
                total += w * p * math.log1p(math.exp(-margin))
                total += w * (1 - p) * math.log1p(math.exp(margin))
                weight += w
    assert math.isclose(loss, total / weight, rel_tol=1e-12)

    scores = BETA * torch.as_tensor(law - ref_law)
    by_margin = expected_margin_loss(lambda m: -logsigmoid(m), scores, preferences, pairs)
    assert math.isclose(by_margin, loss, rel_tol=1e-12)


def test_the_minimum_of_dpo_is_the_exact_policy() -> None:
    mdp = TokenMDP.random(TREE, np.random.default_rng(1))
    best = torch.tensor(mdp.solve(BETA).log_policy, requires_grad=True)
    preferences = torch.as_tensor(bradley_terry(mdp.returns))
    arguments = (torch.as_tensor(mdp.ref_logps), preferences, uniform_pairs(TREE))
    loss = expected_pair_loss(dpo, TREE, best.log_softmax(-1), *arguments)
    (gradient,) = torch.autograd.grad(loss, best)
    assert gradient.abs().max() < 1e-15
    entropy = -(preferences * preferences.log() + (1 - preferences) * (1 - preferences).log())
    off = ~torch.eye(TREE.responses, dtype=torch.bool)
    assert math.isclose(loss.detach(), entropy[:, off].mean(), rel_tol=1e-12)
    elsewhere = (best + 0.1 * torch.randn(best.shape, dtype=torch.float64)).log_softmax(-1)
    assert expected_pair_loss(dpo, TREE, elsewhere, *arguments) > loss


def test_steps_of_a_policy_add_up_to_its_responses() -> None:
    log_policy = TokenMDP.random(TREE, np.random.default_rng(2)).ref_logps
    steps, mask = step_logps(TREE, torch.as_tensor(log_policy))
    assert steps.shape == mask.shape == (2, TREE.responses, 2)
    assert (steps[~mask] == 0).all()
    np.testing.assert_allclose(steps.sum(-1), TREE.totals(log_policy), atol=1e-15)
