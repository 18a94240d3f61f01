"""Scores of f-divergences against the derivative of f itself, and far from the reference."""

import math

import pytest
import torch
from torch import Tensor

from tokenq.objectives.f_divergence import LARGEST_EXPONENT, Divergence, divergence_score

RATIOS = torch.linspace(-6, 6, 25, dtype=torch.float64)


def generator(divergence: str, t: Tensor, order: float) -> Tensor:
    """f of the divergence D_f(pi || pi_ref) = E_ref f(pi / pi_ref), as the papers define it."""
    if divergence == "reverse_kl":
        return t * t.log()
    if divergence == "forward_kl":
        return -t.log()
    if divergence == "js_divergence":
        return t * t.log() - (t + 1) * ((t + 1) / 2).log()
    return (t**order - order * t + order - 1) / (order * (order - 1))


@pytest.mark.parametrize(
    ("divergence", "order"),
    [("reverse_kl", 0.5), ("forward_kl", 0.5), ("js_divergence", 0.5)]
    + [("alpha_divergence", order) for order in (-1.5, 0.25, 0.5, 0.9, 2.0, 3.0)],
)
def test_it_is_the_derivative_of_f(divergence: Divergence, order: float) -> None:
    t = torch.cat([RATIOS.exp(), torch.ones(1, dtype=torch.float64)]).requires_grad_()
    (slope,) = torch.autograd.grad(generator(divergence, t, order).sum(), t)
    score = divergence_score(RATIOS, divergence, order)
    torch.testing.assert_close(score, slope[:-1] - slope[-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence"])
def test_f_is_convex_and_0_at_the_reference(divergence: Divergence) -> None:
    one = torch.ones((), dtype=torch.float64)
    assert generator(divergence, one, 0.5) == 0
    assert (divergence_score(RATIOS, divergence, 0.5).diff() > 0).all()


def test_special_orders_of_the_alpha_divergence() -> None:
    def alpha(order: float) -> Tensor:
        return divergence_score(RATIOS, "alpha_divergence", order)

    assert torch.equal(alpha(0.0), divergence_score(RATIOS, "forward_kl", 0.5))
    assert torch.equal(alpha(1.0), RATIOS)
    torch.testing.assert_close(alpha(1 + 1e-5), RATIOS, rtol=0, atol=2e-4)


def test_worked_by_hand() -> None:
    ratio = torch.tensor(math.log(4.0), dtype=torch.float64)
    assert math.isclose(divergence_score(ratio, "forward_kl", 0.5), 0.75)
    assert math.isclose(divergence_score(ratio, "js_divergence", 0.5), math.log(1.6))
    assert math.isclose(divergence_score(ratio, "alpha_divergence", 0.5), 1.0)  # 2 - 2 / sqrt(4)
    assert math.isclose(divergence_score(ratio, "alpha_divergence", 2.0), 3.0)


def test_the_tangent_goes_on_where_the_exponential_ends() -> None:
    x = torch.tensor([LARGEST_EXPONENT - 1e-6, LARGEST_EXPONENT + 1e-6, 1e6]).double()
    x.requires_grad_()
    score = divergence_score(-x, "forward_kl", 0.5)
    (slope,) = torch.autograd.grad(score.sum(), x)
    torch.testing.assert_close(score[0], score[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(slope, torch.full_like(slope, -math.exp(25)), rtol=1e-5, atol=0)
    assert score[2].isfinite()
