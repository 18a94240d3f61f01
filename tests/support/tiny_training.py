"""A small trained tokenizer, tiny fp32 models and preference rows for tests of training."""

import json
import random
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SUBJECTS = ["the film", "this story", "her acting", "the music", "a long scene", "the plot"]
GOOD = ["is warm and clever", "moves me to tears of joy", "was worth every minute", "shines"]
BAD = ["is dull", "drags on without any point at all", "was a waste", "fails again and again"]


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Preference rows of varying length; some prompts occur more than once."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        subject = draw.choice(SUBJECTS)
        chosen = " ".join(draw.choice(GOOD) for _ in range(draw.randint(1, 3)))
        rejected = " ".join(draw.choice(BAD) for _ in range(draw.randint(1, 3)))
        rows.append(
            {
                "prompt": f"Say what you think: {subject}",
                "chosen": f" {chosen}.",
                "rejected": f" {rejected}!",
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the rows' own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for row in pairs(200) for text in row.values()]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=512
    )


def tiny_llama(seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """A random fp32 Llama with grouped attention heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=352, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """A random fp32 GPT-2 with a tied head and dropout in its configuration."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=352, n_embd=32, n_layer=2, n_head=4, n_positions=256, pad_token_id=0,
        eos_token_id=1, bos_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def save_model(folder: Path, model: PreTrainedModel) -> Path:
    """Save model and tokenizer as a plain Hugging Face folder."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tokenised(count: int, seed: int = 0) -> datasets.Dataset:
    """The rows as token ids, the way a user who tokenises by hand would bring them."""
    tokenizer = tiny_tokenizer()
    rows = [
        {
            "prompt_ids": tokenizer(row["prompt"])["input_ids"],
            "chosen_ids": [*tokenizer(row["chosen"])["input_ids"], tokenizer.eos_token_id],
            "rejected_ids": [*tokenizer(row["rejected"])["input_ids"], tokenizer.eos_token_id],
        }
        for row in pairs(count, seed)
    ]
    return datasets.Dataset.from_list(rows)
