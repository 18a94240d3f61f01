"""Plain gradient descent on exact losses of many bandits at once, one logit per answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenq.mdp.targets import PopulationLoss, PreferenceBandit

GRID = tuple(2.0**power for power in range(-3, 14))
"""Step sizes that are tried."""
FIXED_STEP = 0.5
"""Step size of a comparison without tuning."""
MILESTONES = (1e-3, 1e-6, 1e-9)
"""KL to the goal, nats, whose first iteration is recorded."""

RUNAWAY = 300.0
"""Nats between the largest and the smallest logit from which a run counts as diverged."""

STILL = 1e-13
"""Largest entry of a gradient that moves nothing any more."""


@dataclass(frozen=True)
class Descent:
    """N runs.

    log_policy: [N, K] at the end
    loss:       [N] at the end; nan where diverged
    reached:    [N, len(MILESTONES)] iterations until KL(pi || goal) fell below; -1: it did not
    diverged:   [N] bool
    """

    log_policy: Tensor
    loss: Tensor
    reached: Tensor
    diverged: Tensor


def descend(
    loss: PopulationLoss, bandit: PreferenceBandit, steps: Tensor, iterations: int, goal: Tensor
) -> Descent:
    """Run from the reference with constant `steps` [N] towards log-probabilities `goal` [N, K].

    A run ends at the last milestone, when it diverges or its gradient is gone, or after
    `iterations`.
    """
    count = len(goal)
    logits = bandit.reference.log().clone()
    losses = torch.full((count,), torch.nan, dtype=torch.float64)
    reached = torch.full((count, len(MILESTONES)), -1)
    diverged = torch.zeros(count, dtype=torch.bool)
    running = torch.arange(count)
    problem, aims, rates = bandit, goal, steps[:, None]
    milestones = torch.tensor(MILESTONES, dtype=torch.float64)
    current = logits.clone()
    for iteration in range(iterations + 1):
        current.requires_grad_(True)
        log_policy = torch.log_softmax(current, -1)
        value = loss(log_policy, problem)
        (gradient,) = torch.autograd.grad(value.sum(), current)
        with torch.no_grad():
            distance = (log_policy.exp() * (log_policy - aims)).sum(-1, keepdim=True)
            passed = (distance < milestones) & (reached[running] < 0)
            reached[running] = torch.where(passed, iteration, reached[running])
            losses[running], logits[running] = value, log_policy
            moved = current - rates * gradient
            away = ~moved.isfinite().all(-1) | (moved.amax(-1) - moved.amin(-1) > RUNAWAY)
            diverged[running] = away
            still = gradient.abs().amax(-1) < STILL
            kept = ~away & ~still & (reached[running, -1] < 0)
            if not bool(kept.any()):
                break
            if not bool(kept.all()):
                running, problem, aims = running[kept], problem.take(kept), aims[kept]
                rates, moved = rates[kept], moved[kept]
            current = moved
    return Descent(logits, losses, reached, diverged)


def tuned(
    loss: PopulationLoss,
    bandit: PreferenceBandit,
    groups: Tensor,
    grid: Sequence[float],
    iterations: int,
    goal: Tensor,
) -> Tensor:
    """[G] the step of `grid` that suits each group of problems; `groups` [N] numbers them from 0.

    The one that reaches the first milestone in the fewest iterations on all problems of the group;
    where none does, the one that ends at the lowest mean loss without diverging.
    """
    count, size = len(groups), len(grid)
    every = torch.arange(count).repeat(size)
    steps = torch.tensor(grid, dtype=torch.float64).repeat_interleave(count)
    run = descend(loss, bandit.take(every), steps, iterations, goal[every])
    reached = run.reached[:, 0].view(size, count).double()
    reached = torch.where(reached < 0, torch.inf, reached)
    last = torch.where(run.diverged, torch.inf, run.loss).view(size, count)
    chosen = []
    for group in range(int(groups.max()) + 1):
        member = groups == group
        slowest = reached[:, member].amax(-1)
        left = last[:, member].mean(-1)
        best = slowest.argmin() if bool(slowest.isfinite().any()) else left.argmin()
        chosen.append(grid[int(best)])
    return torch.tensor(chosen, dtype=torch.float64)
