"""CPO: numbers worked by hand, TRL's own loss, the exact optimum on two answers.

Intended difference from TRL: the likelihood term is a mean over the tokens of each chosen response
and then over pairs, where TRL takes all chosen tokens of a micro-batch at once. The two agree for
responses of one length and for one pair; TRL's own mean is the mixture of CPO without its
likelihood term and SFT. Label smoothing with hinge and ipo is refused, where TRL ignores it.
"""

import math
import random
from dataclasses import replace

import pytest
import torch
import trl_other_trainers as peer
from bandit import compared
from objective_batches import HOSTILE, assert_finite, batch_for

from tokenq.objectives import CPO, SFT, PairLogps
from tokenq.objectives.reference_free import Form

SEEDS = pytest.mark.parametrize("seed", range(8))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
FORMS = pytest.mark.parametrize("form", ["sigmoid", "hinge", "ipo"])


def objective_and_settings(seed: int, form: Form) -> tuple[CPO, dict[str, float | str]]:
    draw = random.Random(seed)
    beta, cpo_alpha = draw.uniform(0.05, 1), draw.choice([0.0, 0.3, 1.0])
    smoothing = draw.choice([0.0, 0.1]) if form == "sigmoid" else 0.0
    settings = {"beta": beta, "cpo_alpha": cpo_alpha, "label_smoothing": smoothing}
    return CPO(beta, cpo_alpha, form, smoothing), settings | {"loss_type": form}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # sums: chosen -1 - 3 = -4, rejected -8; nll of the chosen: 4 / 2 tokens
        ("sigmoid", math.log(1 + math.exp(-0.5 * 4)) + 0.1 * 2),
        ("hinge", 0 + 0.1 * 2),
        # means: chosen -2, rejected -8; 1 / (2 beta) = 1
        ("ipo", (6 - 1) ** 2 + 0.1 * 2),
    ],
)
def test_worked_by_hand(form: Form, expected: float) -> None:
    zeros = torch.zeros(1, 2)
    pairs = PairLogps(
        torch.tensor([[-1.0, -3.0]]), torch.tensor([[-8.0, -9.0]]), zeros, zeros,
        torch.tensor([[True, True]]), torch.tensor([[True, False]]),
    )  # fmt: skip
    loss, metrics = CPO(beta=0.5, cpo_alpha=0.1, cpo_form=form)(pairs)
    assert math.isclose(loss, expected, rel_tol=1e-6)
    assert metrics["nll_loss"] == 2
    assert metrics["rewards/rejected"] == -4


@SEEDS
@DTYPES
@FORMS
def test_it_is_trls_where_responses_are_equally_long(
    seed: int, dtype: torch.dtype, form: Form
) -> None:
    objective, settings = objective_and_settings(seed, form)
    pairs = peer.random_pairs(seed, dtype, length=1 + seed % 7)
    inputs = [pairs.chosen, pairs.rejected]
    peer.assert_equal_with_gradients(objective(pairs)[0], peer.cpo(pairs, **settings), inputs)


@SEEDS
@DTYPES
@FORMS
def test_it_is_trls_for_one_pair(seed: int, dtype: torch.dtype, form: Form) -> None:
    objective, settings = objective_and_settings(seed, form)
    pairs = peer.random_pairs(seed, dtype, rows=1)
    inputs = [pairs.chosen, pairs.rejected]
    peer.assert_equal_with_gradients(objective(pairs)[0], peer.cpo(pairs, **settings), inputs)


@SEEDS
@DTYPES
@FORMS
def test_with_sft_in_place_of_its_likelihood_it_is_always_trls(
    seed: int, dtype: torch.dtype, form: Form
) -> None:
    objective, settings = objective_and_settings(seed, form)
    pairs = peer.random_pairs(seed, dtype)
    preference, _ = replace(objective, cpo_alpha=0.0)(pairs)
    ours = preference + objective.cpo_alpha * SFT()(pairs.chosen_side)[0]
    inputs = [pairs.chosen, pairs.rejected]
    peer.assert_equal_with_gradients(ours, peer.cpo(pairs, **settings), inputs)


def test_the_likelihood_differs_from_trls_where_lengths_differ() -> None:
    """One chosen token of log-prob -1 and three of -2: 1.5 by response, 7/4 by token."""
    zeros = torch.zeros(2, 3)
    chosen = torch.tensor([[-1.0, -5.0, -5.0], [-2.0, -2.0, -2.0]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    pairs = PairLogps(chosen, chosen - 1, zeros, zeros, mask, mask)
    settings = {"beta": 0.1, "loss_type": "sigmoid"}
    theirs = peer.cpo(pairs, cpo_alpha=1.0, **settings) - peer.cpo(pairs, cpo_alpha=0.0, **settings)
    assert math.isclose(CPO()(pairs)[1]["nll_loss"], 1.5)
    assert math.isclose(theirs, 7 / 4, rel_tol=1e-5)


@pytest.mark.parametrize("cpo_alpha", [0.0, 0.4])
def test_the_optimum_on_two_answers(cpo_alpha: float) -> None:
    """With p the probability of the first answer, x its logit, and a preference of q for it,

    cpo_alpha (p - q) + beta (sigmoid(beta x) - q) = 0

    Without the likelihood term x = log(q / (1 - q)) / beta; with it p lies nearer to q.
    """
    beta, q = 0.5, 0.8
    objective = CPO(beta, cpo_alpha)
    log_policy = compared(objective, q)
    p, x = log_policy[0].exp(), log_policy[0] - log_policy[1]
    gradient = cpo_alpha * (p - q) + beta * (torch.sigmoid(beta * x) - q)
    assert abs(gradient) < 1e-9
    unregularised = torch.sigmoid(torch.tensor(math.log(q / (1 - q)) / beta))
    if cpo_alpha:
        assert q < p < unregularised
    else:
        assert math.isclose(p, unregularised, abs_tol=1e-8)


@FORMS
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches_in_every_form(case: str, form: Form) -> None:
    objective = CPO(cpo_form=form)
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"cpo_alpha": -1.0}, "cpo_alpha must be >= 0, got -1.0"),
        ({"cpo_form": "square"}, "cpo_form must be one of sigmoid, hinge, ipo, got 'square'"),
        ({"label_smoothing": 0.7}, r"label_smoothing must be in \[0, 0.5\), got 0.7"),
        (
            {"cpo_form": "ipo", "label_smoothing": 0.1},
            "must be 0 with cpo_form 'ipo'",
        ),
    ],
)
def test_hyper_parameters_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CPO(**settings)
