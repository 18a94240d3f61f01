"""Closed forms of what losses over preference pairs converge to on a bandit, each tested.

Each takes the problem and returns the policy [..., K] that minimises the exact expected loss over
all policies. Where the form does not hold for the labels or the coverage at hand, ValueError says
so: nothing is approximated here. Sources are in `target_table`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tokenq.mdp.targets import PreferenceBandit, boltzmann, flipped

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


def bradley_terry_scores(preferences: Tensor) -> Tensor:
    """[..., K] scores of mean 0 with sigmoid(s_i - s_j) = preferences[i, j].

    Raises ValueError where there are none: labels without noise, or a law of another form.
    """
    odds = torch.logit(preferences)
    scores = odds.mean(-1)
    differences = scores[..., :, None] - scores[..., None, :]
    if not bool(odds.isfinite().all()) or float((odds - differences).abs().max()) > 1e-8:
        raise ValueError("the label law is not Bradley-Terry: its log-odds are no differences")
    return scores


def told_law(bandit: PreferenceBandit) -> Tensor:
    """pi_ref exp(r / tau) / Z with the true reward: where differences of it are told."""
    _require_coverage(bandit)
    return bandit.target


def logistic_law(bandit: PreferenceBandit) -> Tensor:
    """pi_ref exp(s / tau) / Z with s the Bradley-Terry scores of the labels: DPO's."""
    _require_coverage(bandit)
    return boltzmann(bandit.reference, bradley_terry_scores(bandit.preferences), bandit.tau)


def smoothed_law(bandit: PreferenceBandit, smoothing: float) -> Tensor:
    """DPO's for the labels (1 - 2e) P + e: flatter. Bradley-Terry again only for two answers."""
    return logistic_law(replace(bandit, preferences=flipped(bandit.preferences, smoothing)))


def robust_law(bandit: PreferenceBandit, smoothing: float) -> Tensor:
    """DPO's for the labels (P - e) / (1 - 2e): those before flips at rate e.

    Raises ValueError where some P < e: the loss is then unbounded below.
    """
    clean = (bandit.preferences - smoothing) / (1 - 2 * smoothing)
    if bool(((clean <= 0) | (clean >= 1)).any()):
        raise ValueError(f"some labels are flipped less often than {smoothing}: no finite minimum")
    return logistic_law(replace(bandit, preferences=clean))


def weighted_law(bandit: PreferenceBandit, weight: float) -> Tensor:
    """DPO's at the temperature `weight` * tau: every log-ratio counts `weight` times."""
    return logistic_law(replace(bandit, tau=weight * bandit.tau))


def uniform_prior_law(bandit: PreferenceBandit) -> Tensor:
    """exp(s / tau) / Z: pair losses of log pi without a reference."""
    return logistic_law(bandit.without_reference())


def win_rate_law(bandit: PreferenceBandit) -> Tensor:
    """pi_ref exp((w - 1/2) / tau) / Z, w the win rate against the coverage: IPO's, any labels.

    The target of a margin is (P_ij - 1/2) / tau; least squares with weights mu_i mu_j over
    differences h_i - h_j has the weighted row mean as its solution.
    """
    _require_coverage(bandit)
    return boltzmann(bandit.reference, bandit.win_rates - 0.5, bandit.tau)


def chosen_law(bandit: PreferenceBandit) -> Tensor:
    """The distribution of the chosen answers: the likelihood's."""
    _require_coverage(bandit)
    return bandit.chosen_law


def odds_law(bandit: PreferenceBandit) -> Tensor:
    """pi / (1 - pi) proportional to exp(s): the odds-ratio term of ORPO alone, no temperature."""
    _require_coverage(bandit)
    scores = bradley_terry_scores(bandit.preferences)
    shift = _root(lambda c: torch.sigmoid(scores + c[..., None]).sum(-1) - 1, scores, -60, 60)
    return torch.sigmoid(scores + shift[..., None])


