"""Short pairs of film review sentences as tokens, for experiments of many small runs.

All answer one and the same instruction, so that a pack encodes it once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from tokenq.data import film_reviews
from tokenq.data.edits import edited_tokens
from tokenq.data.encoding import EncodedResponse, encode
from tokenq.demo.material import answers
from tokenq.errors import UserError

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class FilmPairs:
    """texts, encoded: one entry a pair, each (chosen, rejected)."""

    texts: list[tuple[str, str]]
    encoded: list[tuple[EncodedResponse, EncodedResponse]]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def prompt_ids(self) -> list[int]:
        """The instruction, the same for all."""
        return self.encoded[0][0].prompt_ids

    def flat(self) -> tuple[list[list[int]], list[list[int]]]:
        """(prompts, responses) of all answers: chosen and rejected of the first pair, and so on."""
        responses = [side.response_ids for pair in self.encoded for side in pair]
        return [self.prompt_ids] * len(responses), responses

    def flipped(self, wrong: Sequence[bool]) -> "FilmPairs":
        """The same pairs with the two sides exchanged where `wrong` says so."""

        def turned(pairs: list[Any]) -> list[Any]:
            return [pair[::-1] if flip else pair for pair, flip in zip(pairs, wrong, strict=True)]

        return FilmPairs(turned(self.texts), turned(self.encoded))

    def rows(self, rewards: Sequence[Sequence[float]] | None = None) -> datasets.Dataset:
        """Tokenised rows for the trainer, with the tokens that differ between the two sides.

        rewards: of each token of each answer, in the order of :meth:`flat`
        """
        rows = []
        for number, pair in enumerate(self.encoded):
            ids = [side.response_ids for side in pair]
            edits = edited_tokens(*ids)
            row: dict[str, Any] = {"prompt_ids": self.prompt_ids}
            for place, side in enumerate(SIDES):
                row[f"{side}_ids"] = ids[place]
                row[f"{side}_edits"] = list(edits[place])
                if rewards is not None:
                    row[f"{side}_rewards"] = list(rewards[2 * number + place])
            rows.append(row)
        return datasets.Dataset.from_list(rows)


def film_pairs(
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    *,
    count: int,
    gap: float,
    max_words: int,
    seed: int,
) -> FilmPairs:
    """The first `count` pairs whose two sides have at most `max_words` words.

    Raises UserError if there are fewer.
    """
    options = film_reviews.PairOptions(gap=gap, seed=seed)
    texts = [answers(row) for row in film_reviews.load(split, options)]
    short = [pair for pair in texts if max(len(text.split()) for text in pair) <= max_words]
    if len(short) < count:
        raise UserError(
            f"{count} {split} pairs of at most {max_words} words: there are {len(short)}; accepted "
            "up to that number"
        )
    encoder = _encoder(tokenizer)
    kept = short[:count]
    return FilmPairs(kept, [(encoder(pair[0]), encoder(pair[1])) for pair in kept])


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], EncodedResponse]:
    instruction = film_reviews.INSTRUCTIONS[0]
    if tokenizer.chat_template is None:
        return lambda text: encode(tokenizer, f"{instruction}\n\n", text)
    prompt = [{"role": "user", "content": instruction}]
    return lambda text: encode(tokenizer, prompt, [{"role": "assistant", "content": text}])
