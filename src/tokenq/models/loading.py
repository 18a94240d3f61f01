"""Load a policy, a reference or a tokenizer by name, refusing what would not be the model meant."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tokenq.errors import UserError
from tokenq.models.checkpoint import Checkpoint, inspect
from tokenq.models.reference import REFERENCE_ADAPTER
from tokenq.models.vocabulary import embedding_rows

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
    "fp64": torch.float64,
}


def load_policy(
    name: str | Path | Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    model_init_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedModel | PeftModel:
    """Load a causal language model: hub name, folder, ``bundled:NAME``, or a PEFT adapter.

    dtype:             "auto" is float32 on a CPU, bfloat16 on CUDA
    device:            "auto" is this process's CUDA device if there is one, else the CPU
    model_init_kwargs: handed to ``from_pretrained``, such as ``attn_implementation``

    The model is in eval mode; its adapters (all weights of a full model) are
    trainable. Raises ``UserError``, before reading weights where the files tell, for anything that
    is not a whole causal language model: a missing head would be random.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    checkpoint = name
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = inspect(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
    options = {"dtype": precision, "trust_remote_code": trust_remote_code}
    options |= dict(model_init_kwargs or {})
    if checkpoint.base is None:
        model: PreTrainedModel | PeftModel = _load_whole(checkpoint, options)
    else:
        model = _load_adapter(checkpoint, checkpoint.base, options)
    if "device_map" not in options:
        torch.nn.Module.to(model, place)
    return model.eval()


def load_tokenizer(
    name: str | Path | Checkpoint,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; an adapter without its own takes its base's."""
    checkpoint = name
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = inspect(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
    owner = checkpoint if checkpoint.has_tokenizer() else checkpoint.base
    if owner is None or not owner.has_tokenizer():
        raise UserError(
            f"model '{checkpoint.name}' has no tokenizer; pass tokenizer=, or save one there"
        )
    return AutoTokenizer.from_pretrained(
        owner.location, revision=owner.revision, trust_remote_code=trust_remote_code
    )


def resolve_device(device: str | torch.device) -> torch.device:
    """The device meant; "auto" is this process's CUDA device if there is one, else the CPU."""
    if device != "auto":
        try:
            named = torch.device(device)
        except RuntimeError as error:
            raise UserError(
                f"device '{device}' is unknown; accepted: auto, cpu, cuda, cuda:0"
            ) from error
        if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UserError(
                f"device '{device}' is not there: torch sees {count} CUDA devices; accepted: auto, "
                "cpu" + (f", cuda:0 to cuda:{count - 1}" if count else "")
            )
        return named
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype meant; "auto" is float32 on a CPU, bfloat16 on CUDA."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise UserError(f"dtype '{dtype}' is unknown; accepted: auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to zero: in preference training policy and reference must agree."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Attention keeps its rate as a plain number on the module.
        for attribute, value in vars(module).items():
            if "dropout" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)


def _load_whole(checkpoint: Checkpoint, options: Mapping[str, Any]) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.location, revision=checkpoint.revision, output_loading_info=True, **options
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model '{checkpoint.name}': its pickled weights hold more than tensors and are not "
            "opened; convert "
            "them to safetensors where you trust them (save_pretrained writes safetensors)"
        ) from error
    except OSError as error:
        raise UserError(f"model '{checkpoint.name}': {' '.join(str(error).split())}") from error
    model, info = loaded
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise UserError(
            f"model '{checkpoint.name}' lacks {len(absent)} weights of {type(model).__name__}, "
            "first "
            f"'{absent[0]}': they would be random. Accepted: a checkpoint with a language-model "
            "head"
        )
    return model


def _load_adapter(
    checkpoint: Checkpoint, base: Checkpoint, options: Mapping[str, Any]
) -> PeftModel:
    model = _load_whole(base, options)
    rows = checkpoint.carried_embedding_rows()
    if rows is not None and rows != embedding_rows(model):
        model.resize_token_embeddings(rows, mean_resizing=False)
    policy = PeftModel.from_pretrained(
        model, checkpoint.location, revision=checkpoint.revision, is_trainable=True
    )
    frozen = Path(checkpoint.location) / REFERENCE_ADAPTER
    if (frozen / "adapter_config.json").is_file():
        _check_adapter(frozen)
        policy.load_adapter(str(frozen), REFERENCE_ADAPTER, is_trainable=False)
    return policy


def _check_adapter(folder: Path) -> None:
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise UserError(
            f"reference adapter '{folder}' learns virtual tokens; accepted: LoRA and kin"
        )
