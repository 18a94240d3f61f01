"""Loading policies, references and tokenizers: what comes out, and what is refused."""

import json
import pickle
import shutil

import huggingface_hub
import pytest
import tiny_checkpoints as tiny
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.loading import disable_dropout, load_policy, load_tokenizer
from tokenq.models.logps import token_logps
from tokenq.models.pair import load_pair
from tokenq.models.reference import AdapterOff

PROMPT, RESPONSE = [5, 6, 7], [8, 9, 10, 2]


def logps(model):
    with torch.no_grad():
        return token_logps(model, [PROMPT], [RESPONSE])[0]


@pytest.fixture
def base(tmp_path):
    return tiny.save(tiny.llama(), tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    return tiny.lora_folder(base, tmp_path / "adapter")


@pytest.fixture
def no_weights(monkeypatch):
    """Fail the test if weights are read."""

    def read(*_args, **_kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)


# What comes out


def test_two_folders_make_a_pair(tmp_path, base):
    other = tiny.save(tiny.llama(1), tmp_path / "other")
    pair = load_pair(other, reference=str(base))
    assert (pair.policy_name, pair.reference_name) == (str(other), str(base))
    assert weight_hash(pair.policy) == weight_hash(tiny.llama(1))
    assert weight_hash(pair.reference) == weight_hash(tiny.llama(0))
    assert not pair.policy.training
    assert not pair.reference.training
    assert not any(weight.requires_grad for weight in pair.reference.parameters())
    assert all(weight.requires_grad for weight in pair.policy.parameters())
    assert pair.tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_a_full_model_alone_has_no_reference(base):
    pair = load_pair(base)
    assert pair.reference is None
    assert pair.reference_name is None


def test_an_adapter_folder_takes_its_base_as_reference(base, adapter):
    pair = load_pair(adapter)
    assert isinstance(pair.reference, AdapterOff)
    assert pair.reference_name == str(base)
    torch.testing.assert_close(logps(pair.reference), logps(tiny.llama()))
    assert (logps(pair.policy) - logps(pair.reference)).abs().max() > 1e-3
    trainable = [name for name, weight in pair.policy.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_the_base_named_explicitly_is_not_loaded_twice(base, adapter):
    assert isinstance(load_pair(adapter, reference=base).reference, AdapterOff)


def test_another_reference_under_an_adapter_is_a_second_model(tmp_path, adapter):
    other = tiny.save(tiny.llama(1), tmp_path / "other")
    pair = load_pair(adapter, reference=other)
    torch.testing.assert_close(logps(pair.reference), logps(tiny.llama(1)))


@pytest.mark.parametrize("options", [{"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_changes_its_base_gets_a_second_copy(tmp_path, base, options):
    pair = load_pair(tiny.lora_folder(base, tmp_path / "adapter", **options))
    assert not isinstance(pair.reference, AdapterOff)
    torch.testing.assert_close(logps(pair.reference), logps(tiny.llama()))


def test_an_adapter_that_carries_embeddings_gets_a_second_copy(tmp_path, base):
    model = tiny.lora(AutoModelForCausalLM.from_pretrained(base))
    model.get_base_model().model.embed_tokens.weight.data += 0.1
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    pair = load_pair(tmp_path / "adapter")
    assert not isinstance(pair.reference, AdapterOff)
    torch.testing.assert_close(logps(pair.reference), logps(tiny.llama()))
    torch.testing.assert_close(logps(pair.policy), logps(model))


def test_an_adapter_with_new_tokens_loads_on_a_grown_base(tmp_path, base):
    grown = AutoModelForCausalLM.from_pretrained(base)
    words = [*tiny.WORDS, "<think>", "</think>"]
    grown.resize_token_embeddings(len(words))
    model = tiny.lora(grown)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tiny.tokenizer(words).save_pretrained(tmp_path / "adapter")
    policy = load_policy(tmp_path / "adapter")
    torch.testing.assert_close(logps(policy), logps(model))
    with pytest.raises(UserError, match=r"token id 96 is '<think>' in the first and absent"):
        load_pair(tmp_path / "adapter")


def test_the_frozen_adapter_of_a_trl_checkpoint_is_the_reference(tmp_path, base):
    policy = tiny.lora(AutoModelForCausalLM.from_pretrained(base), seed=1)
    policy.add_adapter("ref", LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    tiny.randomise(policy, "ref", seed=2)
    policy.save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "ref").is_dir()
    pair = load_pair(tmp_path / "run")
    torch.testing.assert_close(logps(pair.policy), logps(tiny.lora(tiny.llama(), seed=1)))
    torch.testing.assert_close(logps(pair.reference), logps(tiny.lora(tiny.llama(), seed=2)))


def test_loaded_models_keep_their_dtype_and_find_their_tokenizer(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    pair = load_pair(model, reference=tiny.llama(1), tokenizer=base)
    assert pair.policy is model
    assert model.dtype == torch.float64
    assert load_pair(model).tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_a_loaded_model_of_unknown_origin_has_log_probs_but_no_tokenizer():
    pair = load_pair(tiny.llama(), reference=tiny.llama(1))
    logps(pair.policy)
    with pytest.raises(UserError, match="pass tokenizer="):
        _ = pair.tokenizer


def test_dtype_and_device(base):
    assert load_policy(base).dtype == torch.float32
    assert load_policy(base, dtype="bf16", device="cpu").dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype 'bf61'"):
        load_pair(base, dtype="bf61")
    with pytest.raises(UserError, match="device 'gpu'"):
        load_pair(base, device="gpu")


def test_an_adapter_without_tokenizer_takes_its_base_s(adapter):
    assert load_tokenizer(adapter).get_vocab() == tiny.tokenizer().get_vocab()


@pytest.mark.parametrize("make", [tiny.gpt2, lambda: tiny.llama(attention_dropout=0.5)])
def test_dropout_is_off_also_in_training_mode(make):
    model = make().train()
    disable_dropout(model)
    ids = torch.tensor([PROMPT])
    torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_pickled_tensors_are_read_and_pickled_code_is_not(tmp_path, base):
    folder = tmp_path / "pickled"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny.llama(3).state_dict(), folder / "pytorch_model.bin")
    assert weight_hash(load_policy(folder)) == weight_hash(tiny.llama(3))

    trace = tmp_path / "trace"
    torch.save({"lm_head.weight": _Touch(str(trace))}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"more than tensors.*safetensors"):
        load_policy(folder)
    assert not trace.exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_the_trap_of_the_test_above_is_live(tmp_path):
    pickle.loads(pickle.dumps(_Touch(str(tmp_path / "trace"))))
    assert (tmp_path / "trace").exists()


# What is refused


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "a b"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(UserError, match=r"does not exist; accepted: .*hub name.*bundled:NAME"):
        load_pair(name)


@pytest.mark.usefixtures("no_weights")
def test_a_name_that_is_on_no_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'no/such-model-here' is no folder here.*accepted"):
        load_pair("no/such-model-here")


@pytest.mark.usefixtures("no_weights")
def test_a_file_and_a_folder_without_model(tmp_path, base):
    with pytest.raises(UserError, match="is a file"):
        load_pair(base / "config.json")
    with pytest.raises(UserError, match=r"no config\.json or adapter_config\.json"):
        load_pair(tmp_path)
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_pair(base)


@pytest.mark.usefixtures("no_weights")
def test_a_run_folder_points_to_its_last_checkpoint(tmp_path):
    for step in (90, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(UserError, match=r"did you mean '.*checkpoint-100'"):
        load_pair(tmp_path)


@pytest.mark.usefixtures("no_weights")
def test_a_reward_model_is_refused_by_its_name(tmp_path):
    config = tiny.llama().config
    tiny.save(LlamaForSequenceClassification(config), tmp_path / "reward")
    with pytest.raises(UserError, match="LlamaForSequenceClassification, not a causal"):
        load_pair(tmp_path / "reward")


@pytest.mark.usefixtures("no_weights")
def test_an_encoder_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=96, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    tiny.save(T5ForConditionalGeneration(config), tmp_path / "t5")
    with pytest.raises(UserError, match="T5ForConditionalGeneration, not a causal"):
        load_pair(tmp_path / "t5")


def test_a_missing_head_is_not_made_up(tmp_path):
    tiny.save(LlamaModel(tiny.llama().config), tmp_path / "headless")
    with pytest.raises(UserError, match=r"lacks 1 weights.*lm_head\.weight"):
        load_pair(tmp_path / "headless")


def test_a_tied_head_is_not_missing(tmp_path):
    model = tiny.llama(tie_word_embeddings=True)
    tiny.save(model, tmp_path / "tied")
    assert weight_hash(load_policy(tmp_path / "tied")) == weight_hash(model)


@pytest.mark.usefixtures("no_weights")
def test_remote_code_is_off(base):
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "mine.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(UserError, match=r"mine|custom code"):
        load_pair(base)


@pytest.mark.usefixtures("no_weights")
def test_adapters_without_base_weights_or_sense(tmp_path, base, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())

    def with_config(**changes):
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))

    with_config(base_model_name_or_path="/gone/base")
    with pytest.raises(UserError, match=r"adapter '.*adapter': its base: model '/gone/base'"):
        load_pair(adapter)
    with_config(base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not name its base"):
        load_pair(adapter)
    with_config(task_type="SEQ_CLS")
    with pytest.raises(UserError, match="SEQ_CLS; accepted: CAUSAL_LM"):
        load_pair(adapter)
    with_config()
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        load_pair(adapter)


def test_virtual_tokens_are_refused_before_weights(tmp_path, base, monkeypatch):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="virtual tokens"):
        load_pair(tmp_path / "prompt")


# Silent mistakes of other credit tools: the adapter left on, the vocabularies that differ


def test_the_base_object_of_the_policy_is_the_adapter_switched_off():
    """PEFT injects layers in place: ``get_base_model()`` alone would give all-zero rewards."""
    base = tiny.llama()
    policy = tiny.lora(base)
    for reference in (policy.get_base_model(), base, policy.base_model):
        pair = load_pair(policy, reference=reference)
        assert isinstance(pair.reference, AdapterOff)
        rewards = logps(pair.policy) - logps(pair.reference)
        assert rewards.abs().max() > 1e-3
        torch.testing.assert_close(logps(pair.reference), logps(tiny.llama()))


def test_other_ways_to_leave_the_adapter_on_are_refused():
    policy = tiny.lora(tiny.llama())
    with pytest.raises(UserError, match="the PEFT policy itself"):
        load_pair(policy, reference=policy)
    with pytest.raises(UserError, match="PEFT layers inside"):
        load_pair(policy.get_base_model())
    with pytest.raises(UserError, match="PEFT layers inside"):
        load_pair(tiny.llama(), reference=policy.get_base_model())
    with pytest.raises(UserError, match="around the same base"):
        load_pair(
            policy, reference=PeftModel(policy.get_base_model(), policy.peft_config["default"])
        )


def test_a_loaded_adapter_takes_its_base_as_reference():
    pair = load_pair(tiny.lora(tiny.llama()))
    assert isinstance(pair.reference, AdapterOff)
    torch.testing.assert_close(logps(pair.reference), logps(tiny.llama()))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*tiny.WORDS[:40], "other", *tiny.WORDS[41:]], "token id 40 is 'word37' .* and 'other'"),
        ([*tiny.WORDS, "more"], "token id 96 is absent in the first and 'more'"),
        (tiny.WORDS[:-1], "token id 95 is 'word92' in the first and absent"),
    ],
)
def test_another_vocabulary_is_refused_with_its_first_token(tmp_path, base, words, message):
    other = tiny.save(tiny.llama(vocab_size=len(words)), tmp_path / "other", words)
    with pytest.raises(UserError, match=message):
        load_pair(base, reference=other)


