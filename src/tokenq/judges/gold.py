"""Scoring judges that need no model: a lexicon, length, patterns, and answers known to be right."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tokenq.data import lexicon
from tokenq.errors import UserError
from tokenq.judges.comparisons import Prompt, prompt_key, shown

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def lexicon_valence(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """Mean valence, -4 to 4, of the response's words that the VADER lexicon lists; 0 for none.

    Words by themselves: negation is not seen. Raises UserError where the lexicon is not had.
    """
    entries = lexicon.load()
    scores = []
    for response in responses:
        words = (word.replace("’", "'").lower() for word in _WORD.findall(response))
        found = [entries[word].mean for word in words if word in entries]
        scores.append(sum(found) / len(found) if found else 0.0)
    return scores


def length(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """Characters: the judge that every other should be told apart from."""
    return [float(len(response)) for response in responses]


@dataclass(frozen=True)
class Contains:
    """1 where the response holds `text`, else 0. Case counts."""

    text: str

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses."""
        return [float(self.text in response) for response in responses]


@dataclass(frozen=True)
class Matches:
    """1 where the pattern matches somewhere in the response, else 0."""

    pattern: re.Pattern[str]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses."""
        return [float(self.pattern.search(response) is not None) for response in responses]


@dataclass(frozen=True)
class ExactMatch:
    """1 where the response is the prompt's right answer, blanks at its ends aside, else 0.

    answers: by :func:`~tokenq.judges.prompt_key`; calling raises UserError for a prompt without one
    """

    answers: Mapping[str, str]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses."""
        return [
            float(response.strip() == _right(self.answers, prompt).strip())
            for prompt, response in zip(prompts, responses, strict=True)
        ]


@dataclass(frozen=True)
class NumberMatch:
    """1 where the last number of the response equals that of the prompt's right answer, else 0.

    As answers of sums in words are usually checked: `1,234.50` is 1234.5, signs of currency and
    percent do not matter.

    answers: by :func:`~tokenq.judges.prompt_key`; calling raises UserError for a prompt without
             one, or an answer without a number
    """

    answers: Mapping[str, str]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses."""
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            answer = _right(self.answers, prompt)
            right = last_number(answer)
            if right is None:
                raise UserError(
                    f"the right answer {answer!r} has no number; accepted: one that has"
                )
            scores.append(float(last_number(response) == right))
        return scores


def last_number(text: str) -> Decimal | None:
    """The last number in a text, digits maybe grouped by commas; None where there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _right(answers: Mapping[str, str], prompt: Prompt) -> str:
    key = prompt_key(prompt)
    if key not in answers:
        raise UserError(
            f"no right answer is known for the prompt {shown(prompt)}; accepted: one for each"
        )
    return answers[key]
