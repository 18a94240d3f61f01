"""What a task hands over: pairs to train on, and texts to score whose truth training never sees."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from tokenq.data.edits import edited_tokens
from tokenq.data.encoding import EncodedResponse, encode
from tokenq.data.formats import Messages
from tokenq.data.prefix import common_prefix_length
from tokenq.data.steps import step_numbers, step_starts

Prompt = str | Messages
SENTENCES = re.compile(r"(?<=[.!?])\s+(?=\S)")
"""Where a sentence behind another begins, for steps."""
Span = tuple[int, int]


@dataclass(frozen=True)
class TrainingPair:
    """Two responses of which people, or the maker of an error, prefer the first as a whole.

    step: train on the first sentence in which they differ, after those before it (Step-DPO,
          arXiv 2406.18629), instead of all that they say
    """

    prompt: Prompt
    chosen: str
    rejected: str
    step: bool = False

    def turned(self) -> "TrainingPair":
        """The pair with the wrong label."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)


@dataclass(frozen=True)
class RatedWord:
    """A word of a text, characters `start:end`, with its human valence, -4..4."""

    start: int
    end: int
    valence: float


@dataclass(frozen=True)
class TestText:
    """A text to score.

    id:     unlike any other of its task
    group:  texts of one group belong together (one description, one question, one text): a
            bootstrap draws groups
    kind:   what was done to the text, such as `number`, `paraphrase`, `truthful`
    errors: the characters that are wrong; empty for a text without error, None where the task has
            no such truth
    words:  words with a known valence, where the truth is one of words
    """

    __test__ = False  # pytest: no test case

    id: str
    group: str
    kind: str
    prompt: Prompt
    text: str
    errors: tuple[Span, ...] | None = None
    words: tuple[RatedWord, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task of the benchmark.

    pairs: the training pairs of a seed and a variant ("": the usual ones); an arm with fewer pairs
           takes the first of them
    tests: the texts to score, the same for every seed
    """

    pairs: Callable[[int, str], list[TrainingPair]]
    tests: Callable[[], list[TestText]]


class Encoder:
    """Prompts and responses as tokens, each response ending with the end token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, prompt: Prompt, text: str) -> EncodedResponse:
        """A response that is text becomes the assistant's message where the prompt is messages."""
        if isinstance(prompt, str):
            return encode(self.tokenizer, prompt, text)
        return encode(self.tokenizer, prompt, [{"role": "assistant", "content": text}])

    @property
    def opening(self) -> int:
        """The token that stands before a text without a prompt: BOS, or EOS where there is none."""
        first = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if first is None else first)

    def rows(self, pairs: Sequence[TrainingPair]) -> datasets.Dataset:
        """Tokenised rows for the trainer, with the tokens that differ between the two sides."""
        return datasets.Dataset.from_list([self._row(pair) for pair in pairs])

    def _row(self, pair: TrainingPair) -> dict[str, Any]:
        chosen, rejected = (self(pair.prompt, each) for each in (pair.chosen, pair.rejected))
        prompt_ids, sides = chosen.prompt_ids, [chosen.response_ids, rejected.response_ids]
        if pair.step:
            numbers = [
                step_numbers(each.offsets, step_starts(text, SENTENCES))
                for each, text in ((chosen, pair.chosen), (rejected, pair.rejected))
            ]
            prompt_ids, sides = differing_step(prompt_ids, sides, numbers)
        edits = edited_tokens(*sides)
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": sides[0],
            "rejected_ids": sides[1],
            "chosen_edits": list(edits[0]),
            "rejected_edits": list(edits[1]),
        }


def differing_step(
    prompt_ids: list[int], sides: list[list[int]], numbers: list[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """Move the steps that both sides begin with into the prompt, and keep one step of each.

    numbers: of the step that each token of a side is in, from 0
    """
    # One side may be all of the other's beginning; a last token is left to each.
    common = min(common_prefix_length(*sides), *(len(side) - 1 for side in sides))
    first = min(steps.index(steps[common]) for steps in numbers)
    kept = []
    for side, steps in zip(sides, numbers, strict=True):
        kept.append(
            [token for token, step in zip(side, steps, strict=True) if step == steps[first]]
        )
    return [*prompt_ids, *sides[0][:first]], kept


def truth_of(offsets: Sequence[Span], text: str, errors: Sequence[Span]) -> list[int]:
    """1 for each token with a character other than a blank inside one of the error spans."""
    wrong = {at for start, end in errors for at in range(start, end) if not text[at].isspace()}
    return [int(any(at in wrong for at in range(start, end))) for start, end in offsets]
