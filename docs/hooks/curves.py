"""The pictures of "What your curves mean": preference training so small that it is exact.

python docs/hooks/curves.py            # writes docs/assets/curves-*.png

Policies are tables over a handful of answers, losses are those of `tokenq.objectives` in
expectation over all pairs, training is plain gradient descent in float64. Nothing is sampled but
the numbers that the worlds are made of.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from tokenq.objectives.dpo import DPO
from tokenq.objectives.dpop import DPOP

ASSETS = Path(__file__).parents[1] / "assets"
BLUE, ORANGE, GREY, GOLD, PURPLE = "#1a6199", "#a34a00", "#5c636e", "#b9a44c", "#5b3fd1"
BETA = 0.1
ANSWERS = ("No", "Never", "Yes", "Maybe")
_DIRECTIONS = torch.tensor([[-1.0, 0.2], [-1.6, 0.5], [1.2, 0.1], [0.3, -0.6]]).double()
"""Of the answers' output embeddings: the first two lie beside each other, the second further out,
so that the step from the second to the first points at the third."""
_START = torch.tensor([0.45, 0.30, 0.15, 0.10]).double()

Loss = Callable[[Tensor], Tensor]
"""Of log-probabilities [V]."""


def main() -> None:
    """Draw them all."""
    for name, figure in (
        ("expected", expected()),
        ("displacement", displacement()),
        ("length", length()),
    ):
        path = ASSETS / f"curves-{name}.png"
        figure.savefig(path, dpi=120)
        print(path)


def descent(
    parameters: Tensor, logps: Callable[[Tensor], Tensor], loss: Loss, steps: int, rate: float
) -> Tensor:
    """Log-probabilities [steps + 1, V] along gradient descent."""
    parameters = parameters.clone().requires_grad_()
    course = []
    for _ in range(steps + 1):
        now = logps(parameters)
        course.append(now.detach())
        (slope,) = torch.autograd.grad(loss(now), parameters)
        parameters = (parameters - rate * slope).detach().requires_grad_()
    return torch.stack(course)


def table(parameters: Tensor) -> Tensor:
    """A logit for each answer."""
    return parameters.log_softmax(-1)


# ---- Expected: the same pairs, from two starts ---------------------------------------------------


def expected() -> Figure:
    """Chosen rewards from a start that was tuned on chosen answers, and from one that was not."""
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 12, generator=draw).double().mul(1.2).softmax(-1)
    figure, axes = _axes(2, "steps of descent", "implicit reward, β·nats")
    for place, title, reference in (
        (axes[0], "the reference was tuned on the chosen answers", chosen),
        (axes[1], "the reference knows nothing of them", torch.full((12,), 1 / 12).double()),
    ):
        start = reference.log()

        def loss(now: Tensor, start: Tensor = start) -> Tensor:
            scores = now - start
            pairs = DPO(BETA).losses(scores[:, None], scores[None, :])
            return (chosen[:, None] * rejected[None, :] * pairs).sum()

        rewards = BETA * (descent(start, table, loss, 400, 3.0) - start)
        divergence = -(rewards * reference).sum(-1)
        place.plot(-divergence, color=GOLD, lw=6, alpha=0.6, label="−β·KL(ref ‖ π)")
        place.plot((rewards * reference).sum(-1), color="k", lw=1, label="reference's own answers")
        place.plot((rewards * chosen).sum(-1), color=BLUE, label="chosen")
        place.plot((rewards * rejected).sum(-1), "--", color=ORANGE, label="rejected")
        place.set_title(title, fontsize=10)
    axes[0].legend(fontsize=8, frameon=False, loc="lower left")
    axes[1].set_ylim(axes[0].get_ylim()[0], None)
    return figure


# ---- Harmful: two answers that look alike --------------------------------------------------------


def displacement() -> Figure:
    """One pair, "No" over "Never", where only the state before it moves."""
    start = _START.log()
    away = start - table(torch.zeros(2).double() @ _DIRECTIONS.T)

    def logps(state: Tensor) -> Tensor:
        return (_DIRECTIONS @ state + away).log_softmax(-1)

    def dpo(now: Tensor) -> Tensor:
        return DPO(BETA).losses(*(now - start)[:2])

    ways: dict[str, Loss] = {
        "DPO": dpo,
        "DPO + SFT": lambda now: dpo(now) - 0.1 * now[0],
        "DPOP, λ = 5": lambda now: DPOP(BETA, dpop_lambda=5.0).losses(*(now - start)[:2]),
        "DPOP, λ = 50": lambda now: DPOP(BETA, dpop_lambda=50.0).losses(*(now - start)[:2]),
    }
    found = {
        name: descent(torch.zeros(2).double(), logps, loss, 300, 0.3) for name, loss in ways.items()
    }
    figure, axes = _axes(3, "steps of descent", "")
    for number, (answer, color) in enumerate(
        zip(ANSWERS, (BLUE, ORANGE, PURPLE, GREY), strict=True)
    ):
        axes[0].plot(found["DPO"][:, number].exp(), color=color, label=answer)
    axes[0].set_title("DPO on “No” over “Never”", fontsize=10)
    axes[0].set_ylabel("probability")
    styles = (("-", BLUE), ("--", ORANGE), ("-.", PURPLE), (":", GREY))
    for (name, course), (dashes, color) in zip(found.items(), styles, strict=True):
        scores = course - start
        axes[1].plot(BETA * scores[:, 0], dashes, color=color, label=name)
        axes[2].plot(BETA * (scores[:, 0] - scores[:, 1]), dashes, color=color, label=name)
    axes[1].set_title("reward of the chosen answer, β·nats", fontsize=10)
    axes[2].set_title("margin, β·nats", fontsize=10)
    for place in axes[:2]:
        place.legend(fontsize=8, frameon=False)
    return figure


# ---- Longer and longer ---------------------------------------------------------------------------


def length() -> Figure:
    """Answers that end after each word with the same chance; labels know nothing but length."""
    start, limit = torch.tensor(0.1).double(), 32
    words, shares = torch.tensor([14.0, 8.0]).double(), {0.5: GREY, 0.65: PURPLE, 0.8: BLUE}

    def logps(logit: Tensor) -> Tensor:
        """Of answers with these numbers of tokens, the end token their last."""
        ending = logit.sigmoid()
        return ending.log() + (words - 1) * torch.log1p(-ending)

    before = logps(torch.logit(start))
    figure, axes = _axes(2, "steps of descent", "")
    for share, color in shares.items():
        weights = torch.tensor([share, 1 - share]).double()

        def loss(logit: Tensor, weights: Tensor = weights) -> Tensor:
            scores = logps(logit) - before
            return (weights * DPO(BETA).losses(scores, scores.flip(0))).sum()

        logit, endings = torch.logit(start).requires_grad_(), []
        for _ in range(601):
            endings.append(float(logit.detach().sigmoid()))
            (slope,) = torch.autograd.grad(loss(logit), logit)
            logit = (logit - 0.5 * slope).detach().requires_grad_()
        ending = torch.tensor(endings).double()
        axes[0].plot(
            1 / ending, color=color, label=f"chosen is the longer one in {100 * share:.0f} %"
        )
        axes[1].plot(1 - (1 - ending) ** limit, color=color)
    axes[0].set_title("mean tokens of an answer", fontsize=10)
    axes[1].set_title(f"share that ends within {limit} tokens", fontsize=10)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def _axes(count: int, x_label: str, y_label: str) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(4.2 * count, 3.1), layout="constrained")
    axes: Any = figure.subplots(1, count, squeeze=True)
    for place in axes:
        place.set_xlabel(x_label, fontsize=9)
        place.spines[["top", "right"]].set_visible(False)
        place.axhline(0, color="#999999", lw=0.7)
    axes[0].set_ylabel(y_label, fontsize=9)
    return figure, axes


if __name__ == "__main__":
    main()
