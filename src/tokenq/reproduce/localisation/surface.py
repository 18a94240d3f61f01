"""What the surface of a text does to its reward: the same words with another end, case or quotes.

Implicit rewards are known to key on surface tokens (Razin et al., arXiv 2507.07981). Trained on
film review pairs as they are; of a held-out pair the better text is changed in a way that leaves
what it says alone, and compared again with the worse one, which is not changed.
"""

from tokenq.data import film_reviews
from tokenq.data.perturbations import perturb
from tokenq.demo.material import answers
from tokenq.errors import UserError
from tokenq.reproduce.localisation.film import PROMPT, film
from tokenq.reproduce.localisation.material import Task, TestText
from tokenq.reproduce.localisation.settings import SurfaceSettings

CHOSEN, REJECTED = "chosen", "rejected"
CHANGES = (
    "full_stop",
    "first_letter",
    "newline",
    "leading_blank",
    "double_blank",
    "quoted",
    "curly_quotes",
    "bold",
)
"""Names of `data.perturbations` that keep the words. The others, a synonym and a paraphrase, were
made for summaries of software: the planted task has them."""


def surface(settings: SurfaceSettings) -> Task:
    """Film review pairs to train on, and held-out pairs with all versions of the better text.

    A text's kind is "rejected", "chosen", or the name of a change of the chosen one; a change
    that leaves a text as it is makes no text.
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
    versions |= {name: text for name, text in perturb(chosen).items() if name in CHANGES}
    return [
        TestText(f"{number}:{kind}", str(number), kind, PROMPT, text)
        for kind, text in versions.items()
    ]