@pytest.mark.usefixtures("no_weights")
def test_an_added_token_is_part_of_the_vocabulary(tmp_path, base):
    other = tiny.save(tiny.llama(vocab_size=97), tmp_path / "other")
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    words.save_pretrained(other)
    with pytest.raises(UserError, match=r"token id 96 is absent in the first and '<\|im_start\|>'"):
        load_pair(base, reference=other)


def test_embeddings_that_differ_by_padding_are_accepted(tmp_path, base):
    padded = tiny.save(tiny.llama(1, vocab_size=128), tmp_path / "padded")
    for policy, reference in ((base, padded), (padded, base)):
        pair = load_pair(policy, reference=reference)
        assert logps(pair.policy).shape == logps(pair.reference).shape


def test_another_padding_token_is_accepted(tmp_path):
    ours = tiny.save(tiny.llama(), tmp_path / "ours")
    words = ["<|reserved|>", *tiny.WORDS[1:]]
    theirs = tiny.save(tiny.llama(1), tmp_path / "theirs")
    renamed = json.loads((theirs / "tokenizer.json").read_text().replace("<pad>", words[0]))
    (theirs / "tokenizer.json").write_text(json.dumps(renamed))
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    settings["pad_token"] = words[0]
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    load_pair(ours, reference=theirs)


@pytest.mark.usefixtures("no_weights")
def test_a_model_smaller_than_its_tokenizer_is_refused(tmp_path):
    small = tiny.save(tiny.llama(vocab_size=90), tmp_path / "small")
    with pytest.raises(
        UserError, match="embeddings for 90 tokens, its tokenizer has 96: token id 90"
    ):
        load_pair(small)


def test_loaded_models_of_other_sizes_without_tokenizers_are_refused():
    for sizes in ((96, 90), (96, 128)):
        policy, reference = (tiny.llama(vocab_size=size) for size in sizes)
        with pytest.raises(UserError, match=f"reads {sizes[0]} token ids.*{sizes[1]}"):
            load_pair(policy, reference=reference)


def test_a_loaded_reference_is_compared_by_the_tokenizer_it_came_with(tmp_path, base):
    words = [*tiny.WORDS[:40], "other", *tiny.WORDS[41:]]
    other = tiny.save(tiny.llama(1), tmp_path / "other", words)
    reference = AutoModelForCausalLM.from_pretrained(other)
    with pytest.raises(UserError, match="token id 40"):
        load_pair(base, reference=reference)
