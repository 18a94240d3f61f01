"""Reasoning steps: where they begin in a text, and pairs that share all steps but their last.

Step-DPO (arXiv 2406.18629) prefers one step over another after the same correct beginning.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import datasets

from tokenq.data.hashing import json_hash
from tokenq.data.prefix import common_prefix_length
from tokenq.errors import UserError

if TYPE_CHECKING:
    from tokenq.data.preparation import Prepared

STEP_PATTERNS = {
    "lines": r"(?m)^(?=[^\n]*\S)",
    "paragraphs": r"(?<=\n\n)(?=[^\n]*\S)",
    "numbered": r"(?im)^[ \t#*]*step[ \t]+\d+[ \t*]*[:.)]",
}
"""Names of usual beginnings of a step: each line that is not blank, each paragraph, "Step k:"."""


def compile_step_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a name in :data:`STEP_PATTERNS`, or of itself.

    Raises:
        UserError: it is no regular expression.
    """
    try:
        return re.compile(STEP_PATTERNS.get(pattern, pattern))
    except re.error as error:
        raise UserError(
            f"step_pattern is {pattern!r} ({error}); accepted: {', '.join(STEP_PATTERNS)}, or a "
            "regular expression that matches where a step begins"
        ) from None


def step_starts(text: str, pattern: re.Pattern[str]) -> list[int]:
    """Characters at which the steps of ``text`` begin; the first is 0.

    A step reaches to the next one, so that its line end is its own. Text before the first match is
    a step of itself unless it is blank.
    """
    starts = [match.start() for match in pattern.finditer(text)]
    return [0, *(start for start in starts if text[:start].strip())]


def step_numbers(offsets: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """Number of the step, from 0, in which each token begins.

    Args:
        offsets: (start, end) characters of each token, never going back.
        starts: as :func:`step_starts` gives them. A step in which no token begins has no number.
    """
    return _renumbered([bisect_right(starts, first) for first, _ in offsets])


def share_steps(prepared: "Prepared", keep: int | None = None) -> "Prepared":
    """Move the steps that both answers of a pair begin with into its prompt.

    The ids themselves stay as they are, only the border between prompt and answers moves, so that
    the pair differs from its first step on. Segments are numbered from there; other token features
    lose the same tokens.

    Args:
        prepared: preference pairs prepared with ``segments="steps"``.
        keep: steps that are left of each answer: 1 is Step-DPO's pair of single steps (without the
            end token, unless the step is the answer's last); None: all that follow.

    Raises:
        UserError: the rows are no preference pairs with steps, or ``keep`` is less than 1.
    """
    if keep is not None and keep < 1:
        raise UserError(f"keep is {keep}; accepted: 1 or more steps, or None for all")
    columns = prepared.dataset.column_names
    has_steps = columns is None or "chosen_segments" in columns
    if prepared.kind != "preference" or not has_steps:
        raise UserError(
            "share_steps needs preference pairs with numbered steps; accepted: "
            'prepare(rows, tokenizer, segments="steps")'
        )
    identity = {"share_steps": keep}
    fingerprint = json_hash({"prepared": prepared.fingerprint, **identity})
    dataset = prepared.dataset
    if isinstance(dataset, datasets.IterableDataset):
        stream = dataset.map(_shared, fn_kwargs={"keep": keep}, features=dataset.features)
        return replace(prepared, dataset=stream, fingerprint=fingerprint)
    moved = dataset.map(
        _shared,
        fn_kwargs={"keep": keep},
        features=dataset.features,
        new_fingerprint=json_hash({"dataset": dataset._fingerprint, **identity})[:32],
        desc="Sharing steps",
    )
    return replace(prepared, dataset=moved, fingerprint=fingerprint)


def _shared(row: Mapping[str, Any], keep: int | None) -> dict[str, list[Any]]:
    chosen, rejected = row["chosen_ids"], row["rejected_ids"]
    steps = [row["chosen_segments"], row["rejected_segments"]]
    # One answer may be all of the other's beginning; a last token is left to each.
    common = min(common_prefix_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    first = min(numbers.index(numbers[common]) for numbers in steps)
    moved: dict[str, list[Any]] = {"prompt_ids": [*row["prompt_ids"], *chosen[:first]]}
    for side, numbers in zip(("chosen", "rejected"), steps, strict=True):
        left = _renumbered(numbers[first:])
        count = len(left) if keep is None else bisect_right(left, keep - 1)
        for name in (name for name in row if name.startswith(f"{side}_")):
            moved[name] = row[name][first : first + count]
        moved[f"{side}_segments"] = left[:count]
    return moved


def _renumbered(numbers: Sequence[int]) -> list[int]:
    """The same sections, counted from 0 without gaps."""
    places = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
    return [places[number] for number in numbers]
