"""What the objectives without a reference share: scores of a response, links from margin to loss.

SimPO, CPO, ORPO and TPO are built from these; the objectives themselves live in files of their own.
"""

from typing import Literal

from torch import Tensor
from torch.nn.functional import relu

from tokenq.objectives.base import (
    masked_mean,
    require_label_smoothing,
    require_one_of,
    smoothed_sigmoid,
)
from tokenq.objectives.batch import ResponseLogps

Form = Literal["sigmoid", "hinge", "ipo"]
"""How a margin becomes a loss; names as TRL has them."""


def summed_log_prob(side: ResponseLogps) -> Tensor:
    """Log-probability of each response, nats: [B]."""
    return side.log_probs.sum(-1)


def mean_log_prob(side: ResponseLogps) -> Tensor:
    """Log-probability of each response over its number of steps, nats a step: [B]."""
    return masked_mean(side.logps, side.mask)


def score(side: ResponseLogps, form: Form) -> Tensor:
    """Log-probability of each response: a sum, under "ipo" a mean, as in TRL: [B]."""
    return mean_log_prob(side) if form == "ipo" else summed_log_prob(side)


def margin_losses(margin: Tensor, form: Form, beta: float, label_smoothing: float) -> Tensor:
    """Loss of each pair whose scores differ by `margin` nats, any shape.

    sigmoid: see :func:`smoothed_sigmoid`, of beta * margin
    hinge:   max(0, 1 - beta * margin)
    ipo:     (margin - 1 / (2 beta))^2
    """
    if form == "hinge":
        return relu(1 - beta * margin)
    if form == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return smoothed_sigmoid(beta * margin, label_smoothing)


def require_form(forms: tuple[str, ...], label_smoothing: float, **values: str) -> None:
    """Raise ValueError for a form that is not of `forms`, or that has no labels to smooth."""
    require_label_smoothing(label_smoothing)
    require_one_of(forms, **values)
    for name, form in values.items():
        if label_smoothing and form in ("hinge", "ipo"):
            raise ValueError(
                f"label_smoothing must be 0 with {name} {form!r}, which has no labels to smooth, "
                f"got {label_smoothing}"
            )
