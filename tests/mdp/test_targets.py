"""Each closed form against the exact loss: a vanishing gradient there, and Newton from afar."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.mdp import laws, targets
from tokenq.mdp.targets import APPROXIMATIONS, PreferenceBandit

Law = Callable[[PreferenceBandit], Tensor]


def random_bandit(seed: int, answers: int = 5, tau: float = 0.7) -> PreferenceBandit:
    """A random problem with full, uneven coverage and Bradley-Terry labels."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, answers, generator=generator, dtype=torch.float64)
    reward = draw()
    return PreferenceBandit(
        torch.softmax(draw(), -1),
        reward,
        torch.tensor(tau, dtype=torch.float64),
        torch.softmax(draw(), -1),
        targets.bradley_terry(reward),
    )


def intransitive(bandit: PreferenceBandit) -> PreferenceBandit:
    """The same with labels that no score explains."""
    size = bandit.answers
    noise = torch.arange(size**2, dtype=torch.float64).sin().view(size, size)
    return replace(bandit, preferences=torch.sigmoid(noise - noise.mT))


def margin_loss(
    loss: Callable[[Tensor], Tensor], log_policy: Tensor, bandit: PreferenceBandit
) -> Tensor:
    """Expectation of `loss(h_w - h_l)`, h = log pi/pi_ref, over the listed ordered pairs."""
    h = log_policy - bandit.reference.log()
    pairs = list(itertools.permutations(range(bandit.answers), 2))
    weight = torch.stack(
        [bandit.coverage[i] * bandit.coverage[j] * bandit.preferences[i, j] for i, j in pairs]
    )
    winners, losers = torch.tensor(pairs).T
    return (weight * loss(h[winners] - h[losers])).sum() / weight.sum()


