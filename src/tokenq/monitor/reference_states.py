"""What is kept of a reference: its states at the probe's positions and its head, not its body.

A reading then takes one forward of the policy and two passes over the vocabulary.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tokenq.errors import UserError
from tokenq.models.forward import causal_lm, embedding_weight, scoring_head
from tokenq.models.head import Head, Predictions
from tokenq.models.reference import AdapterOff, scoring
from tokenq.storage import atomic_file

FILE = "reference.safetensors"


@dataclass(frozen=True, eq=False)
class ReferenceStates:
    """The reference of a run, as much as is left of it.

    hidden: [P, H] on the CPU: the states from which the probe's tokens are predicted
    head:   its head, which training does not change
    model:  the reference itself where it stays as it is, to read further texts; else None
    """

    hidden: Tensor
    head: Head
    model: nn.Module | AdapterOff | None

    @classmethod
    def of(cls, reference: nn.Module | AdapterOff, hidden: Tensor) -> "ReferenceStates":
        """Keep the hidden states; of a model that can be trained also a copy of its head."""
        head = scoring_head(reference)
        if _stays(reference):
            return cls(hidden.cpu(), head, reference)
        module = copy.deepcopy(_module(reference)).requires_grad_(False).eval()
        return cls(hidden.cpu(), replace(head, module=module), None)

    @property
    def table(self) -> Tensor:
        """[V, H] its output embeddings, on the head's device."""
        weight: Any
        if self.model is None:
            weight = self.head.module.weight
        else:
            # A head that an adapter trains as a whole is the reference's only while it is off.
            with scoring(self.model) as model:
                weight = Head.of(causal_lm(model)).module.weight
        table: Tensor = weight.detach()
        return table

    def predictions(self, positions: Tensor | None = None) -> Predictions:
        """What the reference predicts, at some of the probe's positions or at all."""
        return self.at(self.hidden if positions is None else self.hidden[positions])

    def at(self, hidden: Tensor) -> Predictions:
        """What the reference predicts at its states [n, H] of any texts."""
        return Predictions(self.head, hidden.to(self.table.device))

    def save(self, folder: Path) -> None:
        """Write the states, and the head where it cannot be had from the policy again."""
        tensors = {"hidden": self.hidden.contiguous()}
        if not isinstance(self.model, AdapterOff):
            weight, bias = _linear(self.head.module, self.hidden.shape[-1])
            tensors["head.weight"] = weight
            if bias is not None:
                tensors["head.bias"] = bias
        with atomic_file(folder / FILE) as temporary:
            safetensors.torch.save_file(tensors, temporary)

    @classmethod
    def load(
        cls, folder: Path, policy: nn.Module, reference: nn.Module | AdapterOff | None
    ) -> "ReferenceStates":
        """Read what :meth:`save` wrote.

        policy:    the run's; its base is the reference if the file has no head
        reference: the reference itself, if it is still there

        Raises UserError for a file that is missing or is none of these.
        """
        try:
            tensors = safetensors.torch.load_file(folder / FILE)
            hidden = tensors["hidden"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{folder / FILE}: not the states of a reference ({error})") from error
        if "head.weight" not in tensors:
            off = reference if isinstance(reference, AdapterOff) else _adapter_off(policy, folder)
            return cls(hidden, scoring_head(off), off)
        device = embedding_weight(causal_lm(policy)).device
        weight, bias = tensors["head.weight"].to(device), tensors.get("head.bias")
        module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        module.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            module.bias = nn.Parameter(bias.to(device), requires_grad=False)
        head = replace(Head.of(causal_lm(policy)), module=module)
        kept = reference if reference is not None and _stays(reference) else None
        return cls(hidden, head, kept)


def _stays(reference: nn.Module | AdapterOff) -> bool:
    """Whether training leaves the reference as it is."""
    if isinstance(reference, AdapterOff):
        return True
    return not any(weight.requires_grad for weight in reference.parameters())


def _module(reference: nn.Module | AdapterOff) -> nn.Module:
    with scoring(reference) as model:
        return Head.of(causal_lm(model)).module


def _linear(module: nn.Module, width: int) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] of a head; of one that is no plain layer what it computes."""
    if type(module) is nn.Linear:
        bias = None if module.bias is None else module.bias.detach().cpu().contiguous()
        return module.weight.detach().cpu().contiguous(), bias
    weight: Any = next(module.parameters())
    basis = torch.eye(width, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        origin = module(torch.zeros_like(basis[:1]))
        images = module(basis) - origin
    return images.T.cpu().contiguous(), origin[0].cpu().contiguous()


def _adapter_off(policy: nn.Module, folder: Path) -> AdapterOff:
    inner = getattr(policy, "module", policy)
    if not hasattr(inner, "peft_config"):
        raise UserError(
            f"{folder / FILE}: the reference was the base under the policy's adapter, and the "
            "policy has no adapter; accepted: the policy that the run was started with"
        )
    return AdapterOff(inner)  # type: ignore[arg-type]
