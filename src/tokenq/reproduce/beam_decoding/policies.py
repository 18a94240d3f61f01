"""The policies: a tuned reference, DPO from it at several betas, and the control tuned further.

Only the last layers are trained, all below are shared and frozen; what is kept of a policy are the
weights of these layers, with the adapter merged in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenq.data.hashing import json_hash
from tokenq.models.logps import token_logps
from tokenq.reproduce.adapter_training import Recipe, adapter_trained
from tokenq.reproduce.beam_decoding.material import Example, example_rows
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.material import TrainingPair
from tokenq.reproduce.objective_arms import Arm
from tokenq.storage import atomic_file, cache_dir

Weights = dict[str, Tensor]
"""Of the trained layers, by their number in order of `parameters()`."""

REFERENCE = "reference"
"""The model tuned on people's answers: start and reference of all others."""
TUNED = "sft"
"""The control: the reference tuned on the chosen answers, in as many steps as DPO takes."""
DPO = "dpo"


@dataclass(frozen=True)
class Policy:
    """name: one of the above; beta: of DPO; seed: of its pairs, order and adapter."""

    name: str
    beta: float | None = None
    seed: int = 0

    @property
    def arm(self) -> str:
        """What all seeds have in common, as tables call it."""
        return self.name if self.beta is None else f"{self.name} {self.beta:g}"

    @property
    def key(self) -> str:
        """The name of its files."""
        return f"{self.arm.replace(' ', '-')}-{self.seed}"


class Workshop(Bench):
    """The bench of the other experiments, whose trained layers can be taken and put back."""

    @cached_property
    def untrained(self) -> Weights:
        """The last layers of the model as it is loaded."""
        return self.weights()

    def weights(self) -> Weights:
        """A copy of the last layers' weights as they are now, merged adapters included."""
        return {str(n): weight.detach().clone() for n, weight in enumerate(self._upper())}

    def set(self, weights: Weights) -> None:
        """Put these weights into the last layers."""
        self._set([weights[str(number)] for number in range(len(weights))])

    def weights_after(
        self, start: Weights, arm: Arm, rows: datasets.Dataset, recipe: Recipe, seed: int
    ) -> Weights:
        """The weights after training an adapter from `start` and merging it in."""
        assert self.untrained
        self.set(start)
        with adapter_trained(
            self.model, self.adapted, self.tokenizer, rows, arm, recipe, seed
        ) as policy:
            policy.merge_adapter()
            found = self.weights()
            policy.unmerge_adapter()
        return found


class Policies:
    """All policies of a task: trained at first use, then read from the cache on disk."""

    def __init__(
        self,
        workshop: Workshop,
        facts: dict[str, Any],
        sft: Recipe,
        preferences: Recipe,
    ) -> None:
        """facts: all that decides how they are trained, see `BeamSettings.of_task`"""
        self.workshop = workshop
        self._sft, self._preferences = sft, preferences
        self.folder = cache_dir("beam", json_hash(facts)[:16])

    def reference(self, tuning: Sequence[Example]) -> Weights:
        """The tuned model."""

        def make() -> Weights:
            start = self.workshop.untrained
            rows = example_rows(self.workshop.encoder, tuning)
            return self.workshop.weights_after(start, Arm("sft", "sft"), rows, self._sft, 0)

        return self._kept(Policy(REFERENCE).key, make)

    def policy(
        self, policy: Policy, tuning: Sequence[Example], pairs: Sequence[TrainingPair]
    ) -> Weights:
        """A policy trained on these pairs, from the reference."""
        if policy.name == REFERENCE:
            return self.reference(tuning)

        def make() -> Weights:
            start = self.reference(tuning)
            encoder = self.workshop.encoder
            if policy.name == TUNED:
                chosen = [Example(_messages(pair), pair.chosen) for pair in pairs]
                rows, arm = example_rows(encoder, chosen), Arm("sft", "sft")
            else:
                rows, arm = encoder.rows(pairs), Arm("dpo", "dpo", {"beta": policy.beta})
            return self.workshop.weights_after(start, arm, rows, self._preferences, policy.seed)

        return self._kept(policy.key, make)

    def is_there(self, policy: Policy) -> bool:
        """Whether it was trained before."""
        return self._path(policy.key).is_file()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _kept(self, key: str, make: Any) -> Weights:
        path = self._path(key)
        if not path.is_file():
            weights = make()
            with atomic_file(path) as temporary:
                save_file(weights, temporary)
            return dict(weights)
        return dict(load_file(path))


def put(weights: Weights, layers: Sequence[torch.nn.Module]) -> None:
    """Copy weights into the last of `layers`, as many as they are of."""
    every = [weight for layer in layers for weight in layer.parameters()]
    with torch.no_grad():
        own = every[len(every) - len(weights) :]
        for number, weight in enumerate(own):
            weight.copy_(weights[str(number)])


def held_out_accuracy(
    workshop: Workshop, reference: Weights, policy: Weights, pairs: Sequence[TrainingPair]
) -> dict[str, float]:
    """How often the chosen of two held-out answers has the higher implicit reward, and what the
    log-ratios of the two are on average, in nats."""
    encoded = [
        workshop.encoder(pair.prompt, text)
        for pair in pairs
        for text in (pair.chosen, pair.rejected)
    ]
    prompts = [each.prompt_ids for each in encoded]
    responses = [each.response_ids for each in encoded]
    sums = []
    for weights in (reference, policy):
        workshop.set(weights)
        with torch.no_grad():
            found = token_logps(workshop.model, prompts, responses)
        sums.append(torch.stack([each.sum() for each in found]).view(-1, 2))
    ratio = sums[1] - sums[0]
    margins = ratio[:, 0] - ratio[:, 1]
    return {
        "accuracy": float((margins > 0).float().mean()),
        "chosen": float(ratio[:, 0].mean()),
        "rejected": float(ratio[:, 1].mean()),
    }


def _messages(pair: TrainingPair) -> Any:
    assert not isinstance(pair.prompt, str)
    return pair.prompt
