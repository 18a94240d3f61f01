"""The VADER lexicon: words with the valence that ten people gave each, a truth about tokens."""

import json
from dataclasses import dataclass
from functools import cache

from tokenq.data.registry import fetch_member

ABOUT = """\
VADER lexicon: 7,506 English words, abbreviations and emoticons, each rated by ten people from -4
(extremely negative) to 4 (extremely positive).

Origin:   vader_lexicon.txt in PyPI vaderSentiment 3.3.2.
Licence:  MIT.
Citation: C.J. Hutto and E.E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
          Analysis of Social Media Text", ICWSM 2014.
"""


@dataclass(frozen=True)
class LexiconEntry:
    """``mean`` and ``sd`` (population) of the ten ``ratings``, each -4..4."""

    mean: float
    sd: float
    ratings: tuple[int, ...]


@cache
def load() -> dict[str, LexiconEntry]:
    """Every entry by its (lower-case) word; do not change the returned dict, it is shared.

    The file lists 14 entries twice; the later one counts, as in VADER itself. Mean and sd are
    computed from the ratings (the file's rounded mean agrees for all entries but "lmfao").

    Raises :class:`UserError` when the data cannot be had.
    """
    path = fetch_member(
        "vaderSentiment==3.3.2",
        "3bf1d243b98b1afad575b9f22bc2cb1e212b94ff89ca74f8a23a588d024ea311",
        "vaderSentiment/vader_lexicon.txt",
    )
    entries = {}
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            word, _, _, listed = line.rstrip("\r\n").split("\t")
            ratings = tuple(json.loads(listed))
            mean = sum(ratings) / len(ratings)
            sd = (sum((rating - mean) ** 2 for rating in ratings) / len(ratings)) ** 0.5
            entries[word] = LexiconEntry(mean, sd, ratings)
    return entries
