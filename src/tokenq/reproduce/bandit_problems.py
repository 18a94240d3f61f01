"""The small bandits that objectives are compared on."""

from collections.abc import Sequence
from dataclasses import fields

import torch

from tokenq.mdp import targets
from tokenq.mdp.targets import PreferenceBandit

ANSWERS = 5
TAUS = (0.2, 0.5, 1.0, 2.0)
COVERAGES = ("uniform", "skewed", "missing")
LABELS = ("sampled", "deterministic", "noisy")
FLIPS = 0.1


def problem(seed: int, tau: float, coverage: str, labels: str) -> PreferenceBandit:
    """A random bandit of `ANSWERS` answers; the seed decides reward, reference and who is rare.

    coverage: uniform; skewed: 1, 1/3, 1/9 ... in random order; missing: no pair has the best answer
    labels:   sampled: Bradley-Terry probabilities; deterministic; noisy: sampled, then flipped at
              rate `FLIPS`
    """
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(ANSWERS, generator=generator, dtype=torch.float64)
    reference = torch.softmax(
        0.5 * torch.randn(ANSWERS, generator=generator, dtype=torch.float64), -1
    )
    order = torch.randperm(ANSWERS, generator=generator).double()
    covered = {
        "uniform": torch.ones_like(reward),
        "skewed": 3.0**-order,
        "missing": torch.where(reward == reward.max(), 0.0, 1.0).double(),
    }[coverage]
    sampled = targets.bradley_terry(reward)
    preferences = {
        "sampled": sampled,
        "deterministic": targets.deterministic(reward),
        "noisy": targets.flipped(sampled, FLIPS),
    }[labels]
    temperature = torch.tensor(tau, dtype=torch.float64)
    return PreferenceBandit(reference, reward, temperature, covered, preferences)


def stacked(problems: Sequence[PreferenceBandit]) -> PreferenceBandit:
    """Several problems as one with a leading dimension."""
    return PreferenceBandit(
        *(torch.stack([getattr(one, f.name) for one in problems]) for f in fields(problems[0]))
    )
