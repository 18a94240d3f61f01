"""The rows that all contestants train on: preference pairs of exact token lengths."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens; `answers` ranked answers of one prompt give all their pairs.

    name:     how the result is called
    like:     the published data set with such median lengths
    prompt, response: tokens of the prompt and of each response, EOS included
    answers:  2 for pairs, K for a list
    lists:    prompts in a step
    """

    name: str
    like: str
    prompt: int
    response: int
    answers: int = 2
    lists: int = 4

    @property
    def pairs(self) -> int:
        """Pairs in one optimiser step."""
        return self.lists * self.answers * (self.answers - 1) // 2

    @property
    def packed_tokens(self) -> int:
        """Input tokens of a step where prompts are shared; a last token is a target only."""
        return self.lists * (self.prompt + self.answers * (self.response - 1))

    @property
    def padded_tokens(self) -> int:
        """Input tokens of a step where every pair encodes its prompt twice."""
        return self.pairs * 2 * (self.prompt + self.response)

    @property
    def response_tokens(self) -> int:
        """Response tokens of a step, each distinct response once."""
        return self.lists * self.answers * self.response

    def to_dict(self) -> dict[str, object]:
        """Return the fields and what follows from them."""
        derived = ("pairs", "packed_tokens", "padded_tokens", "response_tokens")
        return asdict(self) | {name: getattr(self, name) for name in derived}


SHAPES = [
    Shape("320-40", "TL;DR", 320, 40),
    Shape("60-150", "UltraFeedback", 60, 150),
    Shape("180-85", "HH", 180, 85),
    Shape("320-40-k4", "TL;DR with 4 ranked answers", 320, 40, answers=4, lists=1),
]


def write_rows(
    path: Path, shape: Shape, tokenizer: PreTrainedTokenizerBase, steps: int, seed: int = 0
) -> None:
    """Write `steps` steps of rows as JSON lines (`prompt`, `chosen`, `rejected`), step by step.

    Texts are lower-case words that are one token each behind a blank, so that every contestant's
    own tokenisation arrives at the lengths of `shape`.
    """
    generator = random.Random(seed)
    words = sorted(t[1:] for t in tokenizer.get_vocab() if t[0] == "Ġ" and t[1:].isalpha())
    words = [word for word in words if word.isascii() and word.islower() and len(word) > 2]

    def text(tokens: int) -> str:
        return "".join(" " + generator.choice(words) for _ in range(tokens))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(steps * shape.lists):
            prompt = text(shape.prompt)
            answers = [text(shape.response - 1) for _ in range(shape.answers)]
            for better, chosen in enumerate(answers):
                for rejected in answers[better + 1 :]:
                    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                    file.write(json.dumps(row) + "\n")
