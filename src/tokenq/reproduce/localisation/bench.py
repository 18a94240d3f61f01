"""The model, loaded once; every run adds a fresh adapter to its last layers and takes it off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tokenq.models import load_policy, load_tokenizer
from tokenq.models.forward import enable_packed
from tokenq.reproduce.adapter_training import Recipe, adapter_trained, coin
from tokenq.reproduce.frozen_trunk import freeze_trunk
from tokenq.reproduce.localisation.arms import CreditArm
from tokenq.reproduce.localisation.material import Encoder, TrainingPair
from tokenq.reproduce.objective_arms import Arm

SFT = Arm("sft", "sft")


class Bench:
    """A model whose lower layers are frozen and remembered, see `freeze_trunk`."""

    def __init__(self, model: str, layers: int) -> None:
        self.name, self.layers = model, layers
        self.tokenizer = load_tokenizer(model)
        self.encoder = Encoder(self.tokenizer)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, str]:
        model = load_policy(self.name, dtype="float32", device="cpu")
        assert isinstance(model, PreTrainedModel)
        adapted = freeze_trunk(model, self.layers)
        enable_packed(model)
        return model, adapted

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is now: the start of every run, or that start after `tuned`."""
        return self._loaded[0]

    @property
    def adapted(self) -> str:
        """Regular expression of the linear layers that an adapter changes."""
        return self._loaded[1]

    @contextmanager
    def trained(
        self, arm: Arm, pairs: Sequence[TrainingPair], recipe: Recipe, seed: int
    ) -> Iterator[PeftModel]:
        """Train an adapter and hand out the policy; labels are flipped as the arm says."""
        flips = coin(seed, len(pairs), arm.flipped)
        labelled = [
            pair.turned() if flip else pair for pair, flip in zip(pairs, flips, strict=True)
        ]
        rows = self.encoder.rows(labelled)
        with adapter_trained(
            self.model, self.adapted, self.tokenizer, rows, arm, recipe, seed
        ) as policy:
            yield policy

    @contextmanager
    def tuned(self, pairs: Sequence[TrainingPair], recipe: Recipe, seed: int) -> Iterator[None]:
        """Tune the model on the chosen responses; inside, that is the model."""
        start = [weight.detach().clone() for weight in self._upper()]
        with self.trained(SFT, pairs, recipe, seed) as policy:
            policy.merge_adapter()
            tuned = [weight.detach().clone() for weight in self._upper()]
            policy.unmerge_adapter()
        self._set(tuned)
        try:
            yield
        finally:
            self._set(start)

    def _upper(self) -> list[Tensor]:
        """The weights above the trunk, without those of an adapter."""
        inner: Any = self.model.base_model
        return [
            weight
            for layer in inner.layers[1:]
            for name, weight in layer.named_parameters()
            if "lora_" not in name
        ]

    def _set(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._upper(), weights, strict=True):
                weight.copy_(value)


def first(arm: CreditArm, pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """The pairs that an arm sees: at least one."""
    return list(pairs[: max(1, round(arm.share * len(pairs)))])
