"""TPO: numbers worked by hand, TRL's own loss on triples, CPO on pairs.

Intended difference from TRL: the likelihood term is a mean over the tokens of each gold answer and
then over lists, where TRL takes all gold tokens of a micro-batch at once; see CPO. Lists that are
no triple of three ranks have a loss here and none in TRL.
"""

import math
import random
from dataclasses import replace

import pytest
import torch
import trl_other_trainers as peer
from objective_batches import HOSTILE, assert_finite, batch_for

from tokenq.objectives import CPO, SFT, TPO, RankedLogps, ResponseLogps
from tokenq.objectives.tpo import triples

SEEDS = pytest.mark.parametrize("seed", range(8))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
FORMS = pytest.mark.parametrize("form", ["sigmoid", "hinge", "ipo", "tpo-l"])


def of_log_probs(log_probs: list[list[float]], ranks: list[int]) -> RankedLogps:
    logps = torch.tensor(log_probs, dtype=torch.float64)
    mask = (logps <= 0) & (torch.tensor(ranks)[:, None] >= 0)
    return RankedLogps(ResponseLogps(logps, mask), torch.tensor([ranks]))


def random_triples(
    seed: int, dtype: torch.dtype, rows: int = 4, length: int | None = None
) -> RankedLogps:
    answers = peer.random_response(seed, 3 * rows, dtype, length)
    return RankedLogps(answers, torch.tensor([[0, 1, 2]] * rows))


def objective_and_settings(seed: int, form: str) -> tuple[TPO, dict[str, float | str]]:
    draw = random.Random(seed)
    settings: dict[str, float | str] = {
        "beta": draw.uniform(0.05, 1),
        "tpo_alpha": draw.choice([0.0, 0.3, 1.0]),
        "tpo_l_gamma": draw.uniform(0, 1),
        "label_smoothing": 0.0 if form in ("hinge", "ipo") else draw.choice([0.0, 0.1]),
    }
    return TPO(tpo_form=form, **settings), settings | {"loss_type": form}


PADDING = 1.0


@pytest.mark.parametrize(
    ("form", "preference"),
    [
        ("sigmoid", math.log(1 + math.exp(-0.5 * 5))),  # sums: -3 less -8
        ("hinge", 0.0),
        ("ipo", (6.5 - 1) ** 2),  # means: -1.5 less -8, and 1 / (2 beta) = 1
        ("tpo-l", math.log(1 + math.exp(-(0.5 * 6.5 - 0.25)))),
    ],
)
def test_worked_by_hand(form: str, preference: float) -> None:
    lists = of_log_probs([[-8.0, PADDING], [-1.0, -5.0], [-1.0, -2.0]], [2, 0, 1])
    loss, metrics = TPO(beta=0.5, tpo_alpha=0.1, tpo_form=form, tpo_l_gamma=0.25)(lists)
    assert math.isclose(loss, preference + 0.1 * 3, rel_tol=1e-12)
    assert metrics["nll_loss"] == 3
    assert metrics["rewards/rejected"] == -4


@SEEDS
@DTYPES
@FORMS
@pytest.mark.parametrize("shape", [{"rows": 1}, {"length": 4}], ids=["one list", "equal lengths"])
def test_it_is_trls_where_the_two_means_agree(
    seed: int, dtype: torch.dtype, form: str, shape: dict[str, int]
) -> None:
    objective, settings = objective_and_settings(seed, form)
    lists = random_triples(seed, dtype, **shape)
    theirs = peer.tpo(lists, **settings)
    peer.assert_equal_with_gradients(objective(lists)[0], theirs, [lists.answers.logps])


@SEEDS
@DTYPES
@FORMS
def test_with_sft_in_place_of_its_likelihood_it_is_always_trls(
    seed: int, dtype: torch.dtype, form: str
) -> None:
    objective, settings = objective_and_settings(seed, form)
    lists = random_triples(seed, dtype)
    gold = ResponseLogps(lists.answers.logps[::3], lists.answers.mask[::3])
    preference, _ = replace(objective, tpo_alpha=0.0)(lists)
    ours = preference + objective.tpo_alpha * SFT()(gold)[0]
    theirs = peer.tpo(lists, **settings)
    peer.assert_equal_with_gradients(ours, theirs, [lists.answers.logps])


@SEEDS
@pytest.mark.parametrize("form", ["sigmoid", "hinge", "ipo"])
def test_two_answers_are_cpo(seed: int, form: str) -> None:
    lists = random_triples(seed, torch.float64)
    lists = RankedLogps(lists.answers, torch.tensor([[1, -1, 0]] * 4))
    pairs = lists.pairs()
    ours, metrics = TPO(beta=0.3, tpo_alpha=0.7, tpo_form=form)(lists)
    theirs, their_metrics = CPO(beta=0.3, cpo_alpha=0.7, cpo_form=form)(pairs)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(metrics, their_metrics)


@pytest.mark.parametrize(
    ("ranks", "gold", "pairs"),
    [
        ([0, 1, 2, 3], [0], {(1, 2), (1, 3), (2, 3)}),
        ([1, 0, 0, 2], [1, 2], {(0, 3)}),
        ([0, 1, 1, -1], [0], {(0, 1), (0, 2)}),  # nothing to compare below gold
        ([0, 1, 1, 2], [0], {(1, 3), (2, 3)}),
        ([0, 0, 0, -1], [], set()),
    ],
)
def test_which_answers_are_gold_and_which_are_compared(
    ranks: list[int], gold: list[int], pairs: set[tuple[int, int]]
) -> None:
    found_gold, found_pairs = triples(torch.tensor([ranks]))
    assert found_gold[0].nonzero().flatten().tolist() == gold
    assert {tuple(found) for found in found_pairs[0].nonzero().tolist()} == pairs


@FORMS
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches_in_every_form(case: str, form: str) -> None:
    objective = TPO(beta=1.0, tpo_form=form)
    assert_finite(objective, batch_for(objective, HOSTILE[case]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"tpo_alpha": -1.0}, "tpo_alpha must be >= 0, got -1.0"),
        ({"tpo_l_gamma": -1.0}, "tpo_l_gamma must be >= 0, got -1.0"),
        ({"tpo_form": "tpo"}, "tpo_form must be one of sigmoid, hinge, ipo, tpo-l, got 'tpo'"),
        (
            {"tpo_form": "hinge", "label_smoothing": 0.1},
            "must be 0 with tpo_form 'hinge'",
        ),
    ],
)
def test_hyper_parameters_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TPO(**settings)
