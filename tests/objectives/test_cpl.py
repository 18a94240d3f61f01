"""CPL against the paper's null-space example, numbers worked out by hand, and DPO."""

import math

import pytest
import torch
from objective_batches import HOSTILE, assert_finite, batch_for, random_pair, random_ranked
from torch import Tensor

from tokenq.objectives import (
    CPL,
    DPO,
    CPLPlackettLuce,
    CPLRanked,
    PairLogps,
    PlackettLuce,
    RankedLogps,
    ResponseLogps,
)

IN_DATA, NEARLY, OUTSIDE = (0.5, 0.5, 0.0), (0.49, 0.49, 0.02), (0.1, 0.1, 0.8)


def compared(chosen: Tensor, rejected: Tensor) -> PairLogps:
    """One pair of segments of one step, log-probabilities given."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    return PairLogps(chosen.view(1, 1), rejected.view(1, 1), zeros, zeros, mask, mask)


@pytest.mark.parametrize(
    ("bias", "losses"),
    [(1.0, (0.6931, 0.693, 0.693)), (0.75, (0.7835, 0.786, 1.022)), (0.5, (0.8814, 0.887, 1.426))],
)
def test_the_null_space_of_the_paper(bias: float, losses: tuple[float, ...]) -> None:
    """One state, three actions, the first preferred to the second; nothing about the third.

    With equal probabilities p of the two the loss is log(1 + p^(bias - 1)).
    """
    objective = CPL(cpl_alpha=1.0, contrastive_bias=bias)
    for policy, want in zip((IN_DATA, NEARLY, OUTSIDE), losses, strict=True):
        logps = torch.tensor(policy).double().log()
        assert objective(compared(logps[0], logps[1]))[0].item() == pytest.approx(want, abs=5e-4)


@pytest.mark.parametrize("bias", [1.0, 0.75, 0.5])
def test_the_third_action_is_pushed_down_by_the_bias_alone(bias: float) -> None:
    logits = torch.tensor(OUTSIDE).double().log().requires_grad_()
    logps = logits.log_softmax(-1)
    loss, _ = CPL(cpl_alpha=1.0, contrastive_bias=bias)(compared(logps[0], logps[1]))
    (gradient,) = torch.autograd.grad(loss, logits)
    prefers = 1 - math.exp(-loss.item())
    assert gradient[2].item() == pytest.approx((1 - bias) * 0.8 * prefers, abs=1e-12)


def test_by_hand() -> None:
    pair = PairLogps(
        torch.tensor([[-1.0, 9.0, -2.0]]).double(),
        torch.tensor([[-3.0, -4.0]]).double(),
        torch.full((1, 3), torch.nan).double(),
        torch.full((1, 2), torch.nan).double(),
        torch.tensor([[True, False, True]]),
        torch.tensor([[True, True]]),
    )
    # S = 2 (-1 - 0.5 * 2) = -4 (a masked step takes no power of the discount), 2 (-3 - 2) = -10.
    objective = CPL(cpl_alpha=2.0, contrastive_bias=0.25, discount=0.5, bc_coef=0.1)
    loss, metrics = objective(pair)
    assert float(metrics["rewards/chosen"]) == pytest.approx(-4.0)
    assert float(metrics["rewards/rejected"]) == pytest.approx(-10.0)
    assert float(metrics["nll"]) == pytest.approx((1 + 2 + 3 + 4) / 4)
    margin = -4.0 + 0.25 * 10
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)) + 0.1 * 2.5)
    assert objective.needs == frozenset()


def test_against_a_reference_without_bias_it_is_dpo() -> None:
    batch = random_pair()
    objective = CPL(cpl_alpha=0.1, contrastive_bias=1.0, cpl_form="cpl_kl")
    assert objective.needs == {"reference"}
    torch.testing.assert_close(objective(batch)[0], DPO(beta=0.1)(batch)[0])


def test_gradients_by_finite_differences() -> None:
    batch = random_pair()
    objective = CPL(discount=0.9, bc_coef=0.5, cpl_form="cpl_kl")

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective(
            PairLogps(
                chosen, rejected, batch.ref_chosen.detach(), batch.ref_rejected.detach(),
                batch.chosen_mask, batch.rejected_mask,
            )
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, (batch.chosen, batch.rejected))


def test_a_ranking_is_all_its_ordered_pairs() -> None:
    """Scores -1, -2, -3 with ranks 1, 0, 1: two pairs, the tie is not compared."""
    logps = torch.tensor([[-1.0], [-2.0], [-3.0]]).double()
    answers = ResponseLogps(logps, torch.ones_like(logps, dtype=torch.bool))
    batch = RankedLogps(answers, torch.tensor([[1, 0, 1]]))
    objective = CPLRanked(cpl_alpha=1.0, contrastive_bias=0.5)
    want = (math.log1p(math.exp(2 - 0.5)) + math.log1p(math.exp(2 - 1.5))) / 2
    assert objective(batch)[0].item() == pytest.approx(want)
    assert objective.weight(batch) == 2


def test_rankings_with_ties_and_gaps_are_cpl_on_their_pairs() -> None:
    batch = random_ranked()
    ranked, paired = CPLRanked(bc_coef=0.3), CPL(bc_coef=0.3)
    torch.testing.assert_close(ranked(batch)[0], paired(batch.pairs())[0])
    assert ranked.weight(batch) == len(batch.pairs())


def test_a_ranking_as_choices_by_hand() -> None:
    """Scores -1, -2, -3 with ranks 1, 0, 2: -2 over both, then -1 over -3."""
    logps = torch.tensor([[-1.0], [-2.0], [-3.0]]).double()
    answers = ResponseLogps(logps, torch.ones_like(logps, dtype=torch.bool))
    batch = RankedLogps(answers, torch.tensor([[1, 0, 2]]))
    objective = CPLPlackettLuce(cpl_alpha=1.0, contrastive_bias=0.5, bc_coef=2.0)
    first = math.log(1 + math.exp(2 - 0.5) + math.exp(2 - 1.5))
    second = math.log(1 + math.exp(1 - 1.5))
    loss, metrics = objective(batch)
    assert loss.item() == pytest.approx(first + second + 2.0 * 2.0)
    assert metrics["rewards/accuracies"].item() == pytest.approx(2 / 3)
    assert objective.weight(batch) == 1


def test_choices_among_two_are_pairs_and_without_bias_a_plackett_luce_law() -> None:
    logps, reference = -torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    answers = ResponseLogps(logps, torch.ones_like(logps, dtype=torch.bool), reference)
    pair = RankedLogps(answers, torch.tensor([[0, 1], [1, 0], [0, 1]]))
    for objective in (CPLPlackettLuce(), CPLPlackettLuce(cpl_form="cpl_kl")):
        same = CPL(cpl_form=objective.cpl_form)
        torch.testing.assert_close(objective(pair)[0], same(pair.pairs())[0])
    lists = random_ranked()
    ours = CPLPlackettLuce(cpl_alpha=0.3, contrastive_bias=1.0, cpl_form="cpl_kl")
    torch.testing.assert_close(ours(lists)[0], PlackettLuce(beta=0.3)(lists)[0])


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("objective", [CPL, CPLRanked, CPLPlackettLuce])
def test_every_term_is_finite(objective: type, case: str) -> None:
    everything = objective(discount=0.5, bc_coef=1.0, cpl_form="cpl_kl")
    assert_finite(everything, batch_for(everything, HOSTILE[case]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpl_alpha", 0.0),
        ("contrastive_bias", 1.1),
        ("discount", -0.1),
        ("bc_coef", -1),
        ("cpl_form", "kl"),
    ],
)
def test_bad_hyper_parameters(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got"):
        CPL(**{field: value})
