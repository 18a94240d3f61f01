"""A reference that follows the policy: TR-DPO's soft and hard updates (arXiv 2404.09656)."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tokenq.errors import UserError
from tokenq.models.reference import ReferenceIdentity
from tokenq.training.config import PreferenceConfig
from tokenq.training.reference import LiveReference

WEIGHTS_FILE = "reference.safetensors"


class MovingReference(LiveReference):
    """A live model whose weights go a part of the way to the policy's every few steps.

    Its identity is that of the weights it starts from; where it has got to is saved with every
    checkpoint as `reference.safetensors`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        identity: ReferenceIdentity,
        args: PreferenceConfig,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__(model, identity, args.token_budget, autocast)
        self._weights = {name: weight.data for name, weight in model.named_parameters()}

    def move(self, policy: nn.Module, alpha: float) -> None:
        """ref <- (1 - alpha) * ref + alpha * policy, weight by weight; 1 copies the policy.

        policy: unwrapped; every process must call this where its weights are sharded
        """
        for name, weight in policy.named_parameters():
            ours = self._weights[name]
            ours.mul_(1.0 - alpha).add_(_whole(weight).to(ours), alpha=alpha)

    def save(self, folder: Path) -> None:
        """Write the weights into `folder`, one that gets its final name when all of it is there."""
        weights = {name: values.contiguous() for name, values in self._weights.items()}
        save_file(weights, str(folder / WEIGHTS_FILE))

    def restore(self, checkpoint: Path) -> None:
        """Read back what :meth:`save` wrote; raises ``UserError`` if it is not there."""
        path = checkpoint / WEIGHTS_FILE
        if not path.is_file():
            raise UserError(
                f"resume_from_checkpoint: {checkpoint} has no {WEIGHTS_FILE}, so its run had no "
                "moving reference; set sync_ref_model to false"
            )
        saved = load_file(str(path))
        for name, values in self._weights.items():
            values.copy_(saved[name])


class SyncReference(TrainerCallback):
    """Moves the reference after every `ref_model_sync_steps` optimiser steps, as TRL does."""

    def __init__(self, reference: MovingReference) -> None:
        self._reference = reference

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """See :meth:`MovingReference.move`; comes before the step's checkpoint is written."""
        assert isinstance(args, PreferenceConfig)
        assert model is not None
        if state.global_step % args.ref_model_sync_steps == 0:
            self._reference.move(model, args.ref_model_mixup_alpha)


def check_same_architecture(policy: nn.Module, reference: nn.Module) -> None:
    """Raise ``UserError`` unless every weight of the policy has its like in the reference."""
    ours, theirs = (
        {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        for model in (policy, reference)
    )
    different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        raise UserError(
            f"sync_ref_model: weight {name} has shape {ours.get(name, 'absent')} in the policy and "
            f"{theirs.get(name, 'absent')} in the reference; give a reference of the same "
            "architecture"
        )


def _whole(weight: Tensor) -> Tensor:
    values = weight.detach()
    return values.full_tensor() if isinstance(values, DTensor) else values
