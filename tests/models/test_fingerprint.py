"""The weight hash: equal for equal log-probs, different after any change that matters."""

import copy

import pytest
import tiny_checkpoints as tiny
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.reference import AdapterOff


def test_equal_models_hash_equal_and_seeds_differ():
    assert weight_hash(tiny.llama(0)) == weight_hash(tiny.llama(0))
    assert weight_hash(tiny.llama(0)) != weight_hash(tiny.llama(1))


def test_a_saved_and_moved_model_keeps_its_hash(tmp_path):
    model = tiny.llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert weight_hash(AutoModelForCausalLM.from_pretrained(tmp_path / "b")) == weight_hash(model)


def test_a_bfloat16_checkpoint_read_as_float32_keeps_its_hash():
    narrow = tiny.llama().bfloat16()
    wide = copy.deepcopy(narrow).float()
    assert weight_hash(narrow) == weight_hash(wide)
    assert weight_hash(narrow) == weight_hash(copy.deepcopy(wide).double())
    assert weight_hash(narrow) != weight_hash(tiny.llama())


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_one_changed_bit_in_any_weight_changes_the_hash(make):
    model = make()
    before = weight_hash(model)
    for _, weight in model.named_parameters():
        value = weight.data.view(-1)[-1].clone()
        weight.data.view(-1)[-1] = torch.nextafter(value, torch.tensor(torch.inf))
        assert weight_hash(model) != before
        weight.data.view(-1)[-1] = value
    assert weight_hash(model) == before


def test_persistent_buffers_count():
    model = tiny.llama()
    model.register_buffer("offset", torch.zeros(3))
    before = weight_hash(model)
    model.offset += 1
    assert weight_hash(model) != before


def test_configuration_that_changes_outputs_counts_and_the_rest_does_not():
    model = tiny.llama()
    before = weight_hash(model)
    model.config.use_cache = False
    model.config.pad_token_id = 5
    model.config.attention_dropout = 0.3
    assert weight_hash(model) == before
    model.config.rms_norm_eps = 1e-3
    assert weight_hash(model) != before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": "all-linear"},
        {"trainable_token_indices": [3, 4]},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_base_under_an_adapter_hashes_like_the_base_alone(options, tied):
    alone = weight_hash(tiny.llama(tie_word_embeddings=tied))
    peft_model = tiny.lora(tiny.llama(tie_word_embeddings=tied), **options)
    assert weight_hash(AdapterOff(peft_model)) == alone
    assert weight_hash(peft_model) != alone


def test_training_the_adapter_moves_the_policy_hash_only():
    peft_model = tiny.lora(tiny.llama())
    policy, base = weight_hash(peft_model), weight_hash(AdapterOff(peft_model))
    tiny.randomise(peft_model, "default", seed=9)
    assert weight_hash(peft_model) != policy
    assert weight_hash(AdapterOff(peft_model)) == base


def test_a_merged_adapter_makes_another_model():
    base = weight_hash(tiny.llama())
    assert weight_hash(tiny.lora(tiny.llama()).merge_and_unload()) != base


def test_adapter_settings_count_though_its_weights_are_equal():
    assert weight_hash(tiny.lora(tiny.llama(), lora_alpha=8)) != weight_hash(
        tiny.lora(tiny.llama(), lora_alpha=16)
    )


def test_the_reference_adapter_hashes_under_any_name():
    policy = tiny.lora(tiny.llama())
    policy.add_adapter("ref", copy.deepcopy(policy.peft_config["default"]))
    tiny.randomise(policy, "ref", seed=5)
    alone = tiny.lora(tiny.llama(), seed=5)
    assert weight_hash(AdapterOff(policy)) == weight_hash(alone)


def test_wrappers_do_not_matter():
    model = tiny.llama()
    assert weight_hash(torch.compile(model)) == weight_hash(model)


def test_weights_without_data_are_refused():
    with torch.device("meta"):
        model = tiny.llama()
    with pytest.raises(UserError, match="has no data"):
        weight_hash(model)


def test_swapped_weights_of_one_shape_are_noticed():
    model = tiny.llama()
    before = weight_hash(model)
    attention = model.model.layers[0].self_attn
    attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
    assert isinstance(attention.k_proj, nn.Linear)
    assert weight_hash(model) != before
