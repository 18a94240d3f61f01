"""Where two answers agree and differ, and what each of these places adds to the margin.

Works on texts and on rewards that are given: from models (`pairs`) or from saved records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Any, Literal

import regex

Kind = Literal["equal", "replace", "insert", "delete", "end"]
Characters = tuple[int, int]
Stretch = tuple[Kind, Characters, Characters]

# Word boundaries of Unicode (UAX 29): letters with their marks stay together, as do numbers with
# their signs and joined emoji; scripts without blanks are parted into characters.
_BOUNDARY = regex.compile(r"\b", regex.VERSION1 | regex.WORD)


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


def word_pieces(text: str) -> list[str]:
    """Words, numbers and signs of `text`, each with the blanks before it; joined they are it."""
    pieces: list[str] = []
    blanks = ""
    for part in _BOUNDARY.split(text):
        if part and not part.strip():
            blanks += part
        elif part:
            pieces.append(blanks + part)
            blanks = ""
    return [*pieces, blanks] if blanks else pieces


def align_words(chosen: str, rejected: str) -> list[Stretch]:
    """Segments that cover both answers from beginning to end, as (kind, characters, characters).

    Longest common runs of words first (`difflib.SequenceMatcher`, on :func:`word_pieces`). Answers
    that were written independently share scattered words, which say nothing about each other: equal
    words between two differences are taken into them where they are no longer, in characters, than
    what differs before them and what differs after them.
    """
    ours, theirs = word_pieces(chosen), word_pieces(rejected)
    opcodes = SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes()
    starts, their_starts = _starts(ours), _starts(theirs)
    found: list[Stretch] = [
        (kind, (starts[k], starts[m]), (their_starts[i], their_starts[j]))
        for kind, i, j, k, m in opcodes
    ]
    return _without_islands(found)


def align_rewards(chosen: "Answer", rejected: "Answer") -> list[AlignedSegment]:
    """The segments of two answers with their rewards; the differences add up to the margin.

    A token's reward is shared equally by its characters other than blanks (by its blanks if it has
    no others), so that a token that reaches into two segments is divided between them. The last
    segment, "end", holds the tokens that stand for no text of the answer.
    """
    sums, their_sums = (_running_sums(each) for each in (chosen, rejected))
    segments = [
        AlignedSegment(
            kind,
            ours,
            theirs,
            sums[ours[1]] - sums[ours[0]],
            their_sums[theirs[1]] - their_sums[theirs[0]],
        )
        for kind, ours, theirs in align_words(chosen.text, rejected.text)
    ]
    ends = [_outside(each) for each in (chosen, rejected)]
    places = [(len(each.text), len(each.text)) for each in (chosen, rejected)]
    return [*segments, AlignedSegment("end", places[0], places[1], ends[0], ends[1])]


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


def aligned_segments(record: Mapping[str, Any]) -> list[AlignedSegment]:
    """The segments of a saved pair (a line of `credit.jsonl`).

    Raises ValueError if the record has no responses named `chosen` and `rejected`.
    """
    sides = record.get("responses", {})
    if not {"chosen", "rejected"} <= set(sides):
        raise ValueError(f"a record with responses {sorted(sides)} is no scored pair")
    return align_rewards(Answer.of_record(sides["chosen"]), Answer.of_record(sides["rejected"]))


def _running_sums(answer: Answer) -> list[float]:
    """[characters + 1]: the rewards of all text before each character."""
    per_character = [0.0] * len(answer.text)
    for reward, (start, end) in zip(answer.rewards, answer.offsets, strict=True):
        places = [at for at in range(start, end) if not answer.text[at].isspace()]
        places = places or list(range(start, end))
        for at in places:
            per_character[at] += reward / len(places)
    return list(accumulate(per_character, initial=0.0))


def _outside(answer: Answer) -> float:
    tokens = zip(answer.rewards, answer.offsets, strict=True)
    return sum(reward for reward, (start, end) in tokens if start == end)


def _starts(pieces: Sequence[str]) -> list[int]:
    return list(accumulate(map(len, pieces), initial=0))


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
