"""Long answers: trained on which of two people preferred, truth: the spans that people marked."""

import random

from tokenq.data import finegrained_qa as source
from tokenq.data.finegrained_qa import COMPARISONS, Question
from tokenq.errors import UserError
from tokenq.reproduce.localisation.material import Prompt, Task, TestText, TrainingPair
from tokenq.reproduce.localisation.settings import QaSettings


def qa(settings: QaSettings) -> Task:
    """The task with these settings. Pairs of one question follow each other.

    A text's kind is "factual" where a factual fault is marked in it, "other" where only others are,
    "truthful" where none is; its errors are the marked spans of all kinds.
    """

    def pairs(seed: int, variant: str) -> list[TrainingPair]:
        questions = source.load("train", max_length=settings.passage_words)
        random.Random(seed).shuffle(questions)
        if len(questions) < settings.questions:
            raise UserError(
                f"{settings.questions} training questions: there are {len(questions)}; accepted up "
                "to that number"
            )
        return [pair for question in questions[: settings.questions] for pair in _decided(question)]

    def tests() -> list[TestText]:
        questions = source.load(settings.split, max_length=settings.passage_words)
        return [_text(question) for question in questions[: settings.tests]]

    return Task(pairs, tests)


def _decided(question: Question) -> list[TrainingPair]:
    found = []
    for (one, other), preferred in zip(COMPARISONS, question.preferences, strict=True):
        if preferred:
            chosen, rejected = (one, other) if preferred == 1 else (other, one)
            answers = question.answers
            found.append(TrainingPair(_prompt(question), answers[chosen], answers[rejected]))
    return found


def _text(question: Question) -> TestText:
    factual, every = question.spans(source.FACTUAL), question.spans()
    kind = "factual" if factual else "other" if every else "truthful"
    number = str(question.number)
    return TestText(number, number, kind, _prompt(question), question.answers[0], tuple(every))


def _prompt(question: Question) -> Prompt:
    return [{"role": "user", "content": question.prompt}]
