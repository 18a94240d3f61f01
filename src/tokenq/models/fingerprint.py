"""A hash that is equal for two models exactly when they give the same log-probabilities.

It looks at weights and at the configuration, not at names, so that a moved folder, a tied head, a
wider dtype or a PEFT wrapper whose adapter is off do not change it, and one trained step does.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tokenq.errors import UserError

if TYPE_CHECKING:
    from tokenq.models.reference import AdapterOff

# Path components that PEFT, FSDP, torch.compile and activation checkpointing put around a module.
_WRAPPERS = {
    "base_layer",
    "original_module",
    "token_adapter",
    "_fsdp_wrapped_module",
    "_orig_mod",
    "_checkpoint_wrapped_module",
}
_BASE_SIDE = {"base_layer", "original_module", "token_adapter"}

# Configuration fields that leave the log-probabilities of a given token sequence as they are.
_INERT_CONFIG = {
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
}
_INERT_ADAPTER_CONFIG = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "peft_version",
    "revision",
    "task_type",
}
_IN_FLIGHT = 16


def weight_hash(model: "nn.Module | AdapterOff") -> str:
    """Hex digest (128 bits) of everything that decides the model's log-probabilities.

    Weights are compared by value: a bfloat16 checkpoint read as float32 keeps its hash. Tied
    weights count once. For an ``AdapterOff`` the base alone is hashed, under the names it has
    without PEFT. Sharded (FSDP2) weights are gathered one at a time: every process must call this.

    Raises ``UserError`` if a weight has no data (a model on the meta device).
    """
    from tokenq.models.reference import AdapterOff

    if isinstance(model, AdapterOff):
        module: nn.Module = model.peft_model
        adapters: Sequence[str] = () if model.adapter is None else (model.adapter,)
    else:
        module = extract_model_from_parallel(model, keep_torch_compile=False)
        adapters = module.active_adapters if isinstance(module, PeftModel) else ()
    digests = _digests(_named_weights(module, adapters))
    description = {
        "weights": sorted(digests),
        "config": _without(_config_dict(module), _INERT_CONFIG),
        "adapters": [_adapter_config(module, adapter) for adapter in adapters],
    }
    encoded = json.dumps(description, sort_keys=True, default=_jsonable).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _named_weights(module: nn.Module, adapters: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of the base and of the given adapters, in a fixed order."""
    tuner_layers = {
        name
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
    }
    root = "base_model.model." if isinstance(module, PeftModel) else ""
    names: dict[int, str] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in _all_tensors(module):
        canonical = _canonical_name(name, root, tuner_layers, adapters)
        if canonical is None:
            continue
        # A tied weight has several names; the first in the alphabet stands for it.
        names[id(tensor)] = min(names.get(id(tensor), canonical), canonical)
        tensors[id(tensor)] = tensor
    for key in sorted(names, key=names.__getitem__):
        yield names[key], tensors[key]


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    for prefix, layer in module.named_modules(remove_duplicate=False):
        # Non-persistent buffers (rotary tables, causal masks) follow from the configuration.
        transient = layer._non_persistent_buffers_set
        for name, buffer in layer.named_buffers(recurse=False):
            if name not in transient:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _canonical_name(
    name: str, root: str, tuner_layers: set[str], adapters: Sequence[str]
) -> str | None:
    """The name without PEFT and wrappers, or None for a weight of an adapter not asked for."""
    parts = name.split(".")
    in_base = name.startswith(root) and all(
        parts[depth] in _BASE_SIDE
        for depth in range(len(parts))
        if ".".join(parts[:depth]) in tuner_layers
    )
    plain = ".".join(part for part in name.removeprefix(root).split(".") if part not in _WRAPPERS)
    if in_base:
        return plain
    for adapter in adapters:
        if adapter in parts:
            return "adapter:" + ".".join(part for part in plain.split(".") if part != adapter)
    return None


def _digests(weights: Iterator[tuple[str, Tensor]]) -> list[tuple[str, str]]:
    """Digest every tensor; hashing, which releases the GIL, overlaps with gathering the next."""
    digests: list[tuple[str, str]] = []
    waiting: list[tuple[str, Future[str]]] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, tensor in weights:
            if tensor.is_meta:
                raise UserError(f"weight {name} has no data (meta device): load the weights first")
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            waiting.append((name, pool.submit(_tensor_digest, whole.detach())))
            if len(waiting) >= _IN_FLIGHT:
                first, future = waiting.pop(0)
                digests.append((first, future.result()))
        digests.extend((name, future.result()) for name, future in waiting)
    return digests


def _tensor_digest(tensor: Tensor) -> str:
    values = _narrowest(tensor.cpu().contiguous())
    digest = hashlib.blake2b(f"{values.dtype} {tuple(values.shape)}".encode(), digest_size=16)
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _narrowest(values: Tensor) -> Tensor:
    """The same numbers in bfloat16 if that is exact, else float32, else float64.

    This makes the hash independent of the dtype a checkpoint was read into, and halves the work for
    the many checkpoints whose float32 weights came from bfloat16.
    """
    if not values.is_floating_point() or values.dtype == torch.bfloat16:
        return values
    if values.dtype == torch.float64:
        single = values.float()
        if not torch.equal(single.double(), values):
            return values
        values = single
    values = values.float()
    bits = values.view(torch.int32)
    if bool((bits & 0xFFFF).any()):
        return values
    return values.bfloat16()


def _config_dict(module: nn.Module) -> dict[str, Any]:
    base = module.get_base_model() if isinstance(module, PeftModel) else module
    assert isinstance(base, PreTrainedModel)
    return base.config.to_dict()


def _without(config: dict[str, Any], inert: set[str]) -> dict[str, Any]:
    """Drop inert fields, at every depth, and dropout: it does nothing when scoring."""
    return {
        key: _without(value, inert) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in inert and "dropout" not in key and not key.endswith("pdrop")
    }


def _adapter_config(module: nn.Module, adapter: str) -> dict[str, Any]:
    assert isinstance(module, PeftModel)
    return _without(module.peft_config[adapter].to_dict(), _INERT_ADAPTER_CONFIG)


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
