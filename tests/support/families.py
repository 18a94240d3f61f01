"""Tiny random models of each supported family, in float64, for exact comparisons."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 97

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "llama-tied": LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": MistralConfig(**_GROUPED, sliding_window=None),
    "mistral-sliding": MistralConfig(**_GROUPED, sliding_window=6),
    "qwen2-sliding": Qwen2Config(**_GROUPED, use_sliding_window=True, **_SLIDING),
    "gemma": GemmaConfig(**_GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**_GROUPED, head_dim=8, **_SLIDING),
    "gemma3": Gemma3TextConfig(**_GROUPED, head_dim=8, **_SLIDING),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "gpt-neox": GPTNeoXConfig(**_COMMON),
}  # fmt: skip


def tiny_model(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a random model of `family` in eval mode; weights large enough for sharp attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.to(dtype).eval()


class DoubleThroughout(TorchFunctionMode):
    """Keep float64 where modelling code asks for float32 (norms, softmax, rotary embeddings).

    Without it a float64 model is only as exact as its float32 parts, and 1e-9 means nothing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