def divergence_law(bandit: PreferenceBandit, divergence: Divergence, alpha: float = 0.5) -> Tensor:
    """pi_ref (f')^-1((s - lambda) / tau), lambda so that it sums to 1: f-DPO's (arXiv 2309.16240).

    f'(u), u = pi/pi_ref, up to constants that lambda takes: log u (reverse KL), -1/u (forward KL),
    log(u / (1 + u)) (Jensen-Shannon), -u^-alpha / alpha (alpha > 0).
    """
    _require_coverage(bandit)
    scores = bradley_terry_scores(bandit.preferences) / bandit.tau[..., None]
    if divergence == "reverse_kl":
        return boltzmann(bandit.reference, scores, 1.0)
    inverse: Callable[[Tensor], Tensor] = {
        "forward_kl": lambda v: 1 / -v,
        "js_divergence": lambda v: 1 / torch.expm1(-v),
        "alpha_divergence": lambda v: (-alpha * v) ** (-1 / alpha),
    }[divergence]
    # All three need arguments below 0; the largest score is put exp(x) below it
    below = scores - scores.amax(-1, keepdim=True)

    def excess(x: Tensor) -> Tensor:
        return (bandit.reference * inverse(below - x.exp()[..., None])).sum(-1) - 1

    # the sum falls as x grows; the root finder wants it the other way round
    x = _root(lambda x: -excess(x), scores, -60, 60)
    return bandit.reference * inverse(below - x.exp()[..., None])


def two_answer_law(bandit: PreferenceBandit, margin: Callable[[Tensor], Tensor]) -> Tensor:
    """Exact for K = 2: the loss is lowest where tau times the log-ratio difference is `margin(P)`.

    For more answers the wanted margins are no differences in general, and what is reached depends
    on the coverage. Raises ValueError for K other than 2.
    """
    if bandit.answers != 2:
        raise ValueError(f"a closed form for 2 answers only, got {bandit.answers}")
    _require_coverage(bandit)
    wanted = margin(bandit.preferences[..., 0, 1])
    return boltzmann(
        bandit.reference, torch.stack([wanted, torch.zeros_like(wanted)], -1), bandit.tau
    )


def hinge_margin(preference: Tensor) -> Tensor:
    """1 towards the more frequent winner, whatever the frequency (not 0, 1/2 or 1)."""
    return torch.sign(preference - 0.5)


def exo_margin(preference: Tensor, smoothing: float) -> Tensor:
    """(2P - 1) log((1-e)/e): the mean log-odds of the smoothed labels, not the log-odds of P."""
    return (2 * preference - 1) * math.log((1 - smoothing) / smoothing)


def target_margin(preference: Tensor, gamma: float) -> Tensor:
    """Margin of -log sigmoid(m - gamma) under labels that are right with probability P.

    With R = P / (1 - P), x = e^m solves e^-gamma x^2 - (R - 1) x - R e^-gamma = 0. gamma = 0 gives
    log R; a larger gamma stretches every margin.
    """
    odds = preference / (1 - preference)
    root = torch.sqrt((odds - 1) ** 2 + 4 * odds * math.exp(-2 * gamma))
    return gamma + torch.log((odds - 1 + root) / 2)


def _require_coverage(bandit: PreferenceBandit) -> None:
    if bool((bandit.coverage <= 0).any()):
        raise ValueError("an answer is in no pair: nothing fixes its probability")


def _root(rising: Callable[[Tensor], Tensor], like: Tensor, low: float, high: float) -> Tensor:
    """[...] root of a rising function by bisection to the last bit; `like` is [..., K]."""
    lower, upper = like.new_full(like.shape[:-1], low), like.new_full(like.shape[:-1], high)
    for _ in range(200):
        middle = (lower + upper) / 2
        above = rising(middle) > 0
        upper, lower = torch.where(above, middle, upper), torch.where(above, lower, middle)
    return (lower + upper) / 2
