"""`credit_pair`: two answers to one prompt, and what the margin between them is made up of."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenq.credit.alignment import AlignedSegment, Answer, align_rewards
from tokenq.credit.api import credit
from tokenq.credit.result import Credit
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.pair import Pair


@dataclass(frozen=True, eq=False)
class PairCredit:
    """The credit of a chosen and a rejected answer to the same prompt, with the same beta."""

    chosen: Credit
    rejected: Credit

    @property
    def margin(self) -> float:
        """Summed reward of the chosen answer less that of the rejected one, beta times nats.

        sigmoid(margin) is the Bradley-Terry probability of the label (2404.12358, eq. 8).
        """
        return sum(self.chosen.rewards.tolist()) - sum(self.rejected.rewards.tolist())

    @cached_property
    def segments(self) -> list[AlignedSegment]:
        """Where the answers agree and differ, in order, end tokens last.

        The segments' differences add up to :attr:`margin`.
        """
        return align_rewards(*(_answer(each) for each in (self.chosen, self.rejected)))

    def to_dict(self, *, alternatives: int = 0, min_probability: float = 0.0) -> dict[str, Any]:
        """JSON types: `margin`, `segments`, and each side as :meth:`Credit.to_dict` gives it."""
        sides = {
            name: side.to_dict(alternatives=alternatives, min_probability=min_probability)
            for name, side in (("chosen", self.chosen), ("rejected", self.rejected))
        }
        segments = [each.to_dict() for each in self.segments]
        return {"margin": self.margin, "segments": segments, **sides}


def credit_pair(
    pair: Pair,
    prompt: str | Messages,
    chosen: str | Messages,
    rejected: str | Messages,
    beta: float = 0.1,
) -> PairCredit:
    """Score two answers to one prompt with `pair`, token by token.

    prompt, chosen, rejected, beta: as in :func:`tokenq.credit`

    Raises UserError as that does, naming the side.
    """
    sides = []
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        try:
            sides.append(credit(pair, prompt, response, beta))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return PairCredit(*sides)


def _answer(side: Credit) -> Answer:
    return Answer(side.response, side.offsets, side.rewards.tolist())
