"""Package summaries with one planted wrong detail: trained on which summary is the true one."""

import random
from collections.abc import Iterable
from itertools import chain, zip_longest

from tokenq.data import planted as source
from tokenq.data.planted import PlantedItem
from tokenq.errors import UserError
from tokenq.reproduce.localisation.material import Prompt, Task, TestText, TrainingPair
from tokenq.reproduce.localisation.settings import PlantedSettings

TRUE_WORDINGS = ("truthful", "paraphrase", "consistent")
"""Kinds of texts without an error; those with one have the kind of their error."""


def planted(settings: PlantedSettings) -> Task:
    """The task with these settings; packages and their sources are of one split only.

    Variants of its pairs: "" differ in the detail only, "loose" also in their wording, and kinds of
    error joined by "+", half as many pairs, which leaves the other kinds unseen.
    """

    def pairs(seed: int, variant: str) -> list[TrainingPair]:
        mode = "loose" if variant == "loose" else "minimal"
        kinds = source.KINDS if variant in ("", "loose") else tuple(variant.split("+"))
        # Two kinds alone have not as many packages as all; an arm of theirs takes all that come.
        count = settings.pairs if len(kinds) == len(source.KINDS) else settings.pairs // 2
        items = _balanced("train", kinds, count, settings.prompt_words, seed, mode)
        return [TrainingPair(_prompt(item), item.chosen, item.rejected) for item in items]

    def tests() -> list[TestText]:
        items = _balanced(
            settings.split, source.KINDS, settings.tests, settings.prompt_words, 0, "minimal"
        )
        return list(chain.from_iterable(map(texts_of, items)))

    return Task(pairs, tests)


def texts_of(item: PlantedItem) -> list[TestText]:
    """The wrong summary of a package and the true ones."""
    prompt = _prompt(item)

    def text(kind: str, wording: str, errors: tuple[tuple[int, int], ...]) -> TestText:
        name = f"{item.package}:{kind}"
        return TestText(name, item.source, kind, prompt, wording, errors)

    return [
        text(item.kind, item.erroneous, (item.error_span,)),
        *(text(kind, getattr(item, kind), ()) for kind in TRUE_WORDINGS),
    ]


def _prompt(item: PlantedItem) -> Prompt:
    return [{"role": "user", "content": item.prompt}]


def _balanced(
    split: str, kinds: Iterable[str], count: int, longest: int, seed: int, mode: str
) -> list[PlantedItem]:
    """`count` items whose prompts have at most `longest` words, as many of each kind as can be.

    Raises UserError where there are fewer.
    """
    by_kind = []
    for kind in kinds:
        items = source.load(split, kinds=(kind,), seed=seed, mode=mode)
        by_kind.append([item for item in items if len(item.prompt.split()) <= longest])
    in_turn = [item for each in zip_longest(*by_kind) for item in each if item is not None]
    if len(in_turn) < count:
        raise UserError(
            f"{count} {split} summaries of descriptions of at most {longest} words: there are "
            f"{len(in_turn)}; accepted up to that number"
        )
    chosen = in_turn[:count]
    random.Random(seed).shuffle(chosen)
    return chosen
