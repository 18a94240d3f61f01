"""The reference of a pair: the base under a PEFT adapter, and how to know a reference again."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.storage import write_text

# TRL's name for a frozen copy of the adapter that training started from.
REFERENCE_ADAPTER = "ref"

# Initialisations of LoRA that leave the base weights alone; the others (PiSSA, OLoRA, CorDA, LoftQ,
# LoRA-GA, MiCA...) may move a part of the base into the adapter, so that the base is no longer
# below it.
_CLEAN_INITS = {"gaussian", "eva", "orthogonal"}

_PROBE_LENGTH = 24


@contextmanager
def scoring(reference: "nn.Module | AdapterOff") -> Iterator[nn.Module]:
    """The reference ready to score: no dropout, gradients or adapter; afterwards all as before."""
    if isinstance(reference, AdapterOff):
        with torch.no_grad(), reference.active() as model:
            yield model
        return
    in_training = [module for module in reference.modules() if module.training]
    reference.eval()
    try:
        with torch.no_grad():
            yield reference
    finally:
        for module in in_training:
            module.training = True


def running_in(autocast: torch.dtype | None, model: nn.Module) -> AbstractContextManager[Any]:
    """The precision of a forward of `model`: mixed, or that of its weights for None."""
    if autocast is None:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=autocast)


class AdapterOff:
    """The reference that a PEFT policy carries within itself: its base, without a second copy.

    If the policy has an adapter named ``"ref"`` besides the active one, the reference is the base
    with that adapter, which is how TRL keeps the start of training that continues an adapter.

    Raises ``UserError`` for adapters that cannot be taken off exactly (see
    :func:`adapter_obstacle`).
    """

    def __init__(self, peft_model: PeftModel) -> None:
        active = list(peft_model.active_adapters)
        has_reference = REFERENCE_ADAPTER in peft_model.peft_config
        self.peft_model = peft_model
        self.adapter = (
            REFERENCE_ADAPTER if has_reference and active != [REFERENCE_ADAPTER] else None
        )
        for name, config in peft_model.peft_config.items():
            obstacle = adapter_obstacle(config)
            if obstacle is not None:
                raise UserError(
                    f"adapter '{name}' cannot be switched off: {obstacle}; "
                    "load its base as a separate reference"
                )
        if not isinstance(peft_model.base_model, BaseTuner):
            raise UserError(
                f"adapters of type {type(peft_model.base_model).__name__} cannot be switched off; "
                "load the base as a separate reference"
            )
        self._refuse_merged()

    @property
    def _base(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.peft_model.get_base_model())

    @property
    def config(self) -> Any:
        """Configuration of the base model."""
        return self._base.config

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.peft_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base's embeddings (adapters may be kept in another one)."""
        return cast(torch.dtype, self._base.get_input_embeddings().weight.dtype)

    @property
    def name(self) -> str:
        """Where the base came from, and the adapter on top of it if there is one."""
        config = next(iter(self.peft_model.peft_config.values()))
        base = config.base_model_name_or_path or self.config._name_or_path
        return base if self.adapter is None else f"{base} + adapter '{self.adapter}'"

    @contextmanager
    def active(self) -> Iterator[PeftModel]:
        """The model as reference, in eval mode; on leaving, the policy is as it was.

        Training flags, active adapters and ``requires_grad`` are restored: PEFT's own switch turns
        gradients on for adapters that were frozen.
        """
        self._refuse_merged()
        model = self.peft_model
        in_training = [module for module in model.modules() if module.training]
        trainable = [(weight, weight.requires_grad) for weight in model.parameters()]
        model.eval()
        try:
            with self._off() if self.adapter is None else self._switched():
                yield model
        finally:
            for module in in_training:
                module.training = True
            for weight, flag in trainable:
                weight.requires_grad_(flag)

    @contextmanager
    def _off(self) -> Iterator[None]:
        # PEFT's disable_adapter() does the same after an inventory of all layers, which takes as
        # long again at every step.
        tuner = cast(BaseTuner, self.peft_model.base_model)
        if all(layer.disable_adapters for layer in self._layers()):
            yield
            return
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()

    @contextmanager
    def _switched(self) -> Iterator[None]:
        model = self.peft_model
        tuner = cast(BaseTuner, model.base_model)
        name, layers = model.active_adapter, list(tuner.active_adapters)
        model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            model.active_adapter = name
            tuner.set_adapter(layers)

    def _refuse_merged(self) -> None:
        # Switching off would subtract the merged update, which rounding does not undo exactly.
        if any(layer.merged for layer in self._layers()):
            raise UserError(
                "the adapter is merged into the base: call unmerge_adapter(), or load the base "
                "as a separate reference"
            )

    def _layers(self) -> list[BaseTunerLayer]:
        return [
            module for module in self.peft_model.modules() if isinstance(module, BaseTunerLayer)
        ]

    def __repr__(self) -> str:
        return f"AdapterOff({self.name})"


