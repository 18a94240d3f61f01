"""Exact expected losses over all pairs of responses, differentiable: no sampling, no batches.

A pair {i, j} of one prompt is drawn with a given weight, and i is called the better one with the
probability `preferences[i, j]`. The loss itself is handed in by the caller.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenq.mdp.tree import PrefixTree

MarginLoss = Callable[[Tensor], Tensor]
"""Loss of a pair from the margin of the chosen over the rejected response, elementwise."""

PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""0-dim loss from chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask [1, T]."""


def uniform_pairs(tree: PrefixTree) -> Tensor:
    """[P, R, R] equal weights for all pairs of different responses to one prompt."""
    different = 1.0 - torch.eye(tree.responses, dtype=torch.float64)
    return different.expand(tree.prompts, -1, -1)


def expected_margin_loss(
    loss: MarginLoss, scores: Tensor, preferences: Tensor, pairs: Tensor
) -> Tensor:
    """0-dim expectation of a loss of margins.

    scores:      [P, R] what margins are differences of, such as `beta * log(pi/pi_ref)(y|x)`
    preferences: [P, R, R] probability that the first response is called the better one
    pairs:       [P, R, R] symmetric weights >= 0; the diagonal does not count
    """
    weights = _labelled(preferences, pairs)
    margins = scores[..., :, None] - scores[..., None, :]
    return (weights * loss(margins)).sum()


def expected_pair_loss(
    loss: PairLoss,
    tree: PrefixTree,
    log_policy: Tensor,
    ref_logps: Tensor,
    preferences: Tensor,
    pairs: Tensor,
) -> Tensor:
    """0-dim expectation of a loss of per-step log-probabilities: what an objective is given.

    log_policy, ref_logps: [S, A] log-probabilities of the policy and of the reference
    preferences, pairs:    as for :func:`expected_margin_loss`

    Every labelled pair with a weight is handed over by itself, as one row, under `torch.func.vmap`;
    the loss must therefore not branch on values.
    """
    weights = _labelled(preferences, pairs)
    prompt, chosen, rejected = weights.nonzero(as_tuple=True)
    policy, masks = step_logps(tree, log_policy)
    reference, _ = step_logps(tree, ref_logps)
    rows = (
        policy[prompt, chosen],
        policy[prompt, rejected],
        reference[prompt, chosen],
        reference[prompt, rejected],
        masks[prompt, chosen],
        masks[prompt, rejected],
    )
    losses = torch.func.vmap(loss)(*(row[:, None] for row in rows))
    return (weights[prompt, chosen, rejected] * losses).sum()


def step_logps(tree: PrefixTree, log_policy: Tensor) -> tuple[Tensor, Tensor]:
    """[P, R, T] log-probability of every step of every response, 0 where masked; and the mask."""
    paths = tree.paths
    states, tokens = torch.as_tensor(paths.states), torch.as_tensor(paths.tokens)
    mask = torch.as_tensor(paths.mask).expand(states.shape)
    taken = log_policy[states, tokens]
    return torch.where(mask, taken, taken.new_zeros(())), mask


def _labelled(preferences: Tensor, pairs: Tensor) -> Tensor:
    """[P, R, R] probability of each ordered pair; sums to 1."""
    off_diagonal = 1.0 - torch.eye(pairs.shape[-1], dtype=pairs.dtype)
    unordered = pairs * off_diagonal
    return unordered * preferences / (0.5 * unordered.sum())
