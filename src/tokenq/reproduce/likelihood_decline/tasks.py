"""The two tasks: preference pairs of a seed, other answers to tune on, held-out pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenq.data import film_reviews
from tokenq.data.film_snippets import Snippet, snippets
from tokenq.errors import UserError
from tokenq.reproduce.beam_decoding.film import PROMPT
from tokenq.reproduce.beam_decoding.material import Example
from tokenq.reproduce.beam_decoding.policies import Workshop
from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM
from tokenq.reproduce.beam_decoding.tasks import DebianTask
from tokenq.reproduce.likelihood_decline.settings import (
    CHOSEN,
    NONE,
    OTHER,
    DeclineSettings,
)
from tokenq.reproduce.localisation.material import TrainingPair


@dataclass(frozen=True)
class Pairs:
    """What a seed trains on and is read on.

    trained:  the pairs of DPO
    other:    as many answers like the chosen ones, none of which is in a pair
    held_out: pairs that share no text with either
    """

    trained: Sequence[TrainingPair]
    other: Sequence[Example]
    held_out: Sequence[TrainingPair]

    def tuning(self, arm: str) -> list[Example]:
        """What the start of an arm is tuned on."""
        if arm == NONE:
            return []
        if arm == OTHER:
            return list(self.other)
        return [
            Example(pair.prompt, pair.chosen if arm == CHOSEN else pair.rejected)  # type: ignore[arg-type]
            for pair in self.trained
        ]


class FilmPairs:
    """Sentences of film reviews: the one that people rate higher is chosen."""

    def __init__(self, settings: DeclineSettings, workshop: Workshop) -> None:
        self._settings = settings

    def __call__(self, seed: int) -> Pairs:
        """No sentence is in two pairs. The sentences to tune on are the better ones of others."""
        count = self._settings.pairs
        found = self._pairs("train", seed)
        if len(found) < 2 * count:
            raise UserError(
                f"{count} film pairs and as many others: there are {len(found)}; accepted up to "
                "half of that number"
            )
        return Pairs(
            trained=found[:count],
            other=[Example(PROMPT, pair.chosen) for pair in found[count : 2 * count]],
            held_out=self._pairs("test", seed),
        )

    def _pairs(self, split: str, seed: int) -> list[TrainingPair]:
        low, high = self._settings.words
        texts: list[Snippet] = [
            each for each in snippets().kept if each.split == split and low <= each.words <= high
        ]
        options = film_reviews.PairOptions(gap=self._settings.gap, seed=seed)
        found = film_reviews.pairs_of(texts, options)
        order = np.random.default_rng(seed).permutation(len(found))
        return [TrainingPair(PROMPT, found[at][0].text, found[at][1].text) for at in order]


class DebianPairs:
    """Summaries of software packages: the maintainer's over a sample for the same package.

    The samples are those of `tokenq reproduce beam`, of a model tuned on other packages.
    """

    def __init__(self, settings: DeclineSettings, workshop: Workshop) -> None:
        self._settings = settings
        self._task = DebianTask(settings.samples, workshop)

    @cached_property
    def _held_out(self) -> list[TrainingPair]:
        return self._task.held_out()

    def __call__(self, seed: int) -> Pairs:
        """Packages are drawn by the seed; those to tune on and to be held out are the same ones."""
        count = self._settings.pairs
        trained = self._task.pairs(seed)[:count]
        return Pairs(trained, list(self._task.tuning())[: len(trained)], self._held_out)


TASKS: dict[str, Callable[[DeclineSettings, Workshop], Callable[[int], Pairs]]] = {
    FILM: FilmPairs,
    DEBIAN: DebianPairs,
}
