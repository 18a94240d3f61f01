"""Sentences of film reviews with the ratings that about 18 people gave each of them.

The texts are cleaned here and assigned to train, validation or test; pairs are made elsewhere.
"""

import hashlib
import html
import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import cache

from tokenq.data.registry import fetch_member

ABOUT = """\
Film review snippets with raw sentiment ratings (-4 very negative .. 4 very positive) by 15 to 29
people each (median 18).

Origin:   movieReviewSnippets in PyPI vaderSentiment 0.5; sentences from Rotten Tomatoes reviews
          collected by Pang & Lee, ratings collected by Hutto & Gilbert.
Licence:  MIT (the package; the sentences are short quotations from their reviewers).
Citation: C.J. Hutto and E.E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
          Analysis of Social Media Text", ICWSM 2014.
Changed:  hyphens were already gone at the origin; spacing, quotation marks and first letters are
          repaired; very short, masked and repeated texts are left out.
"""

SPLITS = ("train", "validation", "test")
MIN_WORDS = 4
"""Below that ("Horrible.", "Family fare.") it is a label rather than a sentence of a review."""


@dataclass(frozen=True)
class Snippet:
    """One rated text. ``mean`` and ``sd`` (population) are those of ``ratings``, each -4..4."""

    number: int
    text: str
    mean: float
    sd: float
    ratings: tuple[int, ...]

    @property
    def words(self) -> int:
        """Number of words, as blanks part them."""
        return len(self.text.split())

    @property
    def split(self) -> str:
        """``train`` (80 %), ``validation`` or ``test`` (10 % each).

        It depends on the text's letters and digits alone, so no option, seed or change of
        cleaning moves a text from one part to another.
        """
        letters = "".join(filter(str.isalnum, self.text.lower()))
        bucket = int.from_bytes(hashlib.sha256(letters.encode()).digest()[:8], "big") % 10
        return SPLITS[max(0, bucket - 7)]


@dataclass(frozen=True)
class SnippetTable:
    """The texts that were kept, and how many were left out for which reason."""

    kept: tuple[Snippet, ...]
    dropped: dict[str, int]


@cache
def snippets() -> SnippetTable:
    """All snippets, in the order of the source; fetched once, then read from the cache.

    Raises :class:`UserError` when the data cannot be had.
    """
    texts, ratings = _read()
    kept: list[Snippet] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for number, raw in texts.items():
        text = clean(raw)
        reason = _reason_to_drop(text, seen)
        if reason:
            dropped[reason] += 1
            continue
        seen.add(text.lower())
        mean, sd, given = ratings[number]
        kept.append(Snippet(number, text, mean, sd, given))
    return SnippetTable(tuple(kept), dict(dropped))


def clean(raw: str) -> str:
    """Repair what the source's own processing did to a text; no word is changed."""
    text = html.unescape(raw.replace("\ufffd", "")).strip()
    text = text.replace("''", '"').replace("`", "'")
    # " -- " became four blanks (three where one side touched); two are only a wide space.
    text = re.sub(r" {3,}", " \u2013 ", text)
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r" +([,;:!?])", r"\1", text)
    text = re.sub(r"^\.\.\. ?", "", text)
    text = _without_enclosing_quotes(text)
    return text[:1].upper() + text[1:]


def _without_enclosing_quotes(text: str) -> str:
    """A snippet quoted as a whole loses its marks; one that holds several quotations keeps them."""
    for mark in ('"', "'"):
        inner = text[1:-1]
        reopened = re.search(rf"(^|[\s(]){mark}", inner) or (mark == '"' and mark in inner)
        if len(text) > 2 and text[0] == text[-1] == mark and not reopened:
            return inner.strip()
    return text


def _reason_to_drop(text: str, seen: set[str]) -> str | None:
    if len(text.split()) < MIN_WORDS:
        return f"fewer than {MIN_WORDS} words"
    if "**" in text:
        return "masked word"
    if text.lower() in seen:
        return "repeated text"
    return None


def _read() -> tuple[dict[int, str], dict[int, tuple[float, float, tuple[int, ...]]]]:
    """Texts and (mean, sd, ratings), both by the source's number."""
    archive = fetch_member(
        "vaderSentiment==0.5",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
        source_distribution=True,
    )
    with tarfile.open(archive) as opened:
        text_rows = _rows(opened, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        rating_rows = _rows(opened, "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt")
    texts = {int(number): text for number, _, text in text_rows}
    ratings = {}
    for number, _, _, listed in rating_rows:
        given = tuple(json.loads(listed))
        mean = sum(given) / len(given)
        sd = (sum((rating - mean) ** 2 for rating in given) / len(given)) ** 0.5
        ratings[int(number)] = (mean, sd, given)
    return texts, ratings


def _rows(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    member = archive.extractfile(name)
    assert member is not None  # the archive's hash has been checked
    lines = io.TextIOWrapper(member, encoding="utf-8-sig", errors="replace", newline="\n")
    return [line.rstrip("\r\n").split("\t") for line in lines]
