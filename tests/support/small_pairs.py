"""A small trained tokenizer and tiny random models that go with it, in memory and on disk."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tokenq.models.pair import Pair, load_pair

TEXTS = [
    "A warm, funny and deeply felt film that earns every one of its tears.",
    "The plot is a dull mess of clichés and the jokes land with a thud.",
    "An uneven but charming debut with a terrific lead.",
    "Write one sentence of a film review. The answer is 42, not 41.",
    "<|user|>\n<|assistant|>\n",
]

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def small_tokenizer(size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about `size` tokens with BOS (unused), EOS and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
    )


def config(family: str, vocabulary: int) -> PreTrainedConfig:
    """A tiny configuration; its context is 128 tokens."""
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, **special
        )
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=128, **special,
    )  # fmt: skip


def random_model(family: str, vocabulary: int, seed: int) -> PreTrainedModel:
    """A float32 model in eval mode whose predictions are far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(family, vocabulary), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def small_pair(family: str = "llama") -> Pair:
    """Two random models of one family with the small tokenizer."""
    tokenizer = small_tokenizer()
    policy, reference = (random_model(family, len(tokenizer), seed) for seed in (1, 2))
    return load_pair(policy, reference, tokenizer=tokenizer)


def save_model(folder: Path, family: str = "llama", seed: int = 1) -> Path:
    """Write a model with the small tokenizer to `folder`."""
    tokenizer = small_tokenizer()
    random_model(family, len(tokenizer), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_adapter(model: PreTrainedModel) -> PeftModel:
    """Put a LoRA adapter with random weights, not the usual zeros, on `model`."""
    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted.eval()
