"""Similarity of pairs against plain forwards, autograd and a real step of training."""

import copy

import pytest
import torch
from tiny_checkpoints import gpt2, llama
from torch import Tensor
from transformers import PreTrainedModel

from tokenq.models.logps import token_logps
from tokenq.monitor import PairSimilarity, pair_similarities

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [5, 6, 7]]
CHOSEN = [[20, 21, 22, 2], [30, 31, 2], [40, 41, 42, 43, 2]]
REJECTED = [[20, 23, 2], [32, 33, 34, 35, 2], [40, 41, 42, 44, 2]]


def states(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """What each response token is predicted from, by a plain forward: [T, H]."""
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([prompt + response])).last_hidden_state[0]
    return hidden[len(prompt) - 1 : -1].double()


def similarities(model: PreTrainedModel, **options: bool) -> list[PairSimilarity]:
    return list(pair_similarities(model, PROMPTS, CHOSEN, REJECTED, **options))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_ches_is_its_definition_on_plain_states(make: type) -> None:
    model = make(seed=3)
    for number, found in enumerate(similarities(model)):
        ours = states(model, PROMPTS[number], CHOSEN[number])
        theirs = states(model, PROMPTS[number], REJECTED[number])
        by_sums = ours.sum(0) @ theirs.sum(0) - ours.sum(0) @ ours.sum(0)
        by_means = ours.mean(0) @ theirs.mean(0) - ours.mean(0) @ ours.mean(0)
        assert found.ches == pytest.approx(float(by_sums), rel=1e-4)
        assert found.ches_normalised == pytest.approx(float(by_means), rel=1e-4)
        assert (found.chosen_tokens, found.rejected_tokens) == (len(ours), len(theirs))
        assert found.gradients is None


def test_equal_answers_have_ches_zero_and_lose_nothing() -> None:
    model = llama(seed=1)
    [found] = pair_similarities(model, PROMPTS[:1], CHOSEN[:1], CHOSEN[:1], gradients=True)
    assert found.ches == pytest.approx(0, abs=1e-9)
    assert found.gradients is not None
    assert found.gradients.chosen_change == pytest.approx(0, abs=1e-9)
    assert found.gradients.cosine == pytest.approx(1)


def head_gradient(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    weight = model.get_output_embeddings().weight
    (logps,) = token_logps(model, [prompt], [response])
    (gradient,) = torch.autograd.grad(logps.sum(), weight)
    return gradient.double()


def test_products_of_gradients_are_those_of_autograd() -> None:
    model = llama(seed=2)
    for number, found in enumerate(similarities(model, gradients=True)):
        ours = head_gradient(model, PROMPTS[number], CHOSEN[number])
        theirs = head_gradient(model, PROMPTS[number], REJECTED[number])
        assert found.gradients is not None
        assert found.gradients.chosen == pytest.approx(float((ours * ours).sum()), rel=1e-4)
        assert found.gradients.rejected == pytest.approx(float((theirs * theirs).sum()), rel=1e-4)
        assert found.gradients.product == pytest.approx(float((ours * theirs).sum()), rel=1e-4)


def test_a_small_step_changes_the_chosen_answer_as_foretold() -> None:
    model = llama(seed=4).double()
    for number, found in enumerate(similarities(model, gradients=True)):
        moved, step = copy.deepcopy(model), 1e-5
        sides = CHOSEN[number], REJECTED[number]
        ours, theirs = (head_gradient(model, PROMPTS[number], side) for side in sides)
        with torch.no_grad():
            moved.get_output_embeddings().weight += step * (ours - theirs)
        changes = []
        for side in sides:
            with torch.no_grad():
                (before,) = token_logps(model, [PROMPTS[number]], [side])
                (after,) = token_logps(moved, [PROMPTS[number]], [side])
            changes.append(float((after - before).sum()) / step)
        assert found.gradients is not None
        assert changes[0] == pytest.approx(found.gradients.chosen_change, rel=1e-2)
        expected = found.gradients.product - found.gradients.rejected
        assert changes[1] == pytest.approx(expected, rel=1e-2)


def test_training_mode_and_gradients_are_left_as_they_were() -> None:
    model = llama(seed=5).train()
    similarities(model, gradients=True)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(weight.grad is None for weight in model.parameters())
