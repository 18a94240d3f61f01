"""Where two answers agree and differ, and what each of these places adds to the margin.

Works on texts and on rewards that are given: from models (`pairs`) or from saved records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import torch

from tokenq.credit.aggregation import Characters, Shares, word_units

Kind = Literal["equal", "replace", "insert", "delete", "end"]
Stretch = tuple[Kind, Characters, Characters]


@dataclass(frozen=True)
class AlignedSegment:
    """A stretch of both answers: the same words in both, or where they differ.

    kind:     "equal"; "replace", "insert" (words of the chosen answer only) or "delete" (of the
              rejected one only): what turns the rejected answer into the chosen one; "end" for what
              is no text of the answers: the end tokens
    chosen, rejected: (start, end) characters in each; empty where it has nothing
    chosen_reward, rejected_reward: sum of the implicit rewards there, beta times nats

    Equal words have different rewards in the two answers where what stands before them differs.
    """

    kind: Kind
    chosen: Characters
    rejected: Characters
    chosen_reward: float
    rejected_reward: float

    @property
    def difference(self) -> float:
        """What the segment adds to the margin: chosen minus rejected, beta times nats."""
        return self.chosen_reward - self.rejected_reward

    def to_dict(self) -> dict[str, Any]:
        """JSON types, with the difference."""
        return {**asdict(self), "difference": self.difference}


@dataclass(frozen=True)
class Answer:
    """A text and the rewards of its tokens.

    offsets: (start, end) characters of each of T tokens; empty for tokens that are no text of it
    rewards: [T], beta times nats
    """

    text: str
    offsets: Sequence[Sequence[int]]
    rewards: Sequence[float]

    @classmethod
    def of_record(cls, side: Mapping[str, Any]) -> "Answer":
        """From `record["responses"][name]`, as `tokenq credit` writes it."""
        return cls(side["response"], side["offsets"], side["rewards"])


def align_words(chosen: str, rejected: str) -> list[Stretch]:
    """Segments that cover both answers from beginning to end, as (kind, characters, characters).

    Longest common runs of words first (`difflib.SequenceMatcher`, on :func:`word_units`). Answers
    that were written independently share scattered words, which say nothing about each other: equal
    words between two differences are taken into them where they are no longer, in characters, than
    what differs before them and what differs after them.
    """
    ours, theirs = word_units(chosen), word_units(rejected)
    said = [chosen[slice(*unit)] for unit in ours]
    said_instead = [rejected[slice(*unit)] for unit in theirs]
    opcodes = SequenceMatcher(None, said_instead, said, autojunk=False).get_opcodes()
    found: list[Stretch] = [
        (kind, _characters(ours, k, m), _characters(theirs, i, j)) for kind, i, j, k, m in opcodes
    ]
    return _without_islands(found)


def align_rewards(chosen: Answer, rejected: Answer) -> list[AlignedSegment]:
    """The segments of two answers with their rewards; the differences add up to the margin.

    A token that reaches into two segments is divided between them (:class:`Shares`). The last
    segment, "end", holds the tokens that stand for no text of the answer.
    """
    stretches = align_words(chosen.text, rejected.text)
    sums, end = _sums(chosen, [ours for _, ours, _ in stretches])
    their_sums, their_end = _sums(rejected, [theirs for _, _, theirs in stretches])
    rewards = zip(stretches, sums, their_sums, strict=True)
    segments = [AlignedSegment(*stretch, reward, other) for stretch, reward, other in rewards]
    places = [(len(each.text), len(each.text)) for each in (chosen, rejected)]
    return [*segments, AlignedSegment("end", places[0], places[1], end, their_end)]


def aligned_segments(record: Mapping[str, Any]) -> list[AlignedSegment]:
    """The segments of a saved pair (a line of `credit.jsonl`).

    Raises ValueError if the record has no responses named `chosen` and `rejected`.
    """
    sides = record.get("responses", {})
    if not {"chosen", "rejected"} <= set(sides):
        raise ValueError(f"a record with responses {sorted(sides)} is no scored pair")
    return align_rewards(Answer.of_record(sides["chosen"]), Answer.of_record(sides["rejected"]))


def _sums(answer: Answer, units: Sequence[Characters]) -> tuple[list[float], float]:
    """The answer's rewards summed over each unit, and those of tokens that have no text."""
    rewards = torch.tensor(answer.rewards, dtype=torch.float64)
    offsets = [(start, end) for start, end in answer.offsets]
    if len(rewards) != len(offsets):
        raise ValueError(f"{len(rewards)} rewards but {len(offsets)} offsets")
    shares = Shares.of(offsets, answer.text, units)
    return shares.sums(rewards).tolist(), float(rewards[shares.without_characters()].sum())


def _characters(units: Sequence[Characters], first: int, last: int) -> Characters:
    """Where the units `first:last` begin and end."""
    start = units[first - 1][1] if first else 0
    return start, units[last - 1][1] if last > first else start


def _without_islands(segments: list[Stretch]) -> list[Stretch]:
    """Take short equal stretches between two differences into them, until none is left."""
    joined: list[Stretch] = []
    for segment in segments:
        joined.append(segment)
        while (
            len(joined) >= 3
            and joined[-2][0] == "equal"
            and "equal" not in (joined[-3][0], joined[-1][0])
            and _size(joined[-2]) <= min(_size(joined[-3]), _size(joined[-1]))
        ):
            before, _, after = joined[-3:]
            ours = before[1][0], after[1][1]
            theirs = before[2][0], after[2][1]
            joined[-3:] = [("replace", ours, theirs)]
    return joined


def _size(segment: Stretch) -> int:
    """Characters of its longer side."""
    return max(end - start for start, end in segment[1:])
