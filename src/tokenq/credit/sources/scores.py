"""`TokenScores`: one number for every token of a text, and the protocol of what gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from tokenq.data.formats import Messages
from tokenq.errors import UserError

Offsets = tuple[tuple[int, int], ...]
Direction = Literal["liked", "suspicious"]


@dataclass(frozen=True, eq=False)
class TokenScores:
    """A score of each of the T tokens of a response.

    text:     the response
    offsets:  (start, end) characters of each token in `text`. Tokens outside the text have an empty
              span: (0, 0) before it, (len, len) for the end token
    scores:   [T] float32, on the CPU
    name:     of the source, as a table shows it
    unit:     of one score
    higher:   what a higher score means
    additive: whether the score of a stretch is the sum of its tokens' (log-probabilities, rewards)
              or their mean (a position, an entropy)

    Raises ValueError where scores and offsets differ in length or an offset leaves the text.
    """

    text: str
    offsets: Offsets
    scores: Tensor
    name: str
    unit: str
    higher: Direction = "liked"
    additive: bool = True

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.offsets),):
            raise ValueError(
                f"scores of shape {tuple(self.scores.shape)} but {len(self.offsets)} offsets"
            )
        outside = [each for each in self.offsets if not 0 <= each[0] <= each[1] <= len(self.text)]
        if outside:
            raise ValueError(f"offset {outside[0]} in a text of {len(self.text)} characters")

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def blame(self) -> Tensor:
        """[T] the scores turned so that higher is more suspicious."""
        return self.scores if self.higher == "suspicious" else -self.scores


class RowError(UserError):
    """What is wrong with one row, counted from 0."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


class TokenSource(Protocol):
    """Anything that gives every token of given responses a score."""

    name: str

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses, in their order.

        prompts:   texts, which the responses follow directly, or messages for the chat template
        responses: texts, or the answer as one message

        Raises RowError, a UserError, for a response that is empty, that the chat
        template rewrites, or that is too long with its prompt. All rows given are scored together,
        a token budget at a time; results are all that grows with their number.
        """
        ...
