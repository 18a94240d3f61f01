"""Edits of a one-line summary that make exactly one of its details wrong.

An edit is proposed only where the text that is summarised states the true detail and mentions the
wrong one nowhere, so that a reader of both can tell.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from tokenq.data import planted_words as lists

KINDS = ("number", "entity", "antonym", "position")

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9+#'._/-]*")
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!ni|s[aei]|ti)|8|11\b|18\b)", re.IGNORECASE)
# Spelled out ("an FTP") or spoken as a word ("a FAT")? Nothing in the letters tells.
_UNSURE_SOUND = re.compile(r"[FHLMNRSUX][A-Z0-9]")
# Terms whose first word has no opposite that would make sense.
_FIXED = re.compile(
    r"(?:input method|output method|writing systems?|reading list|long (?:term|double)|"
    r"open (?:source|data|street)|first class|"
    r"host ?name|file system|hard (?:disk|drive|link)|full text|full screen|regular expression|"
    r"random (?:access|number)|color scheme|single sign|linear algebra|small talk|native "
    r"language|simple (?:mail|network|object|direct)|fast (?:fourier|cgi)|deep learning|soft|"
    r"input device|free ?(?:type|dict|bsd|desktop|radius|ipa|rdp)|local host)",
    re.IGNORECASE,
)
# A swap around "to" needs a sign that one thing is turned into the other.
_TURNING = re.compile(r"\b(?:conver|transform|translat|turn|from\b|map)", re.IGNORECASE)
_BOTH_WAYS = re.compile(r"vice[ -]versa|bidirection|both (?:ways|directions)|back and forth", re.I)
# "Python bindings to X" and "X bindings to Python" are the same thing, for these nouns.
_SYMMETRIC = re.compile(r"binding|bridge|gateway|link|glue|interface between|adapter|connector")
_FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "and", "or", "of", "for", "to", "with", "your", "any", "all", "it", "its"}
)


class Word(NamedTuple):
    """A word of a text and its characters ``start..end``."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Edit:
    """Characters ``start..end`` of a summary become ``new``. ``sort`` says which list allows it;
    ``old`` is what stood there."""

    kind: str
    sort: str
    start: int
    end: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        """``text`` after the edit."""
        return text[: self.start] + self.new + text[self.end :]

    @property
    def span(self) -> tuple[int, int]:
        """The characters of the new detail in the edited text."""
        return self.start, self.start + len(self.new)


@lru_cache(maxsize=16)
def words_of(text: str) -> tuple[Word, ...]:
    """Words with their places; signs at a word's end do not belong to it."""
    found = []
    for match in _WORD.finditer(text):
        bare = match.group().rstrip("._/-'")
        if bare:
            found.append(Word(bare, match.start(), match.start() + len(bare)))
    return tuple(found)


def stated(text: str, detail: str) -> bool:
    """Whether ``text`` has the word, upper and lower case alike, endings of the word aside."""
    return bool(_stating(detail).search(text))


def absent(text: str, detail: str) -> bool:
    """Whether ``text`` has nothing that could be a form of the word; parts of words count."""
    lowered, part = text.lower(), _core(detail.lower())
    if len(part) < 4:
        return not re.search(rf"(?<![a-z]){re.escape(part)}(?![a-z])", lowered)
    return part not in lowered and detail.lower().replace("-", "") not in lowered.replace("-", "")


def same_article(text: str, start: int, old: str, new: str) -> bool:
    """Whether "a" or "an" before the place still fits."""
    before = text[:start].rstrip().rpartition(" ")[2].lower()
    if before not in ("a", "an"):
        return True
    if _UNSURE_SOUND.match(old) or _UNSURE_SOUND.match(new):
        return False
    return bool(_VOWEL_SOUND.match(old)) == bool(_VOWEL_SOUND.match(new))


def like(old: str, new: str) -> str:
    """``new`` with the first letter as large as that of ``old``, for plain words."""
    return new[:1].upper() + new[1:] if old[:1].isupper() and old[1:].islower() else new


def error_edits(summary: str, description: str) -> list[Edit]:
    """All edits that make one detail of ``summary`` wrong, by the place they change."""
    found = [
        *_entities(summary, description),
        *_opposites(summary, description, "antonym", lists.ANTONYMS),
        *_opposites(summary, description, "position", lists.DIRECTIONS),
        *_numbers(summary, description),
        *_swaps(summary, description),
    ]
    return [
        edit
        for edit in found
        if same_article(summary, edit.start, edit.old, edit.new)
        and not stated(summary[: edit.start] + summary[edit.end :], edit.old)
    ]


def _entities(summary: str, description: str) -> Iterator[Edit]:
    everything = f"{summary}\n{description}"
    for word in words_of(summary):
        for sort, group in _entity_groups().get(word.text, ()):
            if not stated(description, word.text):
                continue
            for other in group:
                if _far(word.text, other) and _names_absent(everything, other):
                    yield Edit("entity", sort, word.start, word.end, word.text, other)


def _opposites(
    summary: str, description: str, kind: str, pairs: tuple[tuple[str, ...], ...]
) -> Iterator[Edit]:
    everything = f"{summary}\n{description}"
    table = _opposite_table(pairs)
    for word in words_of(summary):
        if _FIXED.match(summary[word.start :]):
            continue
        for other in table.get(word.text.lower(), ()):
            if stated(description, word.text) and absent(everything, other):
                sort = "/".join(sorted((word.text.lower(), other)))
                yield Edit(kind, sort, word.start, word.end, word.text, like(word.text, other))


