"""A language whose true quality can be computed: a prompt names two topics, a text is clauses.

A clause is a noun, a verb, an adverb and a full stop. Quality is a mean over tokens, so that a
longer text is no better by itself. Token ids only: no text, no tokenizer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

PAD, EOS, BOS = 0, 1, 2
TOPICS, NOUNS_PER_TOPIC, VERBS, ADVERBS = 6, 4, 8, 9
NOUNS = TOPICS * NOUNS_PER_TOPIC
TOPIC = 3
NOUN = TOPIC + TOPICS
VERB = NOUN + NOUNS
ADVERB = VERB + VERBS
STOP = ADVERB + ADVERBS
SLASH = STOP + 1
VOCABULARY = SLASH + 1
CLAUSE = 4
"""Tokens of a clause."""

TONES = (1.0, 0.5, 0.0)
"""Quality of the tones, which adverbs have in turn."""
ENDING = 0.25
"""Probability that a text ends after a clause, whoever writes it."""
MOST_CLAUSES = 10

_FIRST_AND_COUNT = {"noun": (NOUN, NOUNS), "verb": (VERB, VERBS), "adverb": (ADVERB, ADVERBS)}

Ids = list[int]


@dataclass(frozen=True)
class Format:
    """Order of the words in a clause, and the token that closes it."""

    order: tuple[str, str, str]
    close: int


PLAIN = Format(("noun", "verb", "adverb"), STOP)
INVERTED = Format(("adverb", "noun", "verb"), SLASH)


@dataclass(frozen=True)
class Clause:
    """Numbers of the words, each from 0."""

    noun: int
    verb: int
    adverb: int

    def quality(self, topics: Sequence[int]) -> float:
        """In [0, 1]: mean of on topic, verb agrees with noun, and tone."""
        on_topic = self.noun // NOUNS_PER_TOPIC in topics
        agrees = self.noun % 2 == self.verb % 2
        return (on_topic + agrees + TONES[self.adverb % 3]) / 3


@dataclass(frozen=True)
class Text:
    """What a response consists of.

    clauses: the well-formed clauses in their order
    length:  tokens without EOS, those outside of clauses included
    ended:   an EOS closes it
    """

    clauses: tuple[Clause, ...]
    length: int
    ended: bool

    @property
    def malformed(self) -> float:
        """Share of the tokens that stand outside of clauses; 0 for an empty text."""
        return 1 - CLAUSE * len(self.clauses) / self.length if self.length else 0.0

    @property
    def repeated(self) -> float:
        """Share of the clauses that stood before in the text; 0 without clauses."""
        count = len(self.clauses)
        return 1 - len(set(self.clauses)) / count if count else 0.0


def prompt_of(topics: Sequence[int]) -> Ids:
    """Token ids of the prompt that names these topics."""
    return [BOS, *(TOPIC + topic for topic in topics)]


def topics_of(prompt: Sequence[int]) -> list[int]:
    """The topics that a prompt names."""
    return [token - TOPIC for token in prompt[1:]]


def prompts(count: int, draw: random.Random) -> list[Ids]:
    """Prompts with two different topics each."""
    return [prompt_of(draw.sample(range(TOPICS), 2)) for _ in range(count)]


def parse(response: Sequence[int], form: Format = PLAIN) -> Text:
    """Read a response up to its first EOS; what fits no clause is left out, token by token."""
    ids = list(response)
    ended = EOS in ids
    ids = ids[: ids.index(EOS)] if ended else ids
    clauses = []
    at = 0
    while at < len(ids):
        clause = _clause(ids[at : at + CLAUSE], form)
        at += 1 if clause is None else CLAUSE
        if clause is not None:
            clauses.append(clause)
    return Text(tuple(clauses), len(ids), ended)


def quality(prompt: Sequence[int], response: Sequence[int], form: Format = PLAIN) -> float:
    """True quality in [0, 1]: mean over tokens of the quality of the clause they stand in.

    Tokens outside of a clause count 0, and so does a clause that stood before in the text. An empty
    text has quality 0. Length neither helps nor hurts: a text of equally good, different clauses
    has the quality of one of them.
    """
    text = parse(response, form)
    if not text.length:
        return 0.0
    topics = topics_of(prompt)
    return CLAUSE * sum(clause.quality(topics) for clause in set(text.clauses)) / text.length


@dataclass(frozen=True)
class Writer:
    """Writes texts with a skill in [0, 1] that is drawn anew for each text.

    Each word is the right one with probability `skill`, else any of its kind; any token slips to
    any other with probability (1 - skill) / 10. Length has nothing to do with skill.

    lowest, highest: bounds of the skill
    form:            format of the clauses
    """

    lowest: float
    highest: float
    form: Format = PLAIN

    def write(self, prompt: Sequence[int], draw: random.Random) -> Ids:
        """Return the token ids of a text about the prompt's topics, closed by EOS."""
        skill = draw.uniform(self.lowest, self.highest)
        ids: Ids = []
        for _ in range(MOST_CLAUSES):
            ids += self._clause(topics_of(prompt), skill, draw)
            if draw.random() < ENDING:
                break
        slip = (1 - skill) / 10
        written = [draw.randrange(TOPIC, VOCABULARY) if draw.random() < slip else t for t in ids]
        return [*written, EOS]

    def _clause(self, topics: Sequence[int], skill: float, draw: random.Random) -> Ids:
        noun = draw.randrange(NOUNS)
        if draw.random() < skill:
            noun = draw.choice(topics) * NOUNS_PER_TOPIC + draw.randrange(NOUNS_PER_TOPIC)
        verb = draw.randrange(VERBS)
        if draw.random() < skill:
            verb = 2 * draw.randrange(VERBS // 2) + noun % 2
        adverb = draw.randrange(ADVERBS)
        if draw.random() < skill:
            adverb = 3 * draw.randrange(ADVERBS // 3)
        words = {"noun": NOUN + noun, "verb": VERB + verb, "adverb": ADVERB + adverb}
        return [*(words[kind] for kind in self.form.order), self.form.close]


def _clause(ids: Sequence[int], form: Format) -> Clause | None:
    if len(ids) != CLAUSE or ids[-1] != form.close:
        return None
    words = {}
    for kind, token in zip(form.order, ids, strict=False):
        first, count = _FIRST_AND_COUNT[kind]
        if not first <= token < first + count:
            return None
        words[kind] = token - first
    return Clause(**words)
