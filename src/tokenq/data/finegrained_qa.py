"""Long answers that people compared, and the spans of them that people called wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tokenq.data.human_labels import (
    check_split,
    labels_folder,
    leading,
    read_records,
    split_of,
    word_count,
)
from tokenq.data.pair_rows import pair_row
from tokenq.errors import UserError

ABOUT = """\
QA-Feedback: questions with passages, four answers of a model to each, six human comparisons of
them, and the spans of the first answer that a person marked as wrong, with the kind of fault.

Origin:   feedback.json, part of the public development file of the authors.
Licence:  Apache-2.0.
Citation: Z. Wu et al., "Fine-Grained Human Feedback Gives Better Rewards for Language Model
          Training", NeurIPS 2023.
"""

FACTUAL = ("Wrong-Grounding", "Unverifiable")
"""Kinds of faults that are about truth: contradicted by the passages, or not to be found there."""
OTHER = ("Irrelevant", "Redundant", "Incoherent")
"""Kinds of faults that are about what is worth saying."""

COMPARISONS = tuple(combinations(range(4), 2))
"""Which answers (from 0) the six comparisons are between, in the order of the file.

The file does not say; this order was inferred from the labels. Of the 720 orders only two leave no
cycle (a over b, b over c, c over a) among the 758 triples of answers with three decided
comparisons: this one and this one reversed (any other leaves 33 or more). Of the two, this one
agrees with what the texts say: in each of the six places the preferred answer shares more words
with the reference answer exactly for the pair named here, more than for any of the five other
pairs, and where the first answer is compared and preferred, less of it is marked as wrong.
"""

_FIELDS = ("question", "passages", "gold", "feedback", "preference")
_ANSWERS = tuple(f"prediction {number}" for number in (1, 2, 3, 4))


@dataclass(frozen=True)
class Fault:
    """Characters ``start..end`` of the first answer, and the kind of fault that is there."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    """One question. ``faults`` are marked in ``answers[0]``; ``corrected`` is that answer as its
    reader mended it. ``preferences[k]`` is about the answers ``COMPARISONS[k]``: 1 the first is
    better, 2 the second, 0 neither."""

    number: int
    prompt: str
    question: str
    answers: tuple[str, str, str, str]
    faults: tuple[Fault, ...]
    preferences: tuple[int, ...]
    corrected: str
    gold: str

    def spans(self, kinds: Sequence[str] = FACTUAL + OTHER) -> list[tuple[int, int]]:
        """The characters of ``answers[0]`` with a fault of one of ``kinds``, in order."""
        found = ((fault.start, fault.end) for fault in self.faults if fault.kind in kinds)
        return sorted(set(found))


def load(
    split: str = "train",
    *,
    max_length: int = 300,
    length: Callable[[str], int] = word_count,
) -> list[Question]:
    """The questions of one split, in the order of the file; a question is in one split only.

    The prompt holds the passages, then the question. Of the passages the first whose ``length``
    (words; give a tokenizer's count for tokens) is at most ``max_length`` in all are kept, by
    whole sentences; so what an answer is right about may be out of sight.

    Raises :class:`UserError` for an unknown split, without ``TOKENQ_DATA``, and for a file that is
    not as described.
    """
    check_split("finegrained_qa", split)
    path = labels_folder("finegrained_qa") / "feedback.json"
    questions = []
    for number, record in enumerate(read_records(path, _FIELDS + _ANSWERS)):
        if split_of(record["question"]) == split:
            where = f"{path}, record {number}"
            questions.append(_question(number, record, where, max_length, length))
    return questions


def pairs(questions: Sequence[Question], *, format: str = "chat") -> list[dict[str, Any]]:
    """Preference rows of all decided comparisons; see :func:`pair_row` for ``format``."""
    found = []
    for question in questions:
        for (one, other), preferred in zip(COMPARISONS, question.preferences, strict=True):
            if preferred:
                chosen, rejected = (one, other) if preferred == 1 else (other, one)
                answers = question.answers[chosen], question.answers[rejected]
                found.append(pair_row(question.prompt, *answers, format))
    return found


def _question(
    number: int, record: dict[str, Any], where: str, limit: int, length: Callable[[str], int]
) -> Question:
    answers = tuple(str(record[name]) for name in _ANSWERS)
    feedback, preferences = record["feedback"], record["preference"]
    if len(preferences) != len(COMPARISONS) or not set(preferences) <= {0, 1, 2}:
        raise UserError(f"{where}: preference is {preferences}, not six numbers from 0, 1, 2")
    faults = tuple(
        Fault(error["error type"], error["start"], error["end"]) for error in feedback["errors"]
    )
    for fault in faults:
        if not 0 <= fault.start < fault.end <= len(answers[0]):
            raise UserError(f"{where}: characters {fault.start}..{fault.end} are not in its answer")
    # A passage is its title and its sentences; the title goes with the first of them.
    sentences = [
        sentence
        for title, first, *others in record["passages"]
        for sentence in (f"{title}: {first}", *others)
    ]
    shown = "\n".join(leading(sentences, limit, length))
    prompt = f"{shown}\n\nAnswer from the text above: {record['question'].strip()}"
    return Question(
        number=number,
        prompt=prompt,
        question=record["question"],
        answers=answers,  # type: ignore[arg-type]  # _ANSWERS names four
        faults=faults,
        preferences=tuple(preferences),
        corrected=feedback["corrected-prediction"],
        gold=record["gold"],
    )
