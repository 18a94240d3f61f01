"""The base under an adapter as reference, and the identity that a resumed run checks."""

import copy
import json

import pytest
import tiny_checkpoints as tiny
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from tokenq.errors import UserError
from tokenq.models.logps import token_logps
from tokenq.models.reference import AdapterOff, ReferenceIdentity, scoring

PROMPT, RESPONSE = [5, 6, 7], [8, 9, 10, 2]


def logps(model, rows=1):
    with torch.no_grad():
        return token_logps(model, [PROMPT] * rows, [RESPONSE] * rows)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"lora_dropout": 0.5},
        {"trainable_token_indices": [5, 8]},
    ],
)
def test_adapter_off_gives_the_base(options):
    peft_model = tiny.lora(tiny.llama(), **options)
    expected = logps(tiny.llama())
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                weight.add_(0.3)
    on = logps(peft_model)
    torch.testing.assert_close(logps(AdapterOff(peft_model)), expected)
    assert (on - expected).abs().max() > 1e-3
    torch.testing.assert_close(logps(peft_model), on, rtol=0, atol=0)


def test_active_leaves_the_policy_as_it_was():
    peft_model = tiny.lora(tiny.gpt2(), lora_dropout=0.5).train()
    peft_model.base_model.model.transformer.h[0].eval()
    frozen = next(w for n, w in peft_model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = (
        [module.training for module in peft_model.modules()],
        [weight.requires_grad for weight in peft_model.parameters()],
        peft_model.active_adapters,
    )
    with AdapterOff(peft_model).active() as model:
        assert not any(module.training for module in model.modules())
    assert before == (
        [module.training for module in peft_model.modules()],
        [weight.requires_grad for weight in peft_model.parameters()],
        peft_model.active_adapters,
    )


def test_an_adapter_that_was_off_stays_off():
    peft_model = tiny.lora(tiny.llama())
    with peft_model.disable_adapter():
        logps(AdapterOff(peft_model))
        torch.testing.assert_close(logps(peft_model), logps(tiny.llama()))


def test_the_policy_is_restored_after_an_error():
    peft_model = tiny.lora(tiny.llama())
    on = logps(peft_model)
    with pytest.raises(KeyError), AdapterOff(peft_model).active():
        raise KeyError
    torch.testing.assert_close(logps(peft_model), on, rtol=0, atol=0)


def test_a_policy_in_training_has_a_reference_without_dropout():
    peft_model = tiny.lora(tiny.gpt2()).train()
    torch.testing.assert_close(logps(AdapterOff(peft_model)), logps(tiny.gpt2()))


def test_gradients_of_the_policy_survive_a_reference_pass_in_between():
    def gradients(with_reference):
        peft_model = tiny.lora(tiny.llama())
        loss = -token_logps(peft_model, [PROMPT], [RESPONSE])[0].sum()
        if with_reference:
            logps(AdapterOff(peft_model))
        loss.backward()
        return {n: w.grad for n, w in peft_model.named_parameters() if w.grad is not None}

    expected, got = gradients(False), gradients(True)
    assert expected
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient)


def policy_with_reference_adapter():
    policy = tiny.lora(tiny.llama(), seed=1)
    policy.add_adapter("ref", copy.deepcopy(policy.peft_config["default"]))
    tiny.randomise(policy, "ref", seed=2)
    return policy


def test_an_adapter_named_ref_is_the_reference():
    policy = policy_with_reference_adapter()
    on = logps(policy)
    trainable = [weight.requires_grad for weight in policy.parameters()]
    torch.testing.assert_close(logps(AdapterOff(policy)), logps(tiny.lora(tiny.llama(), seed=2)))
    assert policy.active_adapters == ["default"]
    assert trainable == [weight.requires_grad for weight in policy.parameters()]
    torch.testing.assert_close(logps(policy), on, rtol=0, atol=0)
    assert "adapter 'ref'" in AdapterOff(policy).name


def test_an_active_adapter_named_ref_is_switched_off_like_any_other():
    policy = policy_with_reference_adapter()
    policy.set_adapter("ref")
    torch.testing.assert_close(logps(AdapterOff(policy)), logps(tiny.llama()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bias": "lora_only"}, "biases of the base"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"init_lora_weights": "olora"}, "changes the base weights"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "replicates layers"),
    ],
)
def test_adapters_below_which_is_not_the_base_are_refused(options, reason):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, **options)
    with pytest.raises(UserError, match=reason):
        AdapterOff(get_peft_model(tiny.llama(), config))


def test_virtual_tokens_are_refused():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UserError, match="virtual tokens"):
        AdapterOff(get_peft_model(tiny.llama(), config))


def test_a_merged_adapter_is_refused_whenever_it_was_merged():
    peft_model = tiny.lora(tiny.llama())
    reference = AdapterOff(peft_model)
    peft_model.merge_adapter()
    with pytest.raises(UserError, match="merged"), reference.active():
        pass
    with pytest.raises(UserError, match="merged"):
        AdapterOff(peft_model)
    peft_model.unmerge_adapter()
    torch.testing.assert_close(logps(reference), logps(tiny.llama()))


def test_scoring_takes_dropout_and_gradients_off_a_plain_model_too():
    model = tiny.gpt2().train()
    with scoring(model) as reference:
        (row,) = token_logps(reference, [PROMPT], [RESPONSE])
    assert not row.requires_grad
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(row, logps(tiny.gpt2()))


def test_identity_survives_saving(tmp_path):
    identity = ReferenceIdentity.of(tiny.llama(), name="base", revision="abc")
    identity.save(tmp_path / "reference.json")
    loaded = ReferenceIdentity.load(tmp_path / "reference.json")
    assert loaded == identity
    assert loaded.name == "base"
    loaded.verify(identity)


def test_the_base_under_an_adapter_has_the_identity_of_the_base_alone():
    policy = tiny.lora(tiny.llama())
    alone = ReferenceIdentity.of(tiny.llama())
    alone.verify(ReferenceIdentity.of(AdapterOff(policy)))


def test_a_resumed_run_with_half_trained_weights_as_reference_is_stopped():
    started = ReferenceIdentity.of(tiny.llama(), name="sft")
    half_trained = tiny.llama()
    half_trained.lm_head.weight.data[0, 0] += 1e-4
    with pytest.raises(UserError, match=r"reference has changed.*sft.*checkpoint-500"):
        started.verify(ReferenceIdentity.of(half_trained, name="checkpoint-500"))


def test_the_same_weights_under_another_model_code_are_noticed(monkeypatch):
    started = ReferenceIdentity.of(tiny.llama())
    changed = tiny.llama()
    norm = changed.model.norm
    monkeypatch.setattr(norm, "forward", lambda states: 1.1 * type(norm).forward(norm, states))
    with pytest.raises(UserError, match=r"same weights.*log-probs"):
        started.verify(ReferenceIdentity.of(changed))


def test_another_precision_is_the_same_reference():
    narrow = tiny.llama().bfloat16()
    wide = copy.deepcopy(narrow).float()
    ReferenceIdentity.of(wide).verify(ReferenceIdentity.of(narrow))


@pytest.mark.parametrize("text", ["", "{}", "[1]", json.dumps({"name": "x"})])
def test_a_broken_identity_file_is_named(tmp_path, text):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"reference.json"):
        ReferenceIdentity.load(path)
