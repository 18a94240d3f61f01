"""What a task hands over: texts to tune on, pairs to train on, and beginnings to go on from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets

from tokenq.data.formats import Messages
from tokenq.reproduce.localisation.material import Encoder, TrainingPair

Prompt = Messages


@dataclass(frozen=True)
class Example:
    """A prompt and what people answered."""

    prompt: Prompt
    text: str


@dataclass(frozen=True)
class Start:
    """What is decoded from.

    id:     unlike any other of its task; a bootstrap draws these
    prompt: the question
    text:   how the answer begins, "" for one that is written whole
    human:  what people wrote
    """

    id: str
    prompt: Prompt
    text: str
    human: str


@dataclass(frozen=True)
class Material:
    """tuning: for the reference; pairs: of a seed; starts: what is decoded from."""

    tuning: Sequence[Example]
    pairs: Callable[[int], list[TrainingPair]]
    starts: Sequence[Start]


def example_rows(encoder: Encoder, examples: Sequence[Example]) -> datasets.Dataset:
    """Tokenised rows for supervised fine-tuning."""
    encoded = [encoder(each.prompt, each.text) for each in examples]
    rows = [{"prompt_ids": e.prompt_ids, "completion_ids": e.response_ids} for e in encoded]
    return datasets.Dataset.from_list(rows)


def start_ids(encoder: Encoder, start: Start) -> tuple[list[int], int]:
    """Token ids to go on from, and how many of them are the answer's beginning.

    The beginning is tokenised with the blank that follows it in a whole answer left to the next
    token, as it stands in training.
    """
    if not start.text:
        return encoder(start.prompt, start.human).prompt_ids, 0
    encoded = encoder(start.prompt, start.text)
    own = [
        token
        for token, (first, last) in zip(encoded.response_ids, encoded.offsets, strict=True)
        if last > first
    ]
    return [*encoded.prompt_ids, *own], len(own)