def adapter_obstacle(config: PeftConfig) -> str | None:
    """Why the base under this adapter is not the original base when the adapter is off, or None."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or config.is_adaption_prompt:
        return f"{kind} learns virtual tokens, which are no tokens of a response"
    bias = getattr(config, "bias", "none")
    if bias != "none":
        return f"it trains biases of the base in place (bias={bias!r})"
    if getattr(config, "layer_replication", None):
        return "it replicates layers of the base (layer_replication)"
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _CLEAN_INITS:
        return f"init_lora_weights={init!r} changes the base weights"
    return None


@dataclass(frozen=True)
class ReferenceIdentity:
    """Which reference a run used; saved with its checkpoints and checked when it resumes.

    ``probe``: log-probabilities (nats) of a fixed token sequence. It catches what a weight hash
    cannot: another implementation of the same architecture.
    """

    name: str | None
    revision: str | None
    weight_hash: str
    dtype: str
    probe: tuple[float, ...]

    @classmethod
    def of(
        cls,
        reference: "PreTrainedModel | PeftModel | AdapterOff",
        *,
        name: str | None = None,
        revision: str | None = None,
    ) -> "ReferenceIdentity":
        """Hash and probe ``reference`` (about a second for 135M parameters on two cores)."""
        config: Any = reference.config
        if name is None:
            name = reference.name if isinstance(reference, AdapterOff) else config._name_or_path
        return cls(
            name=name or None,
            revision=revision or getattr(config, "_commit_hash", None),
            weight_hash=weight_hash(reference),
            dtype=str(reference.dtype).removeprefix("torch."),
            probe=_probe(reference),
        )

    def save(self, path: Path) -> None:
        """Write the identity as JSON, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "ReferenceIdentity":
        """Raises ``UserError`` if the file is not one that :meth:`save` wrote."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**fields, "probe": tuple(fields["probe"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a saved reference identity ({error})") from error

    def verify(self, current: "ReferenceIdentity") -> None:
        """Raise ``UserError`` if ``current`` is not the reference that this identity describes."""
        if current.weight_hash != self.weight_hash:
            raise UserError(
                f"the reference has changed: this run started with {self._described()}, now it is "
                f"{current._described()}; give the original reference, or start a new run"
            )
        differences = [abs(then - now) for then, now in zip(self.probe, current.probe, strict=True)]
        difference = sum(differences) / len(differences)
        same_precision = {self.dtype, current.dtype} == {"float32"}
        if not difference <= (1e-3 if same_precision else 0.1):
            raise UserError(
                f"the reference has the same weights as {self._described()} but its log-probs "
                "differ "
                f"by {difference:.3g} nats a token: another model code or library version"
            )

    def _described(self) -> str:
        revision = f" at revision {self.revision}" if self.revision else ""
        return f"{self.name or 'an unnamed model'}{revision} (weights {self.weight_hash[:12]})"


def _probe(reference: "PreTrainedModel | PeftModel | AdapterOff") -> tuple[float, ...]:
    from tokenq.models.logps import token_logps

    config: Any = reference.config
    vocabulary = config.get_text_config().vocab_size
    ids = [(7919 * position + 13) % vocabulary for position in range(_PROBE_LENGTH + 1)]
    with scoring(reference) as model:
        (logps,) = token_logps(model, [ids[:1]], [ids[1:]])
    return tuple(round(value, 6) for value in logps.tolist())
