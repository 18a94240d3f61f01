"""What is counted of one answer. Numbers only; which of them are good is for the analysis."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenq.reproduce.beam_decoding import debian, film
from tokenq.reproduce.beam_decoding.decoding import Answer
from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM
from tokenq.reproduce.beam_decoding.tasks import BeamTask, DebianTask

RATING, VALENCE = "rating", "valence"
REWARD, OVERLAP = "reward", "overlap"
JUDGES: dict[str, tuple[str, str]] = {FILM: (RATING, VALENCE), DEBIAN: (REWARD, OVERLAP)}
"""Of each task, the two by which answers are compared; training has seen neither."""
LENGTH, UNSUPPORTED = "tokens", "unsupported"
_WORD = re.compile(r"[\w']+")

Numbers = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """texts, numbers: one a start."""

    texts: list[str]
    numbers: list[Numbers]


class Measures:
    """Measures the answers of one task."""

    def __init__(self, task: BeamTask) -> None:
        self._task = task
        self.rater = film.regressor() if task.name == FILM else None

    def __call__(
        self, answers: Sequence[Answer], scores: Mapping[str, Sequence[float]]
    ) -> Measured:
        """answers, scores: one for each of the first starts."""
        texts = self._task.texts([each.token_ids for each in answers])
        rows: list[Numbers] = []
        for place, (answer, text) in enumerate(zip(answers, texts, strict=True)):
            words = _WORD.findall(text.lower())
            rows.append(
                {
                    LENGTH: float(len(answer.token_ids)),
                    "words": float(len(text.split())),
                    "ended": float(answer.ended),
                    "fluency": scores["fluency"][place],
                    "logp": answer.logp,
                    "distinct words": _distinct(words, 1),
                    "distinct pairs": _distinct(words, 2),
                    **self._own(place, text, scores),
                }
            )
        if self.rater is not None:
            for row, rating in zip(rows, self.rater(texts).tolist(), strict=True):
                row[RATING] = rating
        return Measured(texts, rows)

    def _own(self, place: int, text: str, scores: Mapping[str, Sequence[float]]) -> Numbers:
        if isinstance(self._task, DebianTask):
            package = self._task.packages.tests[place]
            counted = debian.checks(text, package.text, package.synopsis)
            copied = {} if counted.copied is None else {"copied": counted.copied}
            return {
                REWARD: scores["judge"][place],
                OVERLAP: counted.overlap,
                UNSUPPORTED: counted.unsupported,
                "foreign": counted.foreign,
                **copied,
            }
        return {VALENCE: film.lexicon_valence(text)}


def _distinct(words: Sequence[str], size: int) -> float:
    """Share of runs of `size` words that are not a repetition; 1 where there is none."""
    runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
