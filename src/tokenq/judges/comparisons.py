"""What judges are asked and what they say: comparisons, the two kinds of judge, verdicts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from tokenq.data.formats import Messages

Prompt = str | Messages
Choice = Literal["first", "second", "tie"]

ScoringJudge = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
"""Prompts and their responses, as many -> a score each, higher is better."""


@dataclass(frozen=True)
class Answer:
    """What a comparing judge said of one question: `choice`, None where `text` tells none."""

    choice: Choice | None
    text: str


@runtime_checkable
class ComparingJudge(Protocol):
    """A judge that is shown two responses and says which one is better.

    `concurrency`: questions that may be asked at the same time, from as many threads.
    """

    concurrency: int

    def compare(self, prompt: Prompt, first: str, second: str) -> Answer:
        """Say which of two responses is better."""
        ...


@dataclass(frozen=True)
class Comparison:
    """Our response to a prompt and theirs; `sample` tells comparisons of one prompt apart."""

    prompt: Prompt
    ours: str
    theirs: str
    sample: int = 0

    @property
    def key(self) -> str:
        """What names the prompt."""
        return prompt_key(self.prompt)

    @property
    def length_difference(self) -> int:
        """Characters of ours less those of theirs."""
        return len(self.ours) - len(self.theirs)


@dataclass(frozen=True)
class Asked:
    """A question to a comparing judge: which response was shown first, and the answer."""

    ours_first: bool
    answer: Answer

    @property
    def preference(self) -> float | None:
        """1 ours, 0 theirs, 0.5 a tie, None where the answer tells none."""
        if self.answer.choice is None or self.answer.choice == "tie":
            return None if self.answer.choice is None else 0.5
        return float((self.answer.choice == "first") == self.ours_first)


@dataclass(frozen=True)
class Verdict:
    """What a judge made of one comparison.

    preference: 1 ours, 0 theirs, 0.5 a tie, None where an answer could not be read
    scores:     of ours and theirs, from a scoring judge
    asked:      one question, or one in each order, to a comparing judge
    """

    preference: float | None
    scores: tuple[float, float] | None = None
    asked: tuple[Asked, ...] = ()

    @property
    def inconsistent(self) -> bool:
        """Whether the two orders gave different answers, both of them readable."""
        told = {each.preference for each in self.asked}
        return len(told) == 2 and None not in told

    def record(self) -> dict[str, Any]:
        """JSON types; :func:`verdict_of` reads it back."""
        plain: dict[str, Any] = {"preference": self.preference}
        if self.scores is not None:
            plain["scores"] = list(self.scores)
        if self.asked:
            plain["asked"] = [
                {
                    "ours_first": each.ours_first,
                    "choice": each.answer.choice,
                    "answer": each.answer.text,
                }
                for each in self.asked
            ]
        return plain


def verdict_of(record: dict[str, Any]) -> Verdict:
    """A verdict from its :meth:`Verdict.record`."""
    scores = record.get("scores")
    return Verdict(
        record["preference"],
        None if scores is None else (scores[0], scores[1]),
        tuple(
            Asked(each["ours_first"], Answer(each["choice"], each["answer"]))
            for each in record.get("asked", ())
        ),
    )


def prompt_key(prompt: Prompt) -> str:
    """What names a prompt: its text, or the JSON of its messages."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def prompt_text(prompt: Prompt) -> str:
    """A prompt to be read: its text, the content of a single message, or `role: content` lines."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{turn['role']}: {turn.get('content', '')}" for turn in prompt)


def shown(prompt: Prompt) -> str:
    """The beginning of a prompt, quoted, for messages."""
    text = prompt_text(prompt)
    return repr(text if len(text) <= 60 else text[:57] + "...")
