"""The contextual case: one small network for many prompts, exact losses, no sampling noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenq.mdp import targets
from tokenq.mdp.targets import PopulationLoss, PreferenceBandit

CONTEXTS, INPUTS, ANSWERS = 24, 6, 5
SMALL, LARGE = 3, 64
"""Hidden units: too few to hold the target, and enough."""


@dataclass(frozen=True)
class Contexts:
    """S seeds. inputs: [S, C, INPUTS]; bandit: its leading dimensions are [S, C]."""

    inputs: Tensor
    bandit: PreferenceBandit


def contexts(seeds: int, tau: float) -> Contexts:
    """Prompts as Gaussian vectors; rewards from a random network, standardised; uniform pairs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(seeds, CONTEXTS, INPUTS)
    reward = torch.tanh(inputs @ normal(seeds, INPUTS, 16)) @ normal(seeds, 16, ANSWERS)
    reward = (reward - reward.mean((1, 2), keepdim=True)) / reward.std((1, 2), keepdim=True)
    reference = torch.softmax(0.3 * inputs @ normal(seeds, INPUTS, ANSWERS), -1)
    even = torch.full_like(reward, 1 / ANSWERS)
    temperature = torch.full(reward.shape[:-1], tau, dtype=torch.float64)
    bandit = PreferenceBandit(reference, reward, temperature, even, targets.bradley_terry(reward))
    return Contexts(inputs, bandit)


def from_worst(bandit: PreferenceBandit) -> PreferenceBandit:
    """Coverage 3^-rank from the answer with the least reward upwards: good answers are rare."""
    rank = bandit.reward.argsort(-1).argsort(-1)
    return replace(bandit, coverage=3.0 ** -rank.double())


def train(
    loss: PopulationLoss,
    problem: Contexts,
    hidden: int,
    iterations: int,
    *,
    see: Callable[[PreferenceBandit, Tensor], PreferenceBandit],
) -> Tensor:
    """[S] mean over prompts of KL(pi || pi^tau), nats, after full-batch Adam.

    see: what the loss is told, from the problem and log pi: a coverage, labels
    """
    seeds = len(problem.inputs)
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(seeds, INPUTS, hidden, generator=generator, dtype=torch.float64)
    weights = [
        (first / INPUTS**0.5).requires_grad_(True),
        torch.zeros(seeds, 1, hidden, dtype=torch.float64, requires_grad=True),
        torch.zeros(seeds, hidden, ANSWERS, dtype=torch.float64, requires_grad=True),
    ]
    optimizer = torch.optim.Adam(weights, lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=1e-4)

    def log_policy() -> Tensor:
        units = torch.tanh(problem.inputs @ weights[0] + weights[1])
        return torch.log_softmax(problem.bandit.reference.log() + units @ weights[2], -1)

    for _ in range(iterations):
        policy = log_policy()
        value = loss(policy, see(problem.bandit, policy.detach())).mean(-1).sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return targets.bda(log_policy(), problem.bandit).mean(-1)
