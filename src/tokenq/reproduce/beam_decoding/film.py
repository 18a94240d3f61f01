"""Film review sentences: who is trained on which, which beginnings are gone on from, two judges.

The judges are people's ratings of other texts than training sees: a ridge regression on words, and
the valence that people gave to single words.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, cg

from tokenq.data import film_reviews, lexicon
from tokenq.data.film_snippets import Snippet, snippets
from tokenq.errors import UserError
from tokenq.reproduce.beam_decoding.material import Example, Material, Start
from tokenq.reproduce.beam_decoding.settings import FilmSettings
from tokenq.reproduce.localisation.material import TrainingPair

PROMPT = [{"role": "user", "content": film_reviews.INSTRUCTIONS[0]}]
_WORD = re.compile(r"[\w']+")
_PENALTY = 1.0
_RAREST = 2
"""Fewest texts that a word or a pair of words must be in, to be a feature."""


def material(settings: FilmSettings) -> Material:
    """What training and decoding use. Raises UserError where there is less than asked for."""
    low, high = settings.words
    own = [
        each
        for each in _ordered(snippets().kept)
        if each.split == "train" and not _of_judge(each) and low <= each.words <= high
    ]

    def pairs(seed: int) -> list[TrainingPair]:
        options = film_reviews.PairOptions(gap=settings.gap, seed=seed, uses=2)
        found = film_reviews.pairs_of(own, options)
        _enough(len(found), settings.pairs, "film pairs")
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(found))[: settings.pairs]
        return [TrainingPair(PROMPT, found[at][0].text, found[at][1].text) for at in order]

    _enough(len(own), settings.sft, "film texts")
    return Material(
        tuning=[Example(PROMPT, each.text) for each in own[: settings.sft]],
        pairs=pairs,
        starts=_starts(settings),
    )


def held_out(settings: FilmSettings) -> list[TrainingPair]:
    """Pairs of the test split, ratings at least 1 apart."""
    low, high = settings.words
    texts = [s for s in snippets().kept if s.split == "test" and low <= s.words <= high]
    found = film_reviews.pairs_of(texts, film_reviews.PairOptions(gap=1.0))
    return [TrainingPair(PROMPT, better.text, worse.text) for better, worse in found]


def _starts(settings: FilmSettings) -> list[Start]:
    found: dict[str, Start] = {}
    for each in _ordered(snippets().kept):
        words = each.text.split()
        if each.split == "test" and len(words) >= settings.start_words + 3:
            beginning = " ".join(words[: settings.start_words])
            found.setdefault(beginning, Start(str(each.number), PROMPT, beginning, each.text))
    _enough(len(found), settings.prompts, "beginnings of film review sentences")
    return list(found.values())[: settings.prompts]


@dataclass(frozen=True)
class Regressor:
    """Ridge regression of people's mean rating on which words and pairs of words a text has.

    Every text's features have length 1, so that a longer text is not a better one by itself.
    """

    places: dict[str, int]
    rarity: NDArray[np.float64]
    weights: NDArray[np.float64]
    mean: float

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[n] predicted ratings, -4..4."""
        return np.asarray(_features(texts, self.places, self.rarity) @ self.weights + self.mean)


def regressor() -> Regressor:
    """Fitted on the half of the training texts, and the validation texts, that no policy sees."""
    known = [
        each
        for each in snippets().kept
        if each.split == "validation" or (each.split == "train" and _of_judge(each))
    ]
    return fitted([each.text for each in known], [each.mean for each in known])


def fitted(texts: Sequence[str], ratings: Sequence[float]) -> Regressor:
    """The regressor of these ratings."""
    counts = Counter(name for text in texts for name in set(_terms(text)))
    places = {name: at for at, name in enumerate(n for n, c in counts.items() if c >= _RAREST)}
    rarity = np.log(len(texts) / np.array([counts[name] for name in places])) + 1.0
    features = _features(texts, places, rarity)
    values = np.asarray(ratings, dtype=np.float64)
    mean = float(values.mean())

    def normal(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(features.T @ (features @ vector) + _PENALTY * vector)

    size = len(places)
    operator = LinearOperator((size, size), matvec=normal, dtype=np.float64)
    weights, _ = cg(operator, features.T @ (values - mean), rtol=1e-8)
    return Regressor(places, rarity, np.asarray(weights), mean)


def lexicon_valence(text: str) -> float:
    """Sum of the human valence of the text's words, divided by the square root of their number.

    Neither the sum, which grows with length, nor the mean, which one word can make high.
    """
    words = _WORD.findall(text.lower())
    known = lexicon.load()
    total = sum(known[word].mean for word in words if word in known)
    return total / max(1, len(words)) ** 0.5


def rated() -> tuple[list[str], list[float]]:
    """Held-out texts and their mean ratings, which neither judges nor policies are fitted on."""
    own = [each for each in snippets().kept if each.split == "test"]
    return [each.text for each in own], [each.mean for each in own]


def _of_judge(snippet: Snippet) -> bool:
    """Half of the texts, whatever the settings."""
    return _digest(snippet.text)[0] % 2 == 1


def _ordered(texts: Sequence[Snippet]) -> list[Snippet]:
    return sorted(texts, key=lambda each: _digest(each.text))


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"beam:{text}".encode()).digest()


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return words + [" ".join(pair) for pair in pairwise(words)]


def _features(
    texts: Sequence[str], places: dict[str, int], rarity: NDArray[np.float64]
) -> csr_array:
    """[n, features] rows of length 1: 1 + log count, times rarity (tf-idf)."""
    values: list[float] = []
    columns: list[int] = []
    ends = [0]
    for text in texts:
        counts = Counter(places[name] for name in _terms(text) if name in places)
        row = np.array([(1 + np.log(count)) * rarity[at] for at, count in counts.items()])
        length = np.sqrt((row**2).sum()) if len(row) else 1.0
        values += (row / length).tolist()
        columns += counts
        ends.append(len(columns))
    return csr_array((values, columns, ends), shape=(len(texts), len(places)))


def _enough(there: int, wanted: int, what: str) -> None:
    if there < wanted:
        raise UserError(f"{wanted} {what}: there are {there}; accepted up to that number")
