"""What the surface of a text does to its reward: the same words with another end, case or quotes.

Implicit rewards are known to key on surface tokens (Razin et al., arXiv 2507.07981). Trained on
film review pairs as they are; of a held-out pair the better text is changed in a way that leaves
what it says alone, and compared again with the worse one, which is not changed.
"""

import re
from collections.abc import Callable

from tokenq.data import film_reviews
from tokenq.demo.material import answers
from tokenq.errors import UserError
from tokenq.reproduce.localisation.film import PROMPT, film
from tokenq.reproduce.localisation.material import Task, TestText
from tokenq.reproduce.localisation.settings import SurfaceSettings

CHOSEN, REJECTED = "chosen", "rejected"
_QUOTES = "\u201c", "\u201d"


def _full_stop(text: str) -> str:
    return text[:-1] if text.endswith(".") else f"{text}."


CHANGES: dict[str, Callable[[str], str]] = {
    "full stop": _full_stop,
    "first letter": lambda text: re.sub(r"[^\W\d_]", lambda m: m[0].swapcase(), text, count=1),
    "line break": lambda text: f"{text}\n",
    "quotes": lambda text: text.join(_QUOTES),
    "two blanks": lambda text: text.replace(" ", "  ", 1),
    "exclamation": lambda text: f"{text.rstrip('.')}!",
}
"""Each text to the same words on another surface. "full stop" is put there or taken away; the
exclamation mark replaces it, and is the one change of which one may argue that it says something.
"""


def surface(settings: SurfaceSettings) -> Task:
    """Film review pairs to train on, and held-out pairs with all versions of the better text.

    A text's kind is "rejected", "chosen", or the name of a change of the chosen one.
    """

    def tests() -> list[TestText]:
        options = film_reviews.PairOptions(gap=settings.test_gap, seed=0)
        every = [answers(row) for row in film_reviews.load(settings.film.split, options)]
        longest = settings.film.test_words
        pairs = [pair for pair in every if max(len(text.split()) for text in pair) <= longest]
        if len(pairs) < settings.tests:
            raise UserError(
                f"{settings.tests} film pairs of at most {longest} words: there are {len(pairs)}; "
                "accepted up to that number"
            )
        return [
            text
            for number, pair in enumerate(pairs[: settings.tests])
            for text in _of(number, pair)
        ]

    return Task(film(settings.film).pairs, tests)


def _of(number: int, pair: tuple[str, str]) -> list[TestText]:
    chosen, rejected = pair
    versions = {REJECTED: rejected, CHOSEN: chosen}
    versions |= {name: change(chosen) for name, change in CHANGES.items()}
    return [
        TestText(f"{number}:{kind}", str(number), kind, PROMPT, text)
        for kind, text in versions.items()
    ]
