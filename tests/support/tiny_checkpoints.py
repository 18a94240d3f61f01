"""Tiny random checkpoints on disk: models, word tokenizers, LoRA adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = ["<pad>", "<bos>", "<eos>", *(f"word{n}" for n in range(93))]


def tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word, split at blanks."""
    backend = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[3]))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def llama(seed: int = 0, vocab_size: int = len(WORDS), **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0, vocab_size: int = len(WORDS)) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


def save(model: PreTrainedModel, folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Model and tokenizer in one folder."""
    model.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


def lora(base: PreTrainedModel, seed: int = 0, **options: Any) -> PeftModel:
    """A LoRA policy on ``base`` that differs from it: B is random, not zero."""
    targets = ["c_attn"] if isinstance(base, GPT2LMHeadModel) else ["q_proj", "v_proj"]
    options = {"target_modules": targets, "r": 4, "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(base, LoraConfig(**options))
    randomise(model, "default", seed)
    return model.eval()


def randomise(model: PeftModel, adapter: str, seed: int) -> None:
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if ".lora_" in name and f".{adapter}." in name:
            weight.data.normal_(std=0.2)


def lora_folder(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter folder on a base folder, as PEFT saves it."""
    model = lora(LlamaForCausalLM.from_pretrained(base), **options)
    model.save_pretrained(folder)
    return folder
