"""The frozen trunk changes nothing but the time: same log-probs, gradients and samples."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_training import tiny_llama

from tokenq.models import token_logps
from tokenq.models.loading import disable_dropout
from tokenq.reproduce.frozen_trunk import FrozenTrunk, freeze_trunk
from tokenq.search import sample

PROMPTS = [[5, 6, 7], [5, 6, 7], [8, 9]]
RESPONSES = [[10, 11], [12, 13, 14], [15, 16]]


def test_log_probs_and_gradients_are_those_of_the_whole_model() -> None:
    plain = tiny_llama(layers=4)
    disable_dropout(plain)
    trunk = copy.deepcopy(plain)
    names = freeze_trunk(trunk, upper=2)
    plain.requires_grad_(False)
    upper = r"model\.layers\.[23]\.(self_attn|mlp)\.\w+_proj"
    results = []
    for model, targets in ((plain, upper), (trunk, names)):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)
        torch.manual_seed(0)
        policy = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
        for _ in range(2):
            policy.zero_grad()
            logps = torch.cat(token_logps(policy, PROMPTS, RESPONSES))
            logps.sum().backward()
        gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
        results.append((logps.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert torch.equal(ours, theirs)
    assert len(our_gradients) == len(their_gradients) == 2 * 2 * 7
    for first, second in zip(our_gradients, their_gradients, strict=True):
        assert torch.equal(first, second)


def test_known_rows_do_not_run_the_layers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=3)
    freeze_trunk(model, upper=1)
    with torch.no_grad():
        first = token_logps(model, PROMPTS, RESPONSES)
        monkeypatch.setattr(FrozenTrunk, "_through", None)
        again = token_logps(model, PROMPTS, RESPONSES)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        # The same rows in other packs, fewer of them and in another order.
        other = token_logps(model, PROMPTS[::-1][:2], RESPONSES[::-1][:2])
        for ours, theirs in zip(other, first[::-1][:2], strict=True):
            torch.testing.assert_close(ours, theirs)
        # A response after another prompt is another row.
        with pytest.raises(TypeError):
            token_logps(model, [[8, 9]], [RESPONSES[0]])


@pytest.mark.parametrize("upper", [0, 2])
def test_some_layers_have_to_stay_on_both_sides(upper: int) -> None:
    with pytest.raises(ValueError, match="accepted: 1 to 1"):
        freeze_trunk(tiny_llama(layers=2), upper=upper)


def test_generation_keeps_its_cache(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama(layers=3)
    plain = copy.deepcopy(model)
    freeze_trunk(model, upper=1)
    ours, theirs = (sample(m, PROMPTS, 4, 6, seed=1) for m in (model, plain))
    assert [[r.token_ids for r in row] for row in ours] == [
        [r.token_ids for r in row] for row in theirs
    ]
    assert "cannot share a cache" not in caplog.text
