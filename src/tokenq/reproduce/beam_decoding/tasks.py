"""The two tasks with all that they need, made at first use and kept in the cache on disk."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenq.models.forward import response_hidden
from tokenq.reproduce.beam_decoding import debian, film
from tokenq.reproduce.beam_decoding.decoding import opened, sampled
from tokenq.reproduce.beam_decoding.material import Example, Start, start_ids
from tokenq.reproduce.beam_decoding.policies import (
    REFERENCE,
    Policies,
    Policy,
    Weights,
    Workshop,
    held_out_accuracy,
)
from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM, BeamSettings
from tokenq.reproduce.localisation.material import Prompt, TrainingPair
from tokenq.reproduce.localisation.reward_model import reward_model_trained
from tokenq.storage import locked, write_text

_JUDGE = "judge"
_HEAD = "head"
_HELD_OUT = 150
"""Most pairs that the accuracy of a policy is measured on."""


class BeamTask:
    """Policies of one task, and what is decoded from.

    name, settings: which task, and everything's settings
    """

    name: str

    def __init__(self, settings: BeamSettings, workshop: Workshop) -> None:
        self.settings, self.workshop = settings, workshop
        self.policies = Policies(
            workshop, settings.training(self.name), settings.sft, settings.preferences
        )

    @property
    def starts(self) -> Sequence[Start]:
        """What is decoded from."""
        raise NotImplementedError

    @property
    def new_tokens(self) -> int:
        """Most tokens of an answer."""
        raise NotImplementedError

    def tuning(self) -> Sequence[Example]:
        """What the reference is tuned on."""
        raise NotImplementedError

    def pairs(self, seed: int) -> list[TrainingPair]:
        """The training pairs of a seed."""
        raise NotImplementedError

    def held_out(self) -> list[TrainingPair]:
        """Pairs of texts that no policy is trained on."""
        raise NotImplementedError

    def weights(self, policy: Policy) -> Weights:
        """Of a policy, trained now or before."""
        with locked(self.policies.folder / policy.key):
            if policy.name == REFERENCE or self.policies.is_there(policy):
                return self.policies.policy(policy, self.tuning(), [])
            pairs = self.pairs(policy.seed)
            return self.policies.policy(policy, self.tuning(), pairs)

    def accuracy(self, policy: Policy) -> dict[str, float]:
        """What the policy says of held-out pairs."""
        reference, own = self.weights(Policy(REFERENCE)), self.weights(policy)
        return held_out_accuracy(self.workshop, reference, own, self.held_out()[:_HELD_OUT])

    @cached_property
    def start_ids(self) -> list[list[int]]:
        """Token ids to go on from."""
        return [start_ids(self.workshop.encoder, start)[0] for start in self.starts]

    def texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The whole answers, given beginnings included; one for each of the first starts."""
        decode = self.workshop.tokenizer.decode
        found = []
        for start, ids, answer in zip(self.starts, self.start_ids, answers, strict=False):
            given = start_ids(self.workshop.encoder, start)[1]
            whole = [*ids[len(ids) - given :], *answer]
            found.append(str(decode(whole, skip_special_tokens=True)).strip())
        return found


class FilmTask(BeamTask):
    """Film review sentences."""

    name = FILM

    @property
    def new_tokens(self) -> int:
        """Most tokens of an answer."""
        return self.settings.film.new_tokens

    @cached_property
    def _material(self) -> film.Material:
        return film.material(self.settings.film)

    @property
    def starts(self) -> Sequence[Start]:
        """Beginnings of held-out sentences."""
        return self._material.starts

    def tuning(self) -> Sequence[Example]:
        """Sentences of all ratings."""
        return self._material.tuning

    def pairs(self, seed: int) -> list[TrainingPair]:
        """The sentence that people rate higher, over another."""
        return self._material.pairs(seed)

    def held_out(self) -> list[TrainingPair]:
        """Pairs of the test split, ratings at least 1 apart."""
        return film.held_out(self.settings.film)