def _numbers(summary: str, description: str) -> Iterator[Edit]:
    everything = f"{summary}\n{description}"
    for word in words_of(summary):
        for scale in lists.NUMBER_WORDS:
            if word.text in scale or word.text.lower() in scale:
                own = word.text if word.text in scale else word.text.lower()
                for other in scale:
                    if other != own and stated(description, own) and absent(everything, other):
                        new = like(word.text, other)
                        yield Edit("number", "word", word.start, word.end, word.text, new)
    for match in re.finditer(r"(?<![\w.+/-])\d+(?:\.\d+)*(?=-?bits?\b|\b(?![\w.+/-]))", summary):
        number = match.group()
        # Of some things all packages have one version: nothing need be read to know it.
        if summary[: match.start()].endswith("Python ") or not _has_number(description, number):
            continue
        bits = bool(re.match(r"[- ]?bits?\b", summary[match.end() :]))
        sort = "bit" if bits else ("version" if "." in number else "count")
        for other in _other_numbers(number, bits):
            if not _has_number(everything, other):
                yield Edit("number", sort, match.start(), match.end(), number, other)


def _swaps(summary: str, description: str) -> Iterator[Edit]:
    """Two details around one word change places; the characters between them belong to the edit."""
    if _BOTH_WAYS.search(description) or _SYMMETRIC.search(summary) or "::" in summary:
        return
    words = words_of(summary)
    for i, middle in enumerate(words):
        if middle.text not in lists.SWAPS or not 0 < i < len(words) - 1:
            continue
        right = words[i + 1]
        turning = middle.text in ("to", "into") and bool(_TURNING.search(summary))
        # "HTML files to LaTeX": the name may stand before the noun that it describes.
        named = [w for w in (words[i - 1], words[max(0, i - 2)]) if _technical(w, summary)]
        if named and _technical(right, summary):
            left = named[0]
        elif turning and _noun_like(words[i - 1]) and _noun_like(right):
            left = words[i - 1]
        else:
            continue
        between = summary[left.end : right.start]
        if not re.fullmatch(r"[\w ]+", between) or left.text.lower() == right.text.lower():
            continue
        if not (stated(description, left.text) and stated(description, right.text)):
            continue
        reverse = rf"\b{re.escape(right.text)}\b.{{0,30}}\b{middle.text}\b.{{0,30}}\b"
        if re.search(reverse + re.escape(left.text), description, re.IGNORECASE):
            continue
        new = f"{right.text}{between}{left.text}"
        old = summary[left.start : right.end]
        yield Edit("position", f"X {middle.text} Y", left.start, right.end, old, new)


def _technical(word: Word, text: str) -> bool:
    """A name: of one of the lists, or with a capital or digit that no sentence start explains."""
    if word.text.casefold() in _entity_names():
        return True
    letters = word.text[1:] if word.start == 0 else word.text
    return any(c.isupper() for c in letters) or any(c.isdigit() for c in word.text)


def _noun_like(word: Word) -> bool:
    return word.text.lower() not in _FUNCTION_WORDS and word.text.isalpha()


def _far(word: str, other: str) -> bool:
    if word == other:
        return False
    return not any(word in close and other in close for close in lists.TOO_CLOSE)


def _names_absent(text: str, name: str) -> bool:
    """Neither the name nor another name of the same thing is in ``text``."""
    others = [alias for names in lists.ALIASES if name in names for alias in names]
    return all(absent(text, each) for each in {name, *others})


def _other_numbers(number: str, bits: bool) -> list[str]:
    """Numbers of the same look: near it, as many digits, one part of a version changed."""
    if bits:
        return [each for each in lists.NUMBER_POOLS["bit"] if each != number]
    head, dot, tail = number.rpartition(".")
    if len(tail) > 1 and tail[0] == "0":
        return []
    value = int(tail)
    reach = max(3, min(value // 5, 50))
    near = range(max(10 ** (len(tail) - 1), 1 if not dot else 0), 10 ** len(tail))
    return [f"{head}{dot}{each}" for each in near if each != value and abs(each - value) <= reach]


def _has_number(text: str, number: str) -> bool:
    spelled = {"1": "one", **{str(n): word for n, word in enumerate(lists.NUMBER_WORDS[0], 2)}}
    if number in spelled and stated(text, spelled[number]):
        return True
    return bool(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", text))


@cache
def _stating(detail: str) -> re.Pattern[str]:
    stem = re.sub(r"(?:ing|ed|es|s)$", "", detail) if len(detail) >= 6 else detail
    endings = r"(?:ing|ed|es|s|e)?" if stem.islower() else r"s?"
    return re.compile(rf"(?<![A-Za-z]){re.escape(stem)}{endings}(?![A-Za-z])", re.IGNORECASE)


@cache
def _core(word: str) -> str:
    """What the forms of an English word have in common; at least four letters of a long word."""
    bare = re.sub(r"(?:ization|ations?|ions?|ings?|ers?|ors?|ed|es|ly|s|e)$", "", word)
    return bare if len(bare) >= 4 else word


@cache
def _entity_groups() -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    groups: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for sort, names in lists.ENTITIES.items():
        for name in names:
            groups.setdefault(name, []).append((sort, names))
    return groups


@cache
def _entity_names() -> frozenset[str]:
    return frozenset(name.casefold() for names in lists.ENTITIES.values() for name in names)


@cache
def _opposite_table(pairs: tuple[tuple[str, ...], ...]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for one, other in pairs:
        table.setdefault(one, []).append(other)
        table.setdefault(other, []).append(one)
    return table
