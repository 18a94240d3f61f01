"""The outcome cross-entropy: by hand, at its optimum, and what its prefix sums are."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, log_softmax

from tokenq.objectives import ImplicitPRM, LabelledLogps, ResponseLogps

VOCABULARY, LENGTH, BETA = 3, 3, 0.7
PATHS = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


def random_tree(seed: int) -> dict[tuple[int, ...], Tensor]:
    """Random log-probabilities [VOCABULARY] after every prefix."""
    generator = torch.Generator().manual_seed(seed)
    return {
        prefix: log_softmax(torch.randn(VOCABULARY, generator=generator).double(), -1)
        for depth in range(LENGTH)
        for prefix in itertools.product(range(VOCABULARY), repeat=depth)
    }


def along(tree: dict[tuple[int, ...], Tensor]) -> Tensor:
    """[paths, LENGTH] log-probabilities of every token of every path."""
    rows = [torch.stack([tree[path[:t]][path[t]] for t in range(LENGTH)]) for path in PATHS]
    return torch.stack(rows)


def batch(logps: Tensor, ref_logps: Tensor, labels: Tensor) -> LabelledLogps:
    mask = torch.ones_like(logps, dtype=torch.bool)
    return LabelledLogps(ResponseLogps(logps, mask, ref_logps), labels)


def test_by_hand() -> None:
    logps = torch.tensor([[-1.0, -1.0], [-1.0, -3.0]]).double()
    ref_logps = torch.tensor([[-2.0, -2.0], [-1.0, -1.0]]).double()
    rows = batch(logps, ref_logps, torch.tensor([True, False]))
    loss, metrics = ImplicitPRM(beta=0.5)(rows)
    # r = 0.5 * 2 and 0.5 * -2: both on the right side, each with the loss log(1 + e^-1).
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert float(metrics["rewards/accuracies"]) == 1.0
    assert float(metrics["rewards/margins"]) == pytest.approx(2.0)
    wrong = batch(logps, ref_logps, torch.tensor([False, True]))
    assert ImplicitPRM(beta=0.5)(wrong)[0].item() == pytest.approx(math.log1p(math.e))


def test_soft_labels_are_cross_entropy() -> None:
    logps, ref_logps = along(random_tree(0)), along(random_tree(1))
    labels = torch.rand(len(PATHS), generator=torch.Generator().manual_seed(2)).double()
    rewards = (BETA * (logps - ref_logps)).sum(-1)
    want = binary_cross_entropy(rewards.sigmoid(), labels)
    torch.testing.assert_close(ImplicitPRM(beta=BETA)(batch(logps, ref_logps, labels))[0], want)


@pytest.mark.parametrize("seed", range(3))
def test_prefix_sums_are_the_soft_value_of_the_outcome(seed: int) -> None:
    """For any two models, however they came about: all continuations are enumerated."""
    logps, ref_logps = along(random_tree(seed)), along(random_tree(seed + 100))
    rewards = BETA * (logps - ref_logps)
    outcome = rewards.sum(-1)
    for path, prefix_sums in zip(PATHS, rewards.cumsum(-1), strict=True):
        for t in range(LENGTH):
            continued = [i for i, other in enumerate(PATHS) if other[: t + 1] == path[: t + 1]]
            weights = ref_logps[continued, t + 1 :].sum(-1)
            value = BETA * torch.logsumexp(weights + outcome[continued] / BETA, dim=0)
            torch.testing.assert_close(prefix_sums[t], value, rtol=0, atol=1e-12)


def test_the_true_model_is_a_stationary_point() -> None:
    """Labels drawn with the probability sigmoid(r) of a model's own outcome reward: no gradient."""
    truth, ref_logps = random_tree(5), along(random_tree(6))
    labels = (BETA * (along(truth) - ref_logps)).sum(-1).sigmoid()

    def gradient(tree: dict[tuple[int, ...], Tensor]) -> float:
        logits = {prefix: logps.clone().requires_grad_() for prefix, logps in tree.items()}
        logps = along({prefix: log_softmax(each, -1) for prefix, each in logits.items()})
        loss, _ = ImplicitPRM(beta=BETA)(batch(logps, ref_logps, labels))
        grads = torch.autograd.grad(loss, list(logits.values()))
        return max(float(g.abs().max()) for g in grads)

    assert gradient(truth) < 1e-15
    assert gradient(random_tree(7)) > 1e-3


def test_bad_hyper_parameters() -> None:
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        ImplicitPRM(beta=0)
