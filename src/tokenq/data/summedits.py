"""Summaries edited by people: which edit made them false, and where every edit is."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from tokenq.data.human_labels import (
    check_split,
    labels_folder,
    leading,
    read_records,
    split_of,
    word_count,
)
from tokenq.data.pair_rows import pair_row
from tokenq.errors import UserError

ABOUT = """\
SummEdits: documents of several domains, a summary of each, and slightly edited summaries that
people judged to be consistent or inconsistent with the document.

Origin:   data/summedits of factualNLG.
Licence:  Apache-2.0.
Citation: P. Laban et al., "SummEdits: Measuring LLM Ability at Factual Reasoning Through The Lens
          of Summarization", EMNLP 2023.
"""

INSTRUCTION = "Summarise the text above in one or two sentences."
_FIELDS = ("id", "doc", "summary", "label", "original_summary", "edit_types")
_PIECE = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class EditedSummary:
    """An edit of a document's summary.

    ``spans`` are the changed characters of ``edited``; where nothing but words was taken out, the
    word after them (or before, at the end). An inconsistent edit often changes a harmless word too:
    changes that a consistent edit of the same summary makes as well are left out, and ``exact``
    says that one place only is left, so that it is the wrong one for certain. ``kinds`` are the
    data's names of what the editor did.
    """

    id: str
    domain: str
    prompt: str
    original: str
    edited: str
    consistent: bool
    spans: tuple[tuple[int, int], ...]
    exact: bool
    kinds: tuple[str, ...]


def load(
    split: str = "train",
    *,
    domains: Sequence[str] | None = None,
    max_length: int = 300,
    length: Callable[[str], int] = word_count,
) -> list[EditedSummary]:
    """The edits of one split, by domain (all that are there, if None) in the order of the file.

    A document is in one split only. The prompt shows the first paragraphs whose ``length`` (words;
    give a tokenizer's count for tokens) is at most ``max_length`` in all, or as many words of the
    first one; what a summary is about may be further down.

    Raises :class:`UserError` for an unknown split or domain, without ``TOKENQ_DATA``, and for a
    file that is not as described.
    """
    check_split("summedits", split)
    folder = labels_folder("summedits")
    known = sorted(path.stem for path in folder.glob("*.json"))
    found = []
    for domain in known if domains is None else domains:
        if domain not in known:
            raise UserError(f"{folder} has no domain {domain!r}; it has {', '.join(known)}")
        records = read_records(folder / f"{domain}.json", _FIELDS)
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            if split_of(record["doc"]) == split:
                groups[record["doc"], record["original_summary"]].append(record)
        for (document, _), edits in groups.items():
            prompt = f"{_shown(document, max_length, length)}\n\n{INSTRUCTION}"
            found += _of_one_summary(domain, prompt, edits)
    return found


def pairs(
    edits: Sequence[EditedSummary], *, mode: str = "minimal", format: str = "chat"
) -> list[dict[str, Any]]:
    """Preference rows whose rejected answer is an inconsistent edit.

    ``mode="minimal"``: chosen is the summary that was edited. ``mode="loose"``: chosen is a
    consistent edit of the same summary (each in turn; edits without one are left out), so that
    the two also differ in what is not wrong. See :func:`pair_row` for ``format``.

    Raises :class:`UserError` for another mode.
    """
    if mode not in ("minimal", "loose"):
        raise UserError(f"mode={mode!r} is not minimal or loose")
    consistent: dict[tuple[str, str], list[str]] = defaultdict(list)
    for edit in edits:
        if edit.consistent:
            consistent[edit.prompt, edit.original].append(edit.edited)
    rows = []
    used: dict[tuple[str, str], int] = defaultdict(int)
    for edit in edits:
        if edit.consistent:
            continue
        key = edit.prompt, edit.original
        chosen = edit.original
        if mode == "loose":
            if not consistent[key]:
                continue
            chosen = consistent[key][used[key] % len(consistent[key])]
            used[key] += 1
        rows.append(pair_row(edit.prompt, chosen, edit.edited, format))
    return rows


def changes(original: str, edited: str) -> list[tuple[str, str, int, int]]:
    """(words taken out, words put in, start, end): the places where ``edited`` differs, as
    characters of ``edited``; by whole words, blanks around them left out."""
    before, after = _PIECE.findall(original), _PIECE.findall(edited)
    starts = [0]
    for piece in after:
        starts.append(starts[-1] + len(piece))
    found = []
    for tag, i, j, first, last in SequenceMatcher(None, before, after, False).get_opcodes():
        out, put = "".join(before[i:j]).strip(), "".join(after[first:last])
        if tag == "equal" or not (out or put.strip()):
            continue
        start, end = starts[first], starts[last]
        if put.strip():
            start, end = start + len(put) - len(put.lstrip()), start + len(put.rstrip())
        else:
            start, end = _nearest_word(edited, start)
        found.append((out, put.strip(), start, end))
    return found


def _of_one_summary(
    domain: str, prompt: str, records: Sequence[dict[str, Any]]
) -> list[EditedSummary]:
    """All edits of one summary; the unedited one is no edit and left out."""
    changed = [changes(record["original_summary"], record["summary"]) for record in records]
    harmless = {
        (out, put)
        for record, places in zip(records, changed, strict=True)
        if record["label"] == 1
        for out, put, _, _ in places
    }
    found = []
    for record, places in zip(records, changed, strict=True):
        consistent = record["label"] == 1
        if not places:
            continue
        telling = [place for place in places if consistent or place[:2] not in harmless]
        found.append(
            EditedSummary(
                id=record["id"],
                domain=domain,
                prompt=prompt,
                original=record["original_summary"],
                edited=record["summary"],
                consistent=consistent,
                spans=tuple((start, end) for _, _, start, end in telling or places),
                exact=len(telling) == 1,
                kinds=tuple(record["edit_types"]),
            )
        )
    return found


def _nearest_word(text: str, place: int) -> tuple[int, int]:
    """The word that begins at or after ``place``, or the last one before it."""
    match = re.compile(r"\w+").search(text, place)
    if match is None:
        *_, match = re.finditer(r"\w+", text)
    return match.span()


def _shown(document: str, limit: int, length: Callable[[str], int]) -> str:
    paragraphs = [each.strip() for each in document.split("\n") if each.strip()]
    return "\n".join(leading(paragraphs, limit, length)) or " ".join(
        leading(paragraphs[0].split(), limit, length)
    )
