"""Summaries with one planted wrong detail whose place is known, and other wordings, still true."""

import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tokenq.data.debian import Description, read
from tokenq.data.human_labels import leading, word_count
from tokenq.data.pair_rows import pair_row
from tokenq.data.planted_edits import KINDS, Edit, error_edits
from tokenq.data.planted_wordings import consistent_edits, paraphrases
from tokenq.errors import UserError
from tokenq.storage import atomic_file, cache_dir, discard_parts, locked

SPLITS = ("train", "validation", "test")
MODES = ("minimal", "loose")
INSTRUCTION = "Summarise this software package in one line."
MAX_WORDS = 120
"""Longest description in a prompt; whole paragraphs beyond it are left out."""
MIN_WORDS = 15
"""Shortest description that an error is planted against."""

# Sections whose packages say nothing of their own, and synopses that are about packaging.
_SECTIONS = frozenset({"debug", "metapackages", "tasks", "oldlibs", "localization"})
_PACKAGING = re.compile(
    r"[()\[\];]|\s[-\u2013]+\s|transitional|dummy|meta-?package|documentation|development|debug|"
    r"common files|data files|source code|runtime|\bdocs?\b|\bheaders?\b|\bdevel\b|shared librar|"
    r"static librar|architecture-|\bexamples\b|virtual package|\bsymbols\b|"
    r"\b(?:and|or|the|of|for|with|to|in|a|an|using|by)$|\.\.",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[A-Z][^.!?:\n]{30,170}(?=\.(?:\s|$))")


@dataclass(frozen=True)
class Planted:
    """A wording with the wrong detail in it: ``text``, and the detail's characters ``span``."""

    text: str
    span: tuple[int, int]


@dataclass(frozen=True)
class PlantedItem:
    """One package: its description as a prompt, true summaries, and one wrong in one detail.

    All spans are characters ``(start, end)``. ``truthful`` is the maintainer's own; ``error_span``
    is the wrong detail in ``erroneous``, ``removed_span`` the true one in ``truthful``.
    ``paraphrase`` is the same said otherwise, ``consistent`` has one word (``consistent_span``)
    replaced by one that means the same. ``chosen`` and ``rejected`` are the training pair of the
    mode, ``rejected_span`` the wrong detail in ``rejected``.
    """

    package: str
    source: str
    kind: str
    sort: str
    prompt: str
    truthful: str
    erroneous: str
    error_span: tuple[int, int]
    removed_span: tuple[int, int]
    paraphrase: str
    consistent: str
    consistent_span: tuple[int, int]
    chosen: str
    rejected: str
    rejected_span: tuple[int, int]


def load(
    split: str = "train",
    *,
    kinds: Iterable[str] = KINDS,
    seed: int = 0,
    count: int | None = None,
    mode: str = "minimal",
) -> list[PlantedItem]:
    """Items of one split, in random order; as many of each kind as there are, if ``count`` is not
    reached earlier.

    A source package is in one split and of one kind, whatever the arguments; so items of kinds
    left out of training are never about packages of training. ``seed`` draws which detail is
    changed into what, the wordings and the order.

    ``mode="minimal"``: chosen is the maintainer's summary, rejected differs in the detail only.
    ``mode="loose"``: the two are also worded differently (own words, paraphrase, one word
    replaced; each as often on either side), so that a difference does not give the place away.

    Raises :class:`UserError` for a split, kind or mode that is not known, for more items than can
    be made, and when the descriptions cannot be had.
    """
    kinds = tuple(kinds)
    _check("split", (split,), SPLITS)
    _check("kind", kinds, KINDS)
    _check("mode", (mode,), MODES)
    items: dict[str, list[PlantedItem]] = {kind: [] for kind in kinds}
    for material in _materials():
        if material.split == split and material.kind in items:
            draw = random.Random(f"{seed}:{material.description.source}")
            if item := _item(material, mode, draw):
                items[material.kind].append(item)
    ordered = [_balanced(items[kind], random.Random(f"{seed}:{kind}")) for kind in kinds]
    available = sum(map(len, ordered))
    if count is not None and count > available:
        raise UserError(
            f"planted errors: {count} items are asked for and split {split!r} has {available} of "
            f"the kinds {', '.join(kinds)}; ask for fewer or for more kinds"
        )
    chosen = list(_in_turn(ordered))[:count]
    random.Random(f"{seed}:order").shuffle(chosen)
    return chosen


def rows(items: Sequence[PlantedItem], *, format: str = "chat") -> list[dict[str, Any]]:
    """Preference rows ``prompt``, ``chosen``, ``rejected``; see :func:`pair_row` for ``format``."""
    return [pair_row(item.prompt, item.chosen, item.rejected, format) for item in items]


@dataclass(frozen=True)
class _Material:
    """One source package with a summary and the edits of one kind that can be made in it."""

    description: Description
    summary: str
    text: str
    kind: str
    edits: tuple[Edit, ...]

    @property
    def split(self) -> str:
        digest = hashlib.sha256(self.description.source.encode()).digest()
        bucket = int.from_bytes(digest[:8], "big") % 10
        return ("test", "test", "validation")[bucket] if bucket < 3 else "train"


@cache
def _materials() -> tuple[_Material, ...]:
    """All that errors can be planted in, one per source package and per text of a summary.

    Found once for the descriptions, the lists and the rules as they are, then read from the cache.
    """
    descriptions = read().descriptions
    path = cache_dir("assets", "planted") / f"{_fingerprint(descriptions)}.jsonl"
    if not path.exists():
        with locked(path):
            if not path.exists():
                discard_parts(path)
                _write(path, _find(descriptions))
    with path.open(encoding="utf-8", newline="\n") as lines:
        return tuple(_from_json(json.loads(line)) for line in lines)


def _find(descriptions: Sequence[Description]) -> list[_Material]:
    """A package that allows several kinds is given to the one that the fewest packages allow."""
    print("tokenq: looking for details in package descriptions (once)", file=sys.stderr, flush=True)
    found: dict[str, list[_Material]] = defaultdict(list)
    for description in descriptions:
        for material in _in_package(description):
            found[description.source].append(material)
    common = Counter(kind for each in found.values() for kind in {m.kind for m in each})
    kept: list[_Material] = []
    seen: set[str] = set()
    for source in sorted(found):
        for material in sorted(found[source], key=lambda m: common[m.kind]):
            if material.summary.lower() not in seen:
                seen.add(material.summary.lower())
                kept.append(material)
                break
    return kept


def _fingerprint(descriptions: Sequence[Description]) -> str:
    """Of the descriptions and of the code and lists that errors are planted by."""
    digest = hashlib.sha256()
    for name in ("planted", "planted_edits", "planted_wordings", "planted_words"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    for each in descriptions:
        digest.update(f"{each.package}\0{each.source}\0{each.synopsis}\0{each.text}\0".encode())
    return digest.hexdigest()[:16]


def _write(path: Path, materials: Sequence[_Material]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as written:
        written.writelines(
            json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in materials
        )


def _from_json(row: dict[str, Any]) -> _Material:
    description = Description(**row.pop("description"))
    edits = tuple(Edit(**edit) for edit in row.pop("edits"))
    return _Material(description=description, edits=edits, **row)


def _in_package(description: Description) -> Iterator[_Material]:
    """What can be planted in the synopsis; failing that, in the first sentence of the long text.

    A first sentence is then taken out of the text, which has to state the detail once more.
    """
    if description.section in _SECTIONS or _PACKAGING.search(description.package):
        return
    made = False
    synopsis = description.synopsis.rstrip(".")
    if not _PACKAGING.search(synopsis) and len(synopsis.split()) >= 3:
        for material in _in_summary(description, synopsis, description.text):
            made = True
            yield material
    if made:
        return
    sentence = _SENTENCE.match(description.text)
    if sentence and not _PACKAGING.search(sentence.group()):
        rest = description.text[sentence.end() + 1 :].strip()
        yield from _in_summary(description, sentence.group(), rest)


def _in_summary(description: Description, summary: str, text: str) -> Iterator[_Material]:
    shown = "\n".join(leading(text.split("\n"), MAX_WORDS, word_count))
    if len(shown.split()) < MIN_WORDS:
        return
    by_kind: dict[str, list[Edit]] = defaultdict(list)
    for edit in error_edits(summary, shown):
        by_kind[edit.kind].append(edit)
    if not by_kind or not consistent_edits(summary) or not paraphrases(summary):
        return
    for kind, edits in by_kind.items():
        yield _Material(description, summary, shown, kind, tuple(edits))


def _item(material: _Material, mode: str, draw: random.Random) -> PlantedItem | None:
    """The item of a package, or None where no other wording can be had beside the wrong detail."""
    edit = _draw_edit(material.edits, draw)
    summary = material.summary
    apart = [e for e in consistent_edits(summary) if e.end <= edit.start or e.start >= edit.end]
    if not apart:
        return None
    nearest = min(abs(e.start - edit.start) for e in apart)
    consistent = draw.choice([e for e in apart if abs(e.start - edit.start) == nearest])
    paraphrase = paraphrases(summary)[0]
    erroneous = Planted(edit.apply(summary), edit.span)
    chosen, rejected = summary, erroneous
    if mode == "loose":
        wordings = (summary, paraphrase, consistent.apply(summary))
        wrong = {text: _plant(edit, text) for text in wordings} | {summary: erroneous}
        pairs = [(a, p) for a in wordings for b, p in wrong.items() if p and a != b]
        chosen, rejected = draw.choice(pairs)
    return PlantedItem(
        package=material.description.package,
        source=material.description.source,
        kind=material.kind,
        sort=edit.sort,
        prompt=f"{INSTRUCTION}\n\n{material.text}",
        truthful=summary,
        erroneous=erroneous.text,
        error_span=erroneous.span,
        removed_span=(edit.start, edit.end),
        paraphrase=paraphrase,
        consistent=consistent.apply(summary),
        consistent_span=consistent.span,
        chosen=chosen,
        rejected=rejected.text,
        rejected_span=rejected.span,
    )


def _plant(edit: Edit, wording: str) -> Planted | None:
    """The same wrong detail in another wording that has the true one exactly once."""
    places = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(edit.old)}(?!\w)", wording)]
    if len(places) != 1:
        return None
    moved = replace(edit, start=places[0], end=places[0] + len(edit.old))
    return Planted(moved.apply(wording), moved.span)


def _draw_edit(edits: Sequence[Edit], draw: random.Random) -> Edit:
    """A place at random, then what it becomes, as often as that is a true detail elsewhere.

    So a name that is common in summaries is common as a planted one too, and being rare does not
    give a wrong detail away.
    """
    start, end = draw.choice(sorted({(edit.start, edit.end) for edit in edits}))
    here = [edit for edit in edits if (edit.start, edit.end) == (start, end)]
    weights = [1 + _true_counts()[edit.new.lower()] for edit in here]
    return draw.choices(here, weights)[0]


@cache
def _true_counts() -> Counter[str]:
    """How many summaries have each detail, right."""
    return Counter(
        detail
        for material in _materials()
        for detail in {edit.old.lower() for edit in material.edits}
    )


def _balanced(items: list[PlantedItem], draw: random.Random) -> list[PlantedItem]:
    """Items of one kind with the sorts in turn; of two details neither is the usual wrong one.

    Where "a" became "b" more often than "b" became "a", knowing the words would be enough and no
    description need be read: one more of either than of the other is the most that is kept.
    """
    draw.shuffle(items)
    directions = Counter(_direction(item) for item in items)
    left = {(old, new): 1 + directions[new, old] for old, new in directions}
    by_sort: dict[str, list[PlantedItem]] = defaultdict(list)
    for item in items:
        direction = _direction(item)
        if left[direction]:
            left[direction] -= 1
            by_sort[item.sort].append(item)
    return list(_in_turn(by_sort.values()))


def _direction(item: PlantedItem) -> tuple[str, str]:
    """(true detail, wrong detail)."""
    true, wrong = slice(*item.removed_span), slice(*item.error_span)
    return item.truthful[true].lower(), item.erroneous[wrong].lower()


def _in_turn(lists: Iterable[Sequence[PlantedItem]]) -> Iterator[PlantedItem]:
    """The first of each list, the second of each, and so on."""
    lists = list(lists)
    for i in range(max(map(len, lists), default=0)):
        for each in lists:
            if i < len(each):
                yield each[i]


def _check(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for each in given:
        if each not in known:
            raise UserError(f"planted errors: {name} {each!r} is not one of {', '.join(known)}")