class DebianTask(BeamTask):
    """One-line summaries of packages."""

    name = DEBIAN

    @property
    def new_tokens(self) -> int:
        """Most tokens of an answer; the samples of training pairs are shorter."""
        return self.settings.debian.written

    @cached_property
    def packages(self) -> debian.Packages:
        """Which package is of which use."""
        return debian.packages(self.settings.debian, self.workshop.tokenizer)

    @cached_property
    def starts(self) -> Sequence[Start]:
        """Held-out packages."""
        return debian.starts(self.packages.tests)

    def tuning(self) -> Sequence[Example]:
        """Maintainers' synopses."""
        return debian.examples(self.packages.tuning)

    def pairs(self, seed: int) -> list[TrainingPair]:
        """A maintainer's synopsis over a sample of the reference, packages drawn by the seed."""
        pool = self.packages.pool
        found = debian.pairs(pool, self._samples("pool", pool))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
        return [found[at] for at in order[: self.settings.debian.pairs]]

    def held_out(self) -> list[TrainingPair]:
        """The same of other packages."""
        kept = self.packages.held_out
        return debian.pairs(kept, self._samples("held_out", kept))

    def judge(self) -> "Judge":
        """The reward model, which shares no text and no training with any policy."""
        path = self.policies.folder / f"{_JUDGE}.safetensors"
        with locked(path):
            if not path.is_file():
                save_file(self._judge_trained(), path)
        weights = dict(load_file(path))
        head = weights.pop(_HEAD)
        return Judge(self, weights, head)

    def judged_pairs(self) -> dict[str, list[TrainingPair]]:
        """Held-out pairs for the judge, by what the worse side is."""
        kept = self.packages.held_out
        return debian.judged_pairs(kept, self._samples("held_out", kept))

    def _judge_trained(self) -> Weights:
        own = self.packages.judge
        pairs = debian.training_pairs(own, self._samples("judge", own))
        self.workshop.set(self.workshop.untrained)
        rows = self.workshop.encoder.rows(pairs)
        recipe = self.settings.preferences
        with reward_model_trained(self.workshop, rows, recipe, 0) as learner:
            learner.model.merge_adapter()
            weights = self.workshop.weights()
            learner.model.unmerge_adapter()
            head = learner.head.weight.detach().clone()
        return {**weights, _HEAD: head}

    def _samples(self, name: str, packages: Sequence[debian.Description]) -> list[str]:
        """One sample of the reference for each package."""
        path = self.policies.folder / f"samples-{name}.json"
        with locked(path):
            if not path.is_file():
                model = opened(
                    self.settings.model, self.weights(Policy(REFERENCE)), self.settings.dtype
                )
                ids = [start_ids(self.workshop.encoder, s)[0] for s in debian.starts(packages)]
                answers = sampled(model, ids, 1, self.settings.debian.new_tokens, 0)
                decode = self.workshop.tokenizer.decode
                texts = [
                    str(decode(own[0].token_ids, skip_special_tokens=True)).strip()
                    for own in answers
                ]
                write_text(path, json.dumps(texts))
        texts = json.loads(path.read_text(encoding="utf-8"))
        return list(texts)


class Judge:
    """A reward model of summaries: a head [1, H] on the state behind the text's last token."""

    def __init__(self, task: BeamTask, weights: Weights, head: Tensor) -> None:
        self._encoder = task.workshop.encoder
        self._head = head
        self._model = opened(task.settings.model, weights, task.settings.dtype)

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """The reward of each text; equal prompts are read once."""
        encoded = [
            self._encoder(prompt, text or " ") for prompt, text in zip(prompts, texts, strict=True)
        ]
        with torch.no_grad():
            states = response_hidden(
                self._model, [e.prompt_ids for e in encoded], [e.response_ids for e in encoded]
            )
        return [float(each[-1].float() @ self._head[0]) for each in states]

    def accuracy(self, pairs: Sequence[TrainingPair]) -> float:
        """Share of pairs whose chosen side has the higher reward."""
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
        found = torch.tensor(self(prompts, texts)).view(-1, 2)
        return float((found[:, 0] > found[:, 1]).float().mean())


TASKS: dict[str, Callable[[BeamSettings, Workshop], BeamTask]] = {
    FILM: FilmTask,
    DEBIAN: DebianTask,
}
