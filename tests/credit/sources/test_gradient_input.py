"""Gradient x input against autograd on a plain forward and against finite differences."""

import pytest
import torch
from small_pairs import random_model, small_pair, small_tokenizer, with_adapter
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.credit.sources import GradientInput
from tokenq.errors import UserError
from tokenq.models import forward
from tokenq.models.pair import Pair, load_pair
from tokenq.reproduce.frozen_trunk import freeze_trunk

PROMPTS = ["Write one sentence of a film review.", "Go", "Go"]
RESPONSES = [" A dull mess.", " A warm, funny film that earns its tears.", " A dull mess."]


def parts(pair: Pair, row: int) -> tuple[list[int], list[int]]:
    prompt, response = (pair.tokenizer(each[row])["input_ids"] for each in (PROMPTS, RESPONSES))
    return prompt, [*response, pair.tokenizer.eos_token_id]


def log_prob(
    model: PreTrainedModel, vectors: Tensor, prompt: list[int], response: list[int]
) -> Tensor:
    """Summed log-probability of the response from input vectors; nothing of tokenq."""
    logits = model(inputs_embeds=vectors).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


def embedded(model: PreTrainedModel, ids: list[int]) -> Tensor:
    return model.get_input_embeddings()(torch.tensor([ids])).detach()


def products(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    vectors = embedded(model, prompt + response).requires_grad_()
    [gradient] = torch.autograd.grad(log_prob(model, vectors, prompt, response), [vectors])
    return (gradient * vectors).sum(-1)[0, len(prompt) :].detach()


@pytest.fixture(params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return small_pair(request.param)


def test_against_plain_autograd(pair: Pair) -> None:
    ratio = GradientInput(pair, beta=0.3).score(PROMPTS, RESPONSES)
    alone = GradientInput(pair, "log-prob").score(PROMPTS, RESPONSES)
    for row in range(3):
        ids = parts(pair, row)
        ours, theirs = (products(model, *ids) for model in (pair.policy, pair.reference))
        torch.testing.assert_close(alone[row].scores, ours, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ratio[row].scores, 0.3 * (ours - theirs), atol=1e-4, rtol=1e-4)
        assert ours[:-1].abs().min() > 1e-4
        assert float(alone[row].scores[-1]) == 0


def test_models_that_cannot_share_a_prompt_give_the_same(pair: Pair) -> None:
    shared = GradientInput(pair, token_budget=64).score(PROMPTS, RESPONSES)
    for model in (pair.policy, pair.reference):
        model.__dict__[forward._BACKBONE] = forward.row_hidden
    for ours, theirs in zip(shared, GradientInput(pair).score(PROMPTS, RESPONSES), strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=1e-4)


def test_a_finite_difference_agrees() -> None:
    """Shrinking one token's vector by a thousandth changes S by a thousandth of its score."""
    pair = small_pair()
    prompt, response = parts(pair, 1)
    [scores] = GradientInput(pair, "log-prob").score(PROMPTS[1:2], RESPONSES[1:2])
    model = pair.policy.double()
    vectors = embedded(model, prompt + response)
    for place in (0, 3, 7):
        sides = []
        for step in (1e-3, -1e-3):
            moved = vectors.clone()
            moved[0, len(prompt) + place] *= 1 + step
            with torch.no_grad():
                sides.append(log_prob(model, moved, prompt, response))
        slope = float(sides[0] - sides[1]) / 2e-3
        assert float(scores.scores[place]) == pytest.approx(slope, abs=2e-3)


def test_an_adapter_switched_off_is_the_base() -> None:
    tokenizer = small_tokenizer()
    separate = random_model("llama", len(tokenizer), 1)
    policy = with_adapter(random_model("llama", len(tokenizer), 1))
    inside = GradientInput(load_pair(policy, tokenizer=tokenizer))
    apart = GradientInput(load_pair(policy, separate, tokenizer=tokenizer))
    for ours, theirs in zip(
        inside.score(PROMPTS, RESPONSES), apart.score(PROMPTS, RESPONSES), strict=True
    ):
        assert float(ours.scores[:-1].abs().max()) > 1e-3
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)


def test_models_are_left_as_they_were() -> None:
    tokenizer = small_tokenizer()
    policy = with_adapter(random_model("llama", len(tokenizer), 1)).train()
    pair = load_pair(policy, tokenizer=tokenizer)
    policy.train()
    flags = [weight.requires_grad for weight in policy.parameters()]
    assert any(flags)
    with torch.no_grad():
        GradientInput(pair).score(PROMPTS, RESPONSES)
    assert [weight.requires_grad for weight in policy.parameters()] == flags
    assert all(weight.grad is None for weight in policy.parameters())
    assert all(module.training for module in policy.modules())
    assert not policy.get_input_embeddings()._forward_hooks


def test_layers_without_gradients_are_named_not_scored_as_zero() -> None:
    tokenizer = small_tokenizer()
    model = random_model("llama", len(tokenizer), 1)
    freeze_trunk(model, 1)
    pair = load_pair(model, random_model("llama", len(tokenizer), 2), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"no gradient of .* reaches the layer"):
        GradientInput(pair, "log-prob").score(PROMPTS, RESPONSES)

    def trunk(inner: PreTrainedModel) -> nn.Module:
        return inner.base_model.layers[0]

    whole = load_pair(random_model("llama", len(tokenizer), 1), model, tokenizer=tokenizer)
    above = GradientInput(pair, "log-prob", at=trunk).score(PROMPTS, RESPONSES)
    same = GradientInput(whole, "log-prob", at=trunk).score(PROMPTS, RESPONSES)
    for ours, theirs in zip(above, same, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=1e-4)
        assert float(ours.scores[:-1].abs().min()) > 1e-4


def test_what_is_asked_for_must_be_there() -> None:
    pair = small_pair()
    with pytest.raises(UserError, match="of is 'loss'; accepted: log-ratio, log-prob"):
        GradientInput(pair, "loss")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"does not give .* one vector a token"):
        GradientInput(pair, at=lambda model: model.get_output_embeddings()).score(
            PROMPTS, RESPONSES
        )
    with pytest.raises(UserError, match="has no reference"):
        GradientInput(Pair(pair.policy, None, pair.tokenizer, "alone"))
    with pytest.raises(UserError, match="row 1: the response is empty"):
        GradientInput(pair).score(PROMPTS[:2], [" A film.", ""])
