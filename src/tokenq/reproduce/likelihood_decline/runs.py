"""The runs: a start that is tuned or not, DPO from it, and the adapter kept on the way.

Of a run are kept the adapters alone, in the cache; the weights are put together when they are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from tokenq.data.hashing import json_hash
from tokenq.reproduce.adapter_training import Recipe, adapter_trained
from tokenq.reproduce.beam_decoding.material import example_rows
from tokenq.reproduce.beam_decoding.policies import Workshop
from tokenq.reproduce.likelihood_decline.settings import NONE, DeclineSettings
from tokenq.reproduce.likelihood_decline.tasks import Pairs
from tokenq.reproduce.objective_arms import Arm
from tokenq.storage import atomic_file, cache_dir, locked

Adapter = dict[str, Tensor]
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_SCALE = 2.0  # lora_alpha / r of `adapter_trained`


@dataclass(frozen=True)
class Which:
    """A run: what it is trained on, from what start, and its seed (pairs, order, adapter)."""

    task: str
    arm: str
    seed: int

    @property
    def key(self) -> str:
        """As `--only` takes it."""
        return f"{self.task}/{self.arm.replace(' ', '-')}/{self.seed}"

    @property
    def name(self) -> str:
        """Of its files."""
        return self.key.replace("/", "-")


class Keeper(TrainerCallback):
    """Keeps copies of the adapter at some steps and at the end."""

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = set(steps)
        self.found: dict[int, Adapter] = {}

    def _keep(self, step: int, model: nn.Module) -> None:
        state = get_peft_model_state_dict(model)
        self.found[step] = {name: value.detach().clone() for name, value in state.items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step 0."""
        if 0 in self._steps:
            self._keep(0, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step that is asked for."""
        if state.global_step in self._steps:
            self._keep(state.global_step, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step."""
        self._keep(state.global_step, kwargs["model"])


class Runs:
    """All runs of a task: trained at first use, then read from the cache on disk."""

    def __init__(self, task: str, settings: DeclineSettings, workshop: Workshop) -> None:
        self._settings, self._workshop = settings, workshop
        self._folder = cache_dir("decline", json_hash(settings.training(task))[:16])

    def is_trained(self, which: Which) -> bool:
        """Whether it was trained before."""
        return self._path(which.name).is_file()

    def train(self, which: Which, pairs: Pairs) -> None:
        """Train the start and the run, unless that was done."""
        path = self._path(which.name)
        with locked(path):
            if not path.is_file():
                self._put([self.start(which, pairs)])
                rows = self._workshop.encoder.rows(pairs.trained)
                arm = Arm("dpo", "dpo", {"beta": self._settings.beta})
                kept = self._trained(
                    rows, arm, self._settings.dpo, which.seed, self._settings.checkpoints
                )
                _save(path, kept)

    def start(self, which: Which, pairs: Pairs) -> Adapter:
        """The adapter of the tuned start; empty where the start is the model as it is."""
        if which.arm == NONE:
            return {}
        path = self._path(f"{which.name}-start")
        with locked(path):
            if not path.is_file():
                self._put([])
                rows = example_rows(self._workshop.encoder, pairs.tuning(which.arm))
                kept = self._trained(rows, Arm("sft", "sft"), self._settings.sft, which.seed, ())
                _save(path, dict(enumerate(kept.values())))
        return _load(path)[0]

    def checkpoints(self, which: Which, pairs: Pairs) -> dict[int, Adapter]:
        """The adapters of a run by step, in order."""
        self.train(which, pairs)
        return dict(sorted(_load(self._path(which.name)).items()))

    def put(self, which: Which, pairs: Pairs, adapter: Adapter | None = None) -> None:
        """Make the workshop's model the start of a run, with an adapter on it if one is given."""
        self._put([self.start(which, pairs), adapter or {}])

    def _put(self, adapters: Sequence[Adapter]) -> None:
        self._workshop.set(self._workshop.untrained)
        for adapter in adapters:
            merge(self._workshop.model, adapter)

    def _trained(
        self, rows: datasets.Dataset, arm: Arm, recipe: Recipe, seed: int, steps: Sequence[int]
    ) -> dict[int, Adapter]:
        shop = self._workshop
        keeper = Keeper(steps)
        with adapter_trained(
            shop.model, shop.adapted, shop.tokenizer, rows, arm, recipe, seed, callbacks=[keeper]
        ):
            return keeper.found

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def merge(model: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Add an adapter's product of factors to the weights of the layers that it is for."""
    with torch.no_grad():
        for name, down in adapter.items():
            if name.endswith(_DOWN):
                layer = name.removesuffix(_DOWN).removeprefix("base_model.model.")
                up = adapter[name.removesuffix(_DOWN) + _UP]
                weight = model.get_submodule(layer).weight
                assert isinstance(weight, Tensor)
                weight += _SCALE * (up @ down)


def _save(path: Path, kept: Mapping[int, Adapter]) -> None:
    flat = {f"{step}/{name}": value for step, own in kept.items() for name, value in own.items()}
    with atomic_file(path) as temporary:
        save_file(flat, temporary)


def _load(path: Path) -> dict[int, Adapter]:
    found: dict[int, Adapter] = {}
    for key, value in load_file(path).items():
        step, name = key.split("/", 1)
        found.setdefault(int(step), {})[name] = value
    return found
