"""Load a reward model of whole responses: a sequence classifier, whole or as a PEFT adapter."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from tokenq.errors import UserError
from tokenq.models.bundled import resolve
from tokenq.models.loading import resolve_device, resolve_dtype

ACCEPTED = (
    "a sequence classification model: a Hugging Face hub name, a folder, or a PEFT adapter "
    "(task_type SEQ_CLS)"
)
_ADAPTER = "adapter_config.json"


def load_outcome_model(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a reward model in eval mode, frozen, with its tokenizer.

    device, dtype: as in :func:`load_policy`

    Raises UserError, before weights are read where the files tell, for a checkpoint without a
    trained classification head: `transformers` would put a random one on any language model.
    """
    place = resolve_device(device)
    options: dict[str, Any] = {
        "dtype": resolve_dtype(dtype, place),
        "trust_remote_code": trust_remote_code,
    }
    shown = str(name)
    adapter = check_outcome_model(name, revision=revision, trust_remote_code=trust_remote_code)
    location = _location(shown)
    model: PreTrainedModel | PeftModel
    try:
        if adapter is not None:
            model, tokenizer = _load_adapter(shown, location, revision, adapter, options)
        else:
            model, missing = _read(location, revision, options)
            _refuse_missing(shown, missing)
            tokenizer = _tokenizer(location, revision, trust_remote_code)
    except OSError as error:
        raise _unreadable(shown, error) from error
    torch.nn.Module.to(model, place)
    return model.eval().requires_grad_(False), tokenizer


def check_outcome_model(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PeftConfig | None:
    """Raise UserError where small files tell already that :func:`load_outcome_model` would.

    Return the adapter's configuration, or None for a whole model.
    """
    shown, location = str(name), _location(str(name))
    try:
        if _file(location, _ADAPTER, revision) is not None:
            return _check_adapter(shown, PeftConfig.from_pretrained(location, revision=revision))
        config = AutoConfig.from_pretrained(
            location, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unreadable(shown, error) from error
    declared = config.architectures or []
    if any("For" in each and "ForSequenceClassification" not in each for each in declared):
        raise UserError(
            f"reward model '{shown}' is a {declared[0]}: its classification head would be random; "
            f"accepted: {ACCEPTED}"
        )
    return None


def _location(name: str) -> str:
    """The folder of a name, or the name itself where it is the hub's."""
    folder = Path(resolve(name)).expanduser()
    return str(folder) if folder.exists() else resolve(name)


def _unreadable(shown: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"reward model '{shown}': {reason}; accepted: {ACCEPTED}")


def _check_adapter(shown: str, adapter: PeftConfig) -> PeftConfig:
    if adapter.task_type != "SEQ_CLS":
        raise UserError(
            f"adapter '{shown}' was trained for {adapter.task_type}; accepted: SEQ_CLS, a reward "
            "model"
        )
    if not adapter.base_model_name_or_path:
        raise UserError(f"adapter '{shown}' does not name its base (base_model_name_or_path)")
    return adapter


def _load_adapter(
    shown: str, location: str, revision: str | None, adapter: PeftConfig, options: dict[str, Any]
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    heads = _carried(location, revision)
    labels = {"num_labels": min(rows for rows in heads.values())} if heads else {}
    base = resolve(str(adapter.base_model_name_or_path))
    model, missing = _read(base, adapter.revision, {**options, **labels})
    _refuse_missing(shown, [key for key in missing if not any(key.endswith(h) for h in heads)])
    owner = location if _file(location, "tokenizer_config.json", revision) else base
    tokenizer = _tokenizer(
        owner, revision if owner == location else None, options["trust_remote_code"]
    )
    return PeftModel.from_pretrained(model, location, revision=revision), tokenizer


def _read(
    location: str, revision: str | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """The model and the names of its weights that the files do not hold."""
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        location, revision=revision, output_loading_info=True, **options
    )
    model, info = loaded
    return model, sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])


def _refuse_missing(shown: str, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"reward model '{shown}' lacks {len(missing)} weights, first '{missing[0]}': they "
            f"would be random; accepted: {ACCEPTED}"
        )


def _carried(location: str, revision: str | None) -> dict[str, int]:
    """Heads that an adapter's file brings, such as `score.weight`, with their number of rows."""
    path = _file(location, "adapter_model.safetensors", revision)
    if path is None:
        return {}
    heads = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            *_, module, kind = name.split(".")
            if module in ("score", "classifier", "out_proj") and kind in ("weight", "bias"):
                heads[f"{module}.{kind}"] = int(file.get_slice(name).get_shape()[0])
    return heads


def _tokenizer(location: str, revision: str | None, trust: bool) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        location, revision=revision, trust_remote_code=trust
    )
    return tokenizer


def _file(location: str, name: str, revision: str | None) -> str | None:
    return cached_file(
        location, name, revision=revision, _raise_exceptions_for_missing_entries=False
    )
