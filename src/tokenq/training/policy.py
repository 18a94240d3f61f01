"""The model that is trained: loaded by name, dropout off, with a fresh adapter where asked."""

import copy
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from tokenq.errors import UserError
from tokenq.models.checkpoint import inspect
from tokenq.models.loading import disable_dropout, load_policy
from tokenq.training.config import PreferenceConfig, fsdp_requested


def name_of(model: Any) -> str:
    """Where a model came from: the name itself, or what a loaded model remembers of it."""
    if isinstance(model, str | Path):
        return str(model)
    loaded: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return str(loaded.config._name_or_path or "")


def positions_of(model: Any, args: PreferenceConfig) -> int | None:
    """Most tokens that a model, loaded or named, can look at; None if it does not say."""
    options = cast(dict[str, Any], args.model_init_kwargs or {})
    if isinstance(model, str | Path):
        config = inspect(
            model,
            revision=options.get("revision"),
            trust_remote_code=options.get("trust_remote_code", False),
        ).config
    else:
        config = model.config
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    positions: int | None = options.get("max_position_embeddings", stated)
    return positions


def trainable_policy(
    model: PreTrainedModel | PeftModel | str | Path,
    args: PreferenceConfig,
    peft_config: PeftConfig | None,
) -> PreTrainedModel | PeftModel:
    """Load the policy if it is a name, and add the adapter."""
    if isinstance(model, str | Path):
        options = dict(cast(dict[str, Any], args.model_init_kwargs or {}))
        dtype = options.pop("dtype", "float32")
        model = load_policy(
            model,
            dtype=dtype,
            device="cpu" if fsdp_requested(args) else args.device,
            revision=options.pop("revision", None),
            trust_remote_code=options.pop("trust_remote_code", False),
            model_init_kwargs=options,
        )
    if args.disable_dropout:
        disable_dropout(model)
    if peft_config is None:
        return model
    if isinstance(model, PeftModel):
        raise UserError("peft_config: the model already has an adapter; merge it first or leave it")
    if peft_config.is_prompt_learning:
        raise UserError(f"peft_config: {peft_config.peft_type} adds virtual tokens; use LoRA")
    set_seed(args.seed)  # the adapter's first weights must not depend on what was drawn before
    # PEFT writes what it found out into the configuration; the caller's stays as it was.
    return get_peft_model(model, copy.deepcopy(peft_config))
