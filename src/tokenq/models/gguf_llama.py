"""Convert a Llama-architecture GGUF file to a plain Hugging Face folder, weights in float32.

transformers reads GGUF too, but slowly, at every start, with a model that cannot be saved again
and a tokenizer without its digit splitting; so the work is done once, here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

CONTROL_TOKEN = 3  # GGUF's number for a token that is never produced from text

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def convert(gguf_file: Path, folder: Path) -> None:
    """Write config, weights, tokenizer and generation config of ``gguf_file`` into ``folder``.

    float32 because the 4-bit formats stand for ``scale * q + offset``, which neither bfloat16 nor
    float16 can hold exactly.
    """
    reader = GGUFReader(gguf_file)
    config = read_config(reader)
    weights = dict(read_weights(reader))
    config.tie_word_embeddings = "lm_head.weight" not in weights
    shard = folder / "model.safetensors"
    save_file(weights, shard, metadata={"format": "pt"})
    shard.chmod(0o644)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    read_tokenizer(reader, config).save_pretrained(folder)


def read_config(reader: GGUFReader) -> LlamaConfig:
    """The model's shape; raises ValueError for an architecture that is not Llama's."""
    if _field(reader, "general.architecture") != "llama":
        raise ValueError(f"{_field(reader, 'general.architecture')!r} is not a Llama GGUF file")
    rope = {"rope_type": "default", "rope_theta": _decimal(_field(reader, "llama.rope.freq_base"))}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=_field(reader, "llama.attention.head_count"),
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=_decimal(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        rope_parameters=rope,
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
    )


def read_weights(reader: GGUFReader) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield (Hugging Face name, float32 weight) for every tensor of the file."""
    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        part, *rest = tensor.name.split(".")
        if part == "blk":
            layer, part = rest[0], rest[1]
            if part in heads:
                weight = halves_from_pairs(weight, heads[part])
            name = f"model.layers.{layer}.{BLOCK_NAMES[part]}.weight"
        else:
            name = f"{TOP_NAMES[part]}.weight"
        yield name, np.ascontiguousarray(weight)


def halves_from_pairs(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of a query or key projection, ``[heads * d, hidden]``.

    Rotary embedding turns two rows together: GGUF keeps the two side by side, Hugging Face
    ``d / 2`` apart.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def read_tokenizer(reader: GGUFReader, config: LlamaConfig) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer with SmolLM's pre-tokenizer and the file's chat template."""
    family = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if family != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer {family} is not SmolLM's, the only one converted here")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # "smollm" means: every digit is its own piece. Without it, blanks before a digit differ.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    controls = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in controls])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[config.bos_token_id],
        eos_token=tokens[config.eos_token_id],
        pad_token=tokens[config.pad_token_id],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _field(reader, "tokenizer.chat_template")
    return tokenizer


def _field(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def _decimal(value: float) -> float:
    """The short decimal behind a float32: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value)))
