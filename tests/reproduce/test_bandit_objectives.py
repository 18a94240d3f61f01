"""The registered objectives, as they are, against the laws that the table of targets says."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokenq.mdp import targets
from tokenq.mdp.target_table import ANY_COVERAGE, OPEN, TARGETS, Target
from tokenq.mdp.targets import PreferenceBandit
from tokenq.objectives import OBJECTIVES
from tokenq.reproduce.bandit_descent import descend
from tokenq.reproduce.bandit_objectives import population_loss, ranking_law, uses_reference
from tokenq.reproduce.bandit_problems import problem, stacked

TAU = 0.6
WITH_LAW = [name for name, target in TARGETS.items() if target.objective and target.closed_form]


def two_answers(seeds: int) -> PreferenceBandit:
    """Problems of two answers with Bradley-Terry labels."""
    generator = torch.Generator().manual_seed(3)
    reward = torch.randn(seeds, 2, generator=generator, dtype=torch.float64)
    reference = torch.softmax(torch.randn(seeds, 2, generator=generator, dtype=torch.float64), -1)
    return PreferenceBandit(
        reference,
        reward,
        torch.full((seeds,), TAU, dtype=torch.float64),
        torch.tensor([0.3, 0.7], dtype=torch.float64).expand(seeds, 2),
        targets.bradley_terry(reward),
    )


def problem_for(target: Target) -> PreferenceBandit:
    """Problems within the scope of the closed form, coverage uneven."""
    if target.scope == "two answers":
        return two_answers(3)
    bandit = stacked([problem(seed, TAU, "skewed", "sampled") for seed in range(3)])
    if target.scope == "flipped labels":
        rate = float(target.settings["label_smoothing"])
        return replace(bandit, preferences=targets.flipped(bandit.preferences, rate))
    if target.scope == "any labels":
        return stacked([problem(seed, TAU, "skewed", "noisy") for seed in range(3)])
    return bandit


def build(target: Target) -> object:
    scale = {target.scale: TAU} if target.scale else {}
    return OBJECTIVES[target.objective](**scale, **target.settings)


def value_and_gradient(
    objective: object, policy: Tensor, bandit: PreferenceBandit
) -> tuple[Tensor, Tensor]:
    logits = policy.log().requires_grad_(True)
    loss = population_loss(objective)(torch.log_softmax(logits, -1), bandit)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize("name", [name for name in WITH_LAW if name != "hinge"])
def test_objective_stands_still_at_its_law(name: str) -> None:
    target = TARGETS[name]
    bandit = problem_for(target)
    assert target.closed_form is not None
    _, gradient = value_and_gradient(build(target), target.closed_form(bandit), bandit)
    assert float(gradient.abs().max()) < 1e-10
    _, elsewhere = value_and_gradient(build(target), bandit.reference, bandit)
    assert float(elsewhere.abs().max()) > 1e-3


def test_hinge_is_lowest_at_its_law() -> None:
    target, bandit = TARGETS["hinge"], two_answers(3)
    assert target.closed_form is not None
    law = target.closed_form(bandit)
    there, _ = value_and_gradient(build(target), law, bandit)
    for aside in (-0.05, 0.05):
        moved = torch.softmax(law.log() + torch.tensor([aside, 0.0]), -1)
        assert bool((value_and_gradient(build(target), moved, bandit)[0] > there).all())


def test_every_objective_has_a_target() -> None:
    assert set(OBJECTIVES.values()) == {
        OBJECTIVES[target.objective] for target in TARGETS.values() if target.objective
    }


@pytest.mark.parametrize(
    "name", [n for n, t in TARGETS.items() if t.objective and t.data in (ANY_COVERAGE, OPEN)]
)
def test_an_answer_in_no_pair_keeps_its_logit_where_its_row_says_so(name: str) -> None:
    bandit = stacked([problem(0, TAU, "uniform", "sampled")])
    coverage = bandit.coverage.clone()
    coverage[:, -1] = 0
    bandit = replace(bandit, coverage=coverage)
    policy = torch.softmax(torch.tensor([[2.3, -0.2, 0.5, 0.1, 0.0]], dtype=torch.float64), -1)
    _, gradient = value_and_gradient(build(TARGETS[name]), policy, bandit)
    assert float(gradient.abs().max()) > 1e-3
    moves = float(gradient[0, -1].abs()) > 1e-12
    assert moves == (TARGETS[name].data == OPEN)


def test_exact_expectation_is_the_population_loss_of_dpo() -> None:
    bandit = stacked([problem(seed, TAU, "skewed", "noisy") for seed in range(4)])
    policy = torch.softmax(torch.randn(4, 5, dtype=torch.float64), -1).log()
    torch.testing.assert_close(
        population_loss(OBJECTIVES["dpo"](beta=TAU))(policy, bandit),
        targets.preference_loss(policy, bandit),
    )


def test_discopop_margin() -> None:
    """(1-P) e^2m = P (1 + e^m) in the limit of a small discopop_tau."""
    bandit = two_answers(4)
    preference = bandit.preferences[:, 0, 1]
    better = torch.maximum(preference, 1 - preference)
    odds = better / (1 - better)
    margin = torch.log((odds + torch.sqrt(odds**2 + 4 * odds)) / 2) * torch.sign(preference - 0.5)
    law = targets.boltzmann(bandit.reference, torch.stack([margin, torch.zeros(4)], -1), bandit.tau)
    _, gradient = value_and_gradient(
        OBJECTIVES["discopop"](beta=TAU, discopop_tau=0.01), law, bandit
    )
    assert float(gradient.abs().max()) < 1e-10


def test_coupled_rows_stand_in_proportion() -> None:
    """BCO at P = 1/2 everywhere: labels are coins, and it stands still at the reference."""
    bandit = replace(
        stacked([problem(seed, TAU, "uniform", "sampled") for seed in range(3)]),
        preferences=torch.full((3, 5, 5), 0.5, dtype=torch.float64),
    )
    assert not uses_reference(OBJECTIVES["simpo"]())
    _, gradient = value_and_gradient(OBJECTIVES["bco"](beta=TAU), bandit.reference, bandit)
    assert float(gradient.abs().max()) < 1e-12


def test_ranking_law_is_plackett_luce() -> None:
    """And for labels without noise all mass is on the true order."""
    bandit = stacked([problem(0, TAU, "uniform", "sampled")])
    orders = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1]])
    weight = bandit.reward[0].exp()
    expected = torch.stack(
        [
            weight[i] / (weight[i] + weight[j] + weight[k]) * weight[j] / (weight[j] + weight[k])
            for i, j, k in orders.tolist()
        ]
    )
    torch.testing.assert_close(ranking_law(orders, bandit)[0], expected)
    certain = replace(bandit, preferences=targets.deterministic(bandit.reward))
    order = bandit.reward[0, :3].argsort(descending=True).tolist()
    law = ranking_law(orders, certain)[0]
    assert law[[o.tolist() for o in orders].index(order)] == 1


WIN_RATE_LAWS = {
    "sppo_hard": lambda w: w - 0.5,
    "bco_pair": torch.logit,
    "implicit_prm": torch.logit,
    "nca_pair": lambda w: torch.log(2 * w),
}
"""tau times the log-ratio that each answer would have by itself, from how often it wins."""


@pytest.mark.parametrize("name", WIN_RATE_LAWS)
def test_win_rate_laws_where_probabilities_happen_to_sum_to_one(name: str) -> None:
    """A reference is mixed of two so that the wanted log-ratios give a distribution: then exact."""
    bandit = stacked([problem(seed, TAU, "uniform", "noisy") for seed in range(3)])
    wins, losses = bandit.labelled_pairs.sum(-1), bandit.labelled_pairs.sum(-2)
    wanted = (WIN_RATE_LAWS[name](wins / (wins + losses)) / TAU).exp()
    low, high = ((wanted < 1).double() + 1e-3, (wanted > 1).double() + 1e-3)
    low, high = (side / side.sum(-1, keepdim=True) for side in (low, high))
    sums = [(side * wanted).sum(-1, keepdim=True) for side in (low, high)]
    share = (1 - sums[0]) / (sums[1] - sums[0])
    reference = (1 - share) * low + share * high
    law = reference * wanted
    torch.testing.assert_close(law.sum(-1), torch.ones(3, dtype=torch.float64))
    _, gradient = value_and_gradient(
        OBJECTIVES[name](beta=TAU), law, replace(bandit, reference=reference)
    )
    assert float(gradient.abs().max()) < 1e-10


def fixed_point(objective: object, bandit: PreferenceBandit) -> Tensor:
    steps = torch.full((len(bandit.tau),), 2.0, dtype=torch.float64)
    return descend(population_loss(objective), bandit, steps, 250, bandit.target.log()).log_policy


def test_bmc_fixed_point() -> None:
    """(1 + min(1/pi, delta)) tau log pi/pi_ref is the reward up to one number."""
    bandit = stacked([problem(seed, TAU, "uniform", "sampled") for seed in range(2)])
    log_policy = fixed_point(OBJECTIVES["bmc"](beta=TAU, delta=3.0), bandit)
    weight = 1 + (-log_policy).exp().clamp_max(3.0)
    score = TAU * weight * (log_policy - bandit.reference.log()) - bandit.reward
    torch.testing.assert_close(score, score[:, :1].expand_as(score), atol=1e-6, rtol=0)


def test_tdpo_stays_nearer_to_the_reference_than_dpo() -> None:
    bandit = stacked([problem(seed, TAU, "uniform", "sampled") for seed in range(2)])
    policy = fixed_point(OBJECTIVES["tdpo"](beta=TAU), bandit).exp()
    assert bool(
        (
            targets.kl(bandit.reference, policy)
            < targets.kl(bandit.reference, bandit.target) - 1e-3
        ).all()
    )


@pytest.mark.parametrize("name", ["kto", "apo_zero", "apo_zero_unpaired"])
def test_answers_that_win_less_than_half_are_emptied(name: str) -> None:
    """Lower and lower along the run, and those that win more than half never are."""
    bandit = stacked([problem(seed, TAU, "uniform", "noisy") for seed in range(2)])
    log_policy = fixed_point(OBJECTIVES[name](beta=TAU), bandit)
    loser = bandit.chosen_law < bandit.labelled_pairs.sum(-2)
    ratio = log_policy - bandit.reference.log()
    assert float(ratio[loser].max()) < -0.3
    assert float((log_policy.exp() * loser).sum(-1).max()) < 0.1


def test_unpaired_aot_always_gains_by_spreading_further() -> None:
    """Though labels are noisy; the paired form has its limit before that."""
    bandit = stacked([problem(0, TAU, "uniform", "noisy")])
    losses = {name: [] for name in ("aot", "aot_unpaired")}
    for name, values in losses.items():
        for spread in (1.0, 4.0, 16.0, 64.0):
            policy = targets.boltzmann(bandit.reference, spread * bandit.win_rates, 1.0)
            values.append(float(value_and_gradient(OBJECTIVES[name](beta=TAU), policy, bandit)[0]))
    assert losses["aot_unpaired"] == sorted(losses["aot_unpaired"], reverse=True)
    assert losses["aot"][-1] > losses["aot"][1]
