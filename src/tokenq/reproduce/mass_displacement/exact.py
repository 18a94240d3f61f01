"""The first-order predictions of displacement against the change itself, in float64."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenq.models.head import Head
from tokenq.monitor.similarity import head_gradients
from tokenq.reproduce.mass_displacement.predictors import fork_change

CASES, VOCABULARY, HIDDEN, STEP = 200, 12, 6, 1e-5


def exact() -> dict[str, Any]:
    """Random softmax models: largest |measured - predicted|, relative to the predicted size.

    head: log pi(y+) of answers of two to four tokens when the head's weights move along the
          margin's gradient; predicted by `HeadGradients.chosen_change`
    fork: log pi of one token when the state before it does; predicted by `fork_change`
    falls: by cosine of the two tokens' embeddings, the share of models in which the chosen token
           becomes less likely while the margin grows
    """
    draw = torch.Generator().manual_seed(0)
    head = max(_head_case(draw) for _ in range(CASES))
    forks = [_fork_case(draw, cosine) for cosine in _COSINES for _ in range(CASES)]
    return {
        "cases": CASES,
        "head": head,
        "fork": max(error for error, _ in forks),
        "falls": {
            f"{cosine:g}": sum(change < 0 for _, change in part) / CASES
            for cosine, part in zip(_COSINES, _parts(forks), strict=True)
        },
    }


_COSINES = (0.0, 0.5, 0.9, 0.99)


def _parts(forks: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    return [forks[i : i + CASES] for i in range(0, len(forks), CASES)]


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _head_case(draw: torch.Generator) -> float:
    weight = _normal(draw, VOCABULARY, HIDDEN)
    sides = []
    for _ in range(2):
        length = int(torch.randint(2, 5, (1,), generator=draw))
        tokens = torch.randint(VOCABULARY, (length,), generator=draw).tolist()
        sides.append((_normal(draw, length, HIDDEN), tokens))

    def logp(weight: Tensor, side: tuple[Tensor, list[int]]) -> Tensor:
        logps = torch.log_softmax(side[0] @ weight.T, dim=-1)
        return logps[torch.arange(len(side[1])), side[1]].sum()

    moving = weight.clone().requires_grad_()
    margin = logp(moving, sides[0]) - logp(moving, sides[1])
    (gradient,) = torch.autograd.grad(margin, moving)
    ahead, behind = (logp(weight + sign * STEP * gradient, sides[0]) for sign in (1, -1))
    measured = float(ahead - behind) / (2 * STEP)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight)
        found = head_gradients(Head(linear), *sides)
    return abs(measured - found.chosen_change) / (found.chosen + abs(found.product))


def _fork_case(draw: torch.Generator, cosine: float) -> tuple[float, float]:
    """(relative error, predicted change); tokens 0 and 1, embeddings of this cosine."""
    weight = _normal(draw, VOCABULARY, HIDDEN)
    first, other = weight[0] / weight[0].norm(), weight[1]
    across = other - (other @ first) * first
    mixed = cosine * first + math.sqrt(1 - cosine**2) * across / across.norm()
    weight[1] = mixed * weight[0].norm()
    state = _normal(draw, 1, HIDDEN)
    predicted = fork_change(weight, state, [0], [1])
    direction = weight[0] - weight[1]
    ahead, behind = (
        torch.log_softmax((state[0] + sign * STEP * direction) @ weight.T, dim=-1)[0]
        for sign in (1, -1)
    )
    measured = float(ahead - behind) / (2 * STEP)
    return abs(measured - predicted) / float(direction.norm() * weight[0].norm()), predicted
