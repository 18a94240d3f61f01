"""Scores of a response under divergences other than the reverse KL (f-DPO)."""

import math
from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import require_within

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

LARGEST_EXPONENT = 25.0
"""Above it an exponential goes on in a straight line: its square still fits into fp32."""


def divergence_score(log_ratio: Tensor, divergence: Divergence, order: float) -> Tensor:
    """Return `f'(t) - f'(1)` for the probability ratio `t = exp(log_ratio)`; any shape, nats.

    The optimal policy under a penalty `beta * D_f(pi || pi_ref) = beta * E_ref f(pi/pi_ref)` has
    the reward `beta * f'(pi/pi_ref)` up to a number that is the same for all answers to a prompt
    (Wang et al., "Beyond Reverse KL", arXiv 2309.16240, section 4):

        reverse_kl        f = t log t                                   log t
        forward_kl        f = -log t                                    1 - 1/t
        js_divergence     f = t log t - (t + 1) log((t + 1) / 2)        log(2 t / (t + 1))
        alpha_divergence  f = (t^a - a t + a - 1) / (a (a - 1))         (t^(a - 1) - 1) / (a - 1)

    order: the a of the alpha divergence. It is TRL's `f_alpha_divergence_coef`, and 1 minus the
           alpha of the paper; at 0.5, the default, both are the same.
    """
    if divergence == "alpha_divergence":
        return log_ratio if abs(order - 1) < 1e-6 else _power(log_ratio, order - 1)
    if divergence == "forward_kl":
        return _power(log_ratio, -1)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    return log_ratio


def check_divergence(divergence: str, order: float) -> None:
    """Raise ValueError for an unknown divergence or an order that is out of range."""
    if divergence not in get_args(Divergence):
        accepted = ", ".join(get_args(Divergence))
        raise ValueError(f"f_divergence_type must be one of {accepted}, got {divergence!r}")
    require_within(-10, 10, f_alpha_divergence_coef=order)


def _power(log_ratio: Tensor, exponent: float) -> Tensor:
    """(t^exponent - 1) / exponent, along its tangent where t^exponent would overflow."""
    exponents = exponent * log_ratio
    bounded = exponents.clamp(max=LARGEST_EXPONENT).expm1()
    tangent = math.exp(LARGEST_EXPONENT) * (exponents - LARGEST_EXPONENT).relu()
    return (bounded + tangent) / exponent
