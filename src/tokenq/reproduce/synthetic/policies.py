"""Tiny causal language models from a configuration, samples from them, and their scores."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tokenq.models.logps import token_logps
from tokenq.models.reference import scoring

Ids = list[int]
LONGEST = 128


def tiny_policy(
    vocabulary: int, seed: int, *, hidden: int = 64, layers: int = 2
) -> LlamaForCausalLM:
    """A random fp32 Llama with ids 0, 1, 2 for padding, end and start."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LONGEST,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, initializer_range=0.05,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def sample(
    model: LlamaForCausalLM, prompts: Sequence[Ids], most_tokens: int, seed: int
) -> list[Ids]:
    """One sample of each prompt at temperature 1, EOS included where it was reached.

    prompts: all of one length, so that nothing is padded
    """
    ids = torch.tensor(list(prompts))
    config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=most_tokens, pad_token_id=0, eos_token_id=1
    )
    with torch.random.fork_rng(devices=[]), scoring(model):
        torch.manual_seed(seed)
        generator: Any = model  # the annotation of `generate` does not fit its own class
        out = generator.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


def scores(
    model: LlamaForCausalLM, prompts: Sequence[Ids], responses: Sequence[Ids]
) -> list[Tensor]:
    """Per-token log-probabilities [T_i] of each response, without gradients."""
    with scoring(model):
        return token_logps(model, prompts, responses)


def sums(per_token: Sequence[Tensor]) -> Tensor:
    """[N] log-probabilities of whole responses from those of their tokens."""
    return torch.stack([row.sum() for row in per_token])