def dpo(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    return margin_loss(lambda m: -logsigmoid(bandit.tau * m), log_policy, bandit)


def cdpo(log_policy: Tensor, bandit: PreferenceBandit, e: float) -> Tensor:
    return margin_loss(
        lambda m: -(1 - e) * logsigmoid(bandit.tau * m) - e * logsigmoid(-bandit.tau * m),
        log_policy,
        bandit,
    )


def robust(log_policy: Tensor, bandit: PreferenceBandit, e: float) -> Tensor:
    return margin_loss(
        lambda m: (
            (-(1 - e) * logsigmoid(bandit.tau * m) + e * logsigmoid(-bandit.tau * m)) / (1 - 2 * e)
        ),
        log_policy,
        bandit,
    )


def ipo(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    return margin_loss(lambda m: (m - 1 / (2 * bandit.tau)) ** 2, log_policy, bandit)


def sft(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    return -(bandit.labelled_pairs * log_policy[:, None]).sum()


def exo(log_policy: Tensor, bandit: PreferenceBandit, e: float) -> Tensor:
    def loss(m: Tensor) -> Tensor:
        m = bandit.tau * m
        q = torch.sigmoid(m)
        wanted = torch.tensor([1 - e, e], dtype=torch.float64).log()
        return q * (logsigmoid(m) - wanted[0]) + (1 - q) * (logsigmoid(-m) - wanted[1])

    return margin_loss(loss, log_policy, bandit)


def shifted(log_policy: Tensor, bandit: PreferenceBandit, gamma: float) -> Tensor:
    return margin_loss(lambda m: -logsigmoid(bandit.tau * m - gamma), log_policy, bandit)


def odds_ratio(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    odds = log_policy - torch.log1p(-log_policy.exp())
    margins = odds[:, None] - odds[None, :]
    return -(bandit.labelled_pairs * logsigmoid(margins)).sum()


def f_dpo(
    log_policy: Tensor, bandit: PreferenceBandit, slope: Callable[[Tensor], Tensor]
) -> Tensor:
    reward = bandit.tau * slope((log_policy - bandit.reference.log()).exp())
    margins = reward[:, None] - reward[None, :]
    return -(bandit.labelled_pairs * logsigmoid(margins)).sum()


CLOSED_FORMS: dict[str, tuple[targets.PopulationLoss, Law]] = {
    "dpo": (dpo, laws.logistic_law),
    "robust": (
        lambda p, b: robust(p, replace(b, preferences=targets.flipped(b.preferences, 0.2)), 0.2),
        lambda b: laws.robust_law(replace(b, preferences=targets.flipped(b.preferences, 0.2)), 0.2),
    ),
    "robust is the clean law": (
        lambda p, b: robust(p, replace(b, preferences=targets.flipped(b.preferences, 0.2)), 0.2),
        lambda b: b.target,
    ),
    "ipo": (ipo, laws.win_rate_law),
    "ipo, intransitive": (
        lambda p, b: ipo(p, intransitive(b)),
        lambda b: laws.win_rate_law(intransitive(b)),
    ),
    "sft": (sft, laws.chosen_law),
    "sft, intransitive": (
        lambda p, b: sft(p, intransitive(b)),
        lambda b: laws.chosen_law(intransitive(b)),
    ),
    "without reference": (
        lambda p, b: dpo(p, b.without_reference()),
        laws.uniform_prior_law,
    ),
    "odds ratio": (odds_ratio, laws.odds_law),
    "reverse KL": (
        lambda p, b: f_dpo(p, b, torch.log),
        lambda b: laws.divergence_law(b, "reverse_kl"),
    ),
    "forward KL": (
        lambda p, b: f_dpo(p, b, lambda u: -1 / u),
        lambda b: laws.divergence_law(b, "forward_kl"),
    ),
    "Jensen-Shannon": (
        lambda p, b: f_dpo(p, b, lambda u: torch.log(2 * u / (1 + u))),
        lambda b: laws.divergence_law(b, "js_divergence"),
    ),
    "alpha": (
        lambda p, b: f_dpo(p, b, lambda u: (1 - u**-0.5) / 0.5),
        lambda b: laws.divergence_law(b, "alpha_divergence", 0.5),
    ),
    **{name: (loss, lambda b: b.target) for name, loss in APPROXIMATIONS.items()},
}

TWO_ANSWERS: dict[str, tuple[targets.PopulationLoss, Law]] = {
    "cdpo": (partial(cdpo, e=0.1), partial(laws.smoothed_law, smoothing=0.1)),
    "hinge": (
        lambda p, b: margin_loss(lambda m: torch.relu(1 - b.tau * m), p, b),
        lambda b: laws.two_answer_law(b, laws.hinge_margin),
    ),
    "exo": (
        partial(exo, e=0.05),
        lambda b: laws.two_answer_law(b, partial(laws.exo_margin, smoothing=0.05)),
    ),
    "target margin": (
        partial(shifted, gamma=0.8),
        lambda b: laws.two_answer_law(b, partial(laws.target_margin, gamma=0.8)),
    ),
}


def gradient_at(loss: targets.PopulationLoss, policy: Tensor, bandit: PreferenceBandit) -> float:
    logits = policy.log().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(torch.log_softmax(logits, -1), bandit), logits)
    return float(gradient.abs().max())


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("tau", [0.4, 1.5])
def test_closed_form_is_the_minimiser(name: str, tau: float) -> None:
    loss, law = CLOSED_FORMS[name]
    for seed in range(2):
        bandit = random_bandit(seed, tau=tau)
        expected = law(bandit)
        assert float(expected.sum()) == pytest.approx(1, abs=1e-12)
        assert gradient_at(loss, expected, bandit) < 1e-10
        found = targets.minimise(lambda p, b=bandit: loss(p, b), bandit.answers)
        assert found.finite
        torch.testing.assert_close(found.policy, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", [n for n in TWO_ANSWERS if n != "hinge"])
def test_two_answer_closed_form(name: str) -> None:
    loss, law = TWO_ANSWERS[name]
    for seed in range(3):
        bandit = random_bandit(seed, answers=2)
        assert gradient_at(loss, law(bandit), bandit) < 1e-10
        found = targets.minimise(lambda p, b=bandit: loss(p, b), 2)
        assert found.finite
        torch.testing.assert_close(found.policy, law(bandit), atol=1e-9, rtol=1e-7)


def test_hinge_has_its_kink_at_the_law() -> None:
    """No gradient there to vanish: a step to either side raises the loss."""
    loss, law = TWO_ANSWERS["hinge"]
    for seed in range(3):
        bandit = random_bandit(seed, answers=2)
        logits = law(bandit).log()
        there = loss(logits, bandit)
        for aside in (-0.01, 0.01, -1.0, 1.0):
            moved = torch.log_softmax(logits + torch.tensor([aside, 0.0]), -1)
            assert loss(moved, bandit) > there + 1e-4


def test_margins_worked_by_hand() -> None:
    """P = 3/4, so odds 3: log 3; smoothed by 1/10 0.7/0.3; IPO-like forms by arithmetic."""
    three_quarters = torch.tensor(0.75, dtype=torch.float64)
    assert float(laws.target_margin(three_quarters, 0.0)) == pytest.approx(1.0986122886681098)
    # x^2 / 2 - 2 x - 3/2 = 0 for gamma = log 2: x = 2 + sqrt(7)
    assert float(laws.target_margin(three_quarters, math.log(2))) == pytest.approx(
        math.log(2 + math.sqrt(7))
    )
    assert float(laws.exo_margin(three_quarters, 0.1)) == pytest.approx(0.5 * 2.1972245773362196)
    assert float(laws.hinge_margin(three_quarters)) == 1


def test_boltzmann_by_hand_and_its_limits() -> None:
    reference = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    reward = torch.tensor([0.0, 0.6931471805599453, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        targets.boltzmann(reference, reward, 1.0),
        torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64),
    )
    torch.testing.assert_close(targets.boltzmann(reference, reward, 1e9), reference)
    assert float(targets.boltzmann(reference, reward, 1e-3)[1]) == 1
    with pytest.raises(ValueError, match="tau must be > 0"):
        targets.boltzmann(reference, reward, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 3))
def test_reverse_bda_is_regularised_reward(seed: int, tau: float) -> None:
    """tau KL(pi || pi^tau) = tau log Z - E r + tau KL(pi || pi_ref), for any policy."""
    bandit = random_bandit(seed, tau=tau)
    policy = random_bandit(seed + 1).reference
    kl = float(targets.kl(policy, bandit.reference))
    objective = float((policy * bandit.reward).sum()) - tau * kl
    left = tau * float(targets.bda(policy.log(), bandit))
    assert left == pytest.approx(tau * float(bandit.log_partition) - objective, abs=1e-12)


def test_dpo_differs_from_pra_by_the_distribution_shift() -> None:
    """preference_loss = pra + sum (pairs - pairs') loss; and equals it on the same pairs."""
    bandit = random_bandit(0)
    policy = random_bandit(5).reference.log()
    offline = replace(bandit, coverage=random_bandit(9).coverage)
    h = bandit.tau * (policy - bandit.reference.log())
    losses = -2 * bandit.preferences * logsigmoid(h[:, None] - h[None, :])
    shift = ((offline.pairs - bandit.pairs) * losses).sum()
    torch.testing.assert_close(
        targets.preference_loss(policy, offline), targets.pra(policy, bandit) + shift
    )
    torch.testing.assert_close(targets.preference_loss(policy, bandit), targets.pra(policy, bandit))


def test_deterministic_labels_have_no_finite_minimiser() -> None:
    bandit = random_bandit(0)
    bandit = replace(bandit, preferences=targets.deterministic(bandit.reward))
    found = targets.minimise(lambda p: dpo(p, bandit), bandit.answers)
    assert not found.finite
    assert int(found.policy.argmax()) == int(bandit.reward.argmax())
    with pytest.raises(ValueError, match="not Bradley-Terry"):
        laws.logistic_law(bandit)


def test_smoothing_flattens_and_is_not_bradley_terry_for_more_answers() -> None:
    """Finite even with deterministic labels; but no scores explain it, so coverage matters."""
    bandit = replace(random_bandit(0), preferences=targets.deterministic(random_bandit(0).reward))
    elsewhere = replace(bandit, coverage=random_bandit(3).coverage)
    found = [
        targets.minimise(lambda p, b=b: cdpo(p, b, 0.1), bandit.answers)
        for b in (bandit, elsewhere)
    ]
    assert all(one.finite for one in found)
    assert float((found[0].policy - found[1].policy).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="not Bradley-Terry"):
        laws.smoothed_law(bandit, 0.1)


def test_robust_is_unbounded_where_labels_are_cleaner_than_it_believes() -> None:
    bandit = random_bandit(0)
    sharp = replace(bandit, preferences=targets.bradley_terry(10 * bandit.reward))
    with pytest.raises(ValueError, match="no finite minimum"):
        laws.robust_law(sharp, 0.2)
    assert not targets.minimise(lambda p: robust(p, sharp, 0.2), bandit.answers).finite


def test_uncovered_answers_are_refused_by_pair_laws_and_recovered_by_ra() -> None:
    """RA knows the partition function, so that one missing answer is what the others leave."""
    bandit = random_bandit(0)
    coverage = bandit.coverage.clone()
    coverage[2] = 0
    bandit = replace(bandit, coverage=coverage)
    for law in (laws.logistic_law, laws.win_rate_law, laws.chosen_law, laws.odds_law):
        with pytest.raises(ValueError, match="in no pair"):
            law(bandit)
    found = targets.minimise(lambda p: targets.ra(p, bandit), bandit.answers)
    torch.testing.assert_close(found.policy, bandit.target, atol=1e-9, rtol=1e-7)


def test_label_laws() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    half = targets.deterministic(reward)
    assert half.tolist() == [[0.5, 1, 1], [0, 0.5, 0.5], [0, 0.5, 0.5]]
    assert targets.flipped(half, 0.1)[0, 1] == pytest.approx(0.9)
    assert targets.flipped(half, 0.5).tolist() == [[0.5] * 3] * 3
    with pytest.raises(ValueError, match="rate"):
        targets.flipped(half, 1.5)


def test_pair_law_and_win_rates_by_hand() -> None:
    """mu = (1/2, 1/4, 1/4): pairs 01 and 02 weigh 1/8 each way, 12 1/16, of 5/8 in all."""
    bandit = PreferenceBandit(
        torch.full((3,), 1 / 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        torch.tensor(1.0, dtype=torch.float64),
        torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64),
        torch.tensor([[0.5, 0.75, 1], [0.25, 0.5, 0.5], [0, 0.5, 0.5]], dtype=torch.float64),
    )
    assert float(bandit.pairs[0, 1]) == pytest.approx(0.2)
    assert float(bandit.pairs[1, 2]) == pytest.approx(0.1)
    assert float(bandit.labelled_pairs.sum()) == pytest.approx(1)
    assert bandit.chosen_law.tolist() == pytest.approx([0.7, 0.2, 0.1])
    assert bandit.win_rates.tolist() == pytest.approx([0.6875, 0.375, 0.25])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": torch.tensor(0.0)}, "tau"),
        ({"reference": torch.zeros(5, dtype=torch.float64)}, "reference"),
        ({"coverage": -torch.ones(5, dtype=torch.float64)}, "coverage"),
        ({"preferences": torch.ones(5, 5, dtype=torch.float64)}, "must be 1"),
    ],
)
def test_refusals(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(random_bandit(0), **change)


def test_rate_of_reward_differences_by_hand() -> None:
    """Uniform pairs: the Hessian is 4 tau^2 / (K - 1) on all directions, so one step suffices."""
    bandit = replace(random_bandit(0), coverage=torch.full((5,), 0.2, dtype=torch.float64))
    rate = targets.rate(targets.rda, bandit.target.log(), bandit)
    assert float(rate.smallest) == pytest.approx(4 * 0.49 / 4)
    assert float(rate.largest) == pytest.approx(4 * 0.49 / 4)
    assert float(rate.contraction(rate.step)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_rate_is_that_of_gradient_descent(name: str) -> None:
    """The distance after many small steps shrinks by the slowest direction's factor."""
    bandit, loss = random_bandit(2, answers=3), APPROXIMATIONS[name]
    rate = targets.rate(loss, bandit.target.log(), bandit)
    step = 1 / rate.largest
    logits = bandit.target.log() + torch.tensor([1e-4, -2e-4, 5e-5], dtype=torch.float64)
    distances = []
    for _ in range(400):
        policy = torch.log_softmax(logits, -1)
        distances.append(float((policy - bandit.target.log()).norm()))
        if distances[-1] < 1e-9:
            break
        logits = logits - step * torch.func.grad(lambda z: loss(torch.log_softmax(z, -1), bandit))(
            logits
        )
    measured = (distances[-1] / distances[-6]) ** (1 / 5)
    assert measured == pytest.approx(float(rate.contraction(step)), rel=0.02)
