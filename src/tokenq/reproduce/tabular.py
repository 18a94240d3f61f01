"""Tabular policies trained on the exact expected loss of an objective: one logit per state, token.

Nothing is sampled, so what training converges to is the objective's own doing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tokenq.mdp import TokenMDP, expected_pair_loss
from tokenq.mdp.arrays import Array, log_softmax
from tokenq.objectives import PairLogps
from tokenq.objectives.base import Metrics


@dataclass(frozen=True, eq=False)
class Fit:
    """log_policy: [S, A] at the end, with its loss; policies: [n, S, A] along the way."""

    log_policy: Array
    loss: float
    policies: Array


def train(
    objective: Callable[[PairLogps], tuple[Tensor, Metrics]],
    mdp: TokenMDP,
    preferences: Array,
    pairs: Array,
    start: Array,
    iterations: int,
) -> Fit:
    """Minimise the expected loss over all pairs by quasi-Newton steps (BFGS) in float64.

    preferences: [P, R, R] probability that the first response is called the better one
    pairs:       [P, R, R] how often each pair is asked about
    start:       [S, A] logits
    """
    labels, weights = torch.as_tensor(preferences), torch.as_tensor(pairs)
    reference = torch.as_tensor(mdp.ref_logps)

    def pair_loss(*row: Tensor) -> Tensor:
        chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask = row
        batch = PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask)
        return objective(batch)[0]

    def expected(flat: Array) -> tuple[float, Array]:
        logits = torch.tensor(flat.reshape(start.shape), requires_grad=True)
        loss = expected_pair_loss(
            pair_loss, mdp.tree, logits.log_softmax(-1), reference, labels, weights
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        return float(loss.detach()), gradient.numpy().ravel()

    path = [start.ravel()]
    found = minimize(
        expected,
        start.ravel(),
        jac=True,
        method="BFGS",
        callback=lambda flat: path.append(flat.copy()),
        options={"maxiter": iterations, "gtol": 1e-12},
    )
    policies = log_softmax(np.stack(path).reshape(-1, *start.shape))
    return Fit(policies[-1], float(found.fun), policies)


def divergence(mdp: TokenMDP, target: Array, log_policy: Array) -> float:
    """KL(target || policy) over whole responses, nats; mean over prompts. Both are [S, A]."""
    towards = TokenMDP(mdp.tree, mdp.reward, log_policy)
    return float(towards.evaluate(target, 1.0).kl[: mdp.tree.prompts].mean())
