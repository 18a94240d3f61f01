"""What a model's name stands for, found out before any weight is read.

Here are the refusals: nothing there, no causal language model, an adapter without its base.
Loading the weights is in `loading.py`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from peft import PeftConfig
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import find_adapter_config_file
from transformers.utils.hub import cached_file

from tokenq.errors import UserError
from tokenq.models.bundled import resolve

ACCEPTED = "a Hugging Face hub name, a model folder, a PEFT adapter folder, or bundled:NAME"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_EMBEDDINGS = {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A named checkpoint whose configuration has been read and accepted.

    ``location``: folder or hub name that the libraries understand. ``config``: of the model
    itself, or of the base under an adapter. ``base`` and ``adapter`` are set for PEFT adapters
    only.
    """

    name: str
    location: str
    revision: str | None
    config: PreTrainedConfig
    base: "Checkpoint | None" = None
    adapter: PeftConfig | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it lies in a folder here rather than on the hub."""
        return Path(self.location).is_dir()

    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies with the checkpoint (for hub names: whether one can be had)."""
        if self.is_folder:
            return any((Path(self.location) / name).is_file() for name in _TOKENIZER_FILES)
        return any(
            cached_file(
                self.location,
                name,
                revision=self.revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in _TOKENIZER_FILES
        )

    def carried_embedding_rows(self) -> int | None:
        """Rows of the embeddings that the adapter's file puts over the base's, or None.

        PEFT stores embeddings whole when they were resized or adapted. Modules trained in full
        (``modules_to_save``) are kept beside the base and do not count.
        """
        path = _adapter_file(self)
        if path is None or not path.endswith(".safetensors"):
            return None
        beside = set(getattr(self.adapter, "modules_to_save", None) or ())
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                *modules, kind = [part for part in name.split(".") if part != "base_layer"]
                if kind == "weight" and modules[-1] in _EMBEDDINGS and not beside & set(modules):
                    return int(file.get_slice(name).get_shape()[0])
        return None


def inspect(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Read what ``name`` stands for.

    Raises ``UserError`` if no causal language model can come of it.
    """
    shown = str(name)
    location = str(Path(resolve(shown)).expanduser()) if _is_path(shown) else resolve(shown)
    if Path(location).exists():
        _check_folder(Path(location), shown)
    elif _is_path(shown) or not _HUB_NAME.fullmatch(location):
        raise UserError(f"model '{shown}' does not exist; accepted: {ACCEPTED}")
    if _adapter_config(location, shown, revision):
        return _inspect_adapter(shown, location, revision, trust_remote_code)
    config = _read_config(location, shown, revision, trust_remote_code)
    _check_architecture(config, shown)
    return Checkpoint(shown, location, revision, config)


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name in {".", ".."} or Path(name).exists()


def _check_folder(folder: Path, shown: str) -> None:
    if not folder.is_dir():
        raise UserError(f"model '{shown}' is a file; accepted: {ACCEPTED}")
    files = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in files:
        if not files & set(_ADAPTER_WEIGHTS):
            raise UserError(f"adapter folder '{shown}' has no {_ADAPTER_WEIGHTS[0]}")
        return
    if "config.json" not in files:
        checkpoints = sorted(
            (name for name in files if re.fullmatch(r"checkpoint-\d+", name)),
            key=lambda name: int(name.removeprefix("checkpoint-")),
        )
        hint = (
            f"did you mean '{folder / checkpoints[-1]}'?"
            if checkpoints
            else f"accepted: {ACCEPTED}"
        )
        raise UserError(
            f"folder '{shown}' holds no model: no config.json or adapter_config.json; {hint}"
        )
    if not files & set(_WEIGHTS):
        raise UserError(f"model folder '{shown}' has no weights; accepted: {', '.join(_WEIGHTS)}")


def _adapter_config(location: str, shown: str, revision: str | None) -> str | None:
    try:
        return find_adapter_config_file(location, revision=revision)
    except (OSError, HFValidationError) as error:
        raise _unreachable(shown, error) from error


def _read_config(
    location: str, shown: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            location, revision=revision, trust_remote_code=trust_remote_code
        )
    except OSError as error:
        raise _unreachable(shown, error) from error
    except (ValueError, KeyError) as error:
        # An unknown model type, or one whose code would have to come with the weights.
        raise UserError(f"model '{shown}': {_first_line(error)}") from error


def _check_architecture(config: PreTrainedConfig, shown: str) -> None:
    causal = {
        name
        for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for name in ([names] if isinstance(names, str) else names)
    }
    declared = config.architectures or []
    headed = [name for name in declared if "For" in name and name not in causal]
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if headed and not remote:
        raise UserError(
            f"model '{shown}' is a {headed[0]}, not a causal language model; its head would be "
            "random. Accepted: a checkpoint with a language-model head"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise UserError(
            f"model '{shown}' has type '{config.model_type}', of which there is no causal "
            "language model"
        )


def _inspect_adapter(
    shown: str, location: str, revision: str | None, trust_remote_code: bool
) -> Checkpoint:
    try:
        adapter = PeftConfig.from_pretrained(location, revision=revision)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"adapter '{shown}': {_first_line(error)}") from error
    if adapter.task_type not in (None, "CAUSAL_LM"):
        raise UserError(
            f"adapter '{shown}' was trained for {adapter.task_type}; accepted: CAUSAL_LM"
        )
    if adapter.is_prompt_learning or adapter.is_adaption_prompt:
        raise UserError(
            f"adapter '{shown}' is of type {adapter.peft_type.value}, which puts virtual tokens "
            "before the "
            "prompt; accepted: adapters inside the layers (LoRA, DoRA, IA3, ...)"
        )
    base_name = adapter.base_model_name_or_path
    if not base_name:
        raise UserError(f"adapter '{shown}' does not name its base (base_model_name_or_path)")
    try:
        base = inspect(base_name, revision=adapter.revision, trust_remote_code=trust_remote_code)
    except UserError as error:
        raise UserError(f"adapter '{shown}': its base: {error}") from error
    if base.adapter is not None:
        raise UserError(
            f"adapter '{shown}': its base '{base_name}' is an adapter; merge that one first"
        )
    return Checkpoint(shown, location, revision, base.config, base, adapter)


def _adapter_file(checkpoint: Checkpoint) -> str | None:
    for name in _ADAPTER_WEIGHTS:
        found = cached_file(
            checkpoint.location,
            name,
            revision=checkpoint.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        if found is not None:
            return str(found)
    return None


def _unreachable(shown: str, error: Exception) -> UserError:
    return UserError(
        f"model '{shown}' is no folder here and cannot be had from the hub ({_first_line(error)}); "
        f"accepted: {ACCEPTED}"
    )


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text.split("\n", 1)[0].split())[:300]
