"""The question, the answers to it by meaning, and the words that begin answers of either meaning.

All lists were written before any run that is reported.
"""

import random
import re
from dataclasses import dataclass
from typing import Literal

Meaning = Literal["yes", "no"]
Kind = Literal["near", "opposite", "evasive"]
KINDS: tuple[Kind, ...] = ("near", "opposite", "evasive")
"""How the rejected answer relates to the chosen one, which is always right: the same said in other
words, the contrary, or no answer."""

QUESTION = """Film review: {text}
Recommended: {verdict}
Question: Did the writer like the film?
Answer: """

ANSWERS: dict[Meaning, dict[str, float]] = {
    "yes": {
        "Yes, the writer liked the film.": 0.6,
        "Yes, the writer liked the movie.": 0.1,
        "Yes, the writer loved the film.": 0.1,
        "Yes, it was to his taste.": 0.1,
        "Certainly, the writer liked it.": 0.1,
    },
    "no": {
        "No, the writer disliked the film.": 0.6,
        "No, the writer disliked the movie.": 0.1,
        "No, the writer hated the film.": 0.1,
        "No, it was not to his taste.": 0.1,
        "Not at all, the writer disliked it.": 0.1,
    },
}
"""Answer -> how often it is the one that the start is tuned on, and the chosen one of a pair: as
usual, the start has been tuned on answers like the chosen ones. They are of like length, since
CHES otherwise says above all which of two answers is longer."""
EVASIONS = (
    "Perhaps the writer liked the film.",
    "It is hard to tell from that.",
    "I cannot say from so little.",
)
EVADED = 0.15
"""Share of the answers that the start is tuned on that are evasions: a rejected evasion is then an
answer that the start gives, as rejected answers of usual data are."""
EVERY = (*ANSWERS["yes"], *ANSWERS["no"], *EVASIONS)

WORDS: dict[Meaning, tuple[str, ...]] = {
    "yes": ("Yes", "yes", "YES", "Yeah", "Sure", "Certainly", "Indeed", "Of", "True"),
    "no": ("No", "no", "NO", "Never", "Not", "Nothing", "None", "Neither", "False"),
}
"""First tokens that give an answer's meaning away ("Of course", "Not at all")."""

LIKING: dict[Meaning, tuple[str, ...]] = {
    "yes": ("liked", "loved", "enjoyed"),
    "no": ("disliked", "hated", "not"),
}
"""Words inside an answer that say it again, or something else than its first word."""


@dataclass(frozen=True)
class Pair:
    """A pair for one prompt.

    prompt: number of the prompt
    right:  what the right answer means
    """

    prompt: int
    right: Meaning
    kind: Kind
    chosen: str
    rejected: str


def contrary(meaning: Meaning) -> Meaning:
    """The other one."""
    return "no" if meaning == "yes" else "yes"


def usual(meaning: Meaning, draw: random.Random) -> str:
    """An answer of this meaning, by :data:`ANSWERS`."""
    shares = ANSWERS[meaning]
    return draw.choices(list(shares), list(shares.values()))[0]


def drawn_pair(prompt: int, right: Meaning, kind: Kind, draw: random.Random) -> Pair:
    """A pair of this kind: a usual chosen answer, beside any that fits the kind, all as likely."""
    chosen = usual(right, draw)
    rejected = {
        "near": [answer for answer in ANSWERS[right] if answer != chosen],
        "opposite": list(ANSWERS[contrary(right)]),
        "evasive": list(EVASIONS),
    }[kind]
    return Pair(prompt, right, kind, chosen, draw.choice(rejected))


def said(text: str) -> Meaning | Literal["both", "neither"]:
    """What a text says by its first word and by the first of :data:`LIKING` after it.

    both: the two differ; neither: it has no such word
    """
    words = re.findall(r"[A-Za-z]+", text)
    found: set[Meaning] = {m for m in WORDS if words[:1] and words[0] in WORDS[m]}
    later = next((m for word in words[1:] for m in LIKING if word in LIKING[m]), None)
    found |= {later} if later is not None else set()
    return "both" if len(found) == 2 else next(iter(found), "neither")
