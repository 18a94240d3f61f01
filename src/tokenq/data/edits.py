"""Which tokens differ between the two answers of a pair, and how far apart two answers are.

What BMC (Bridging and Modeling Correlations in Pairwise Data, arXiv 2408.07471) weights.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenq.data.hashing import json_hash
from tokenq.data.preparation import Prepared
from tokenq.errors import UserError

# Articles, conjunctions, prepositions, pronouns, auxiliaries and their contracted ends. No word
# that decides what a sentence claims: not, no, never, more, less, before, after stay out.
_STOP_WORDS = """
a an the and or but if then than so as of at by for with about into to from in on upon
i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
this that these those who whom whose which what there here
am is are was were be been being do does did doing have has had having
s t d m ll re ve
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English function words, lower case: what :func:`stop_word_ids` looks up unless told otherwise."""

_VERSION = 1  # raise when the same ids would be marked otherwise, so that no cached marks are used


def edited_tokens(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    ignored: Collection[int] = frozenset(),
) -> tuple[list[bool], list[bool]]:
    """Marks of the tokens that turn the rejected answer into the chosen one, a list a side.

    An edit that replaces or deletes marks the rejected tokens, one that replaces or inserts the
    chosen ones (`difflib.SequenceMatcher` on the ids, as in BMC's released code). Without
    `ignored`, both answers are equal once their marked tokens are taken out. Unlike that code,
    ids of padding never enter, and frequent tokens of long answers are compared like all others
    (``autojunk=False``).

    Args:
        ignored: ids that are never marked, such as :func:`stop_word_ids`.
    """
    chosen, rejected = [False] * len(chosen_ids), [False] * len(rejected_ids)
    matcher = SequenceMatcher(None, rejected_ids, chosen_ids, autojunk=False)
    for kind, first, last, chosen_first, chosen_last in matcher.get_opcodes():
        if kind == "equal":
            continue
        for at in range(first, last):
            rejected[at] = rejected_ids[at] not in ignored
        for at in range(chosen_first, chosen_last):
            chosen[at] = chosen_ids[at] not in ignored
    return chosen, rejected


def stop_word_ids(
    tokenizer: PreTrainedTokenizerBase, words: Collection[str] = STOP_WORDS
) -> frozenset[int]:
    """Ids of the tokens whose text, without blanks and case, is one of `words`.

    A token that is a part of a longer word but reads like a stop word counts as well: ids alone
    do not tell it.
    """
    wanted = {word.lower() for word in words}
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return frozenset(number for number, text in enumerate(texts) if text.strip().lower() in wanted)


def add_edits(
    prepared: Prepared, ignored: Collection[int] = frozenset(), num_proc: int | None = None
) -> Prepared:
    """Add the columns ``chosen_edits`` and ``rejected_edits`` (:func:`edited_tokens`) to pairs.

    Marks of a data set on disk are kept beside its ids and found again; a stream is marked as it
    is read.

    Raises:
        UserError: the rows are no preference pairs.
    """
    if prepared.kind != "preference":
        raise UserError(
            f"edits are marked in preference pairs, the data set is of kind {prepared.kind!r}; "
            "accepted: prompt+chosen+rejected"
        )
    identity = {"edits": _VERSION, "ignored": sorted(ignored)}
    fingerprint = json_hash({"prepared": prepared.fingerprint, **identity})
    options = {"ignored": frozenset(ignored)}
    dataset = prepared.dataset
    marks = datasets.List(datasets.Value("bool"))
    features = datasets.Features(
        {**(dataset.features or {}), "chosen_edits": marks, "rejected_edits": marks}
    )
    if isinstance(dataset, datasets.IterableDataset):
        known = features if dataset.features else None
        stream = dataset.map(_mark, fn_kwargs=options, features=known)
        return replace(prepared, dataset=stream, fingerprint=fingerprint)
    marked = dataset.map(
        _mark,
        fn_kwargs=options,
        features=features,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        new_fingerprint=json_hash({"dataset": dataset._fingerprint, **identity})[:32],
        desc="Marking edits",
    )
    return replace(prepared, dataset=marked, fingerprint=fingerprint)


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Least number of items to insert, delete or replace that makes two sequences equal.

    Levenshtein's distance, one row of its table at a time: O(len(first)) array operations.
    """
    numbers = {item: number for number, item in enumerate({*first, *second})}
    left = np.array([numbers[item] for item in first], dtype=np.int64)
    right = np.array([numbers[item] for item in second], dtype=np.int64)
    places = np.arange(len(right) + 1)
    row = places.copy()
    for count, item in enumerate(left, start=1):
        best = np.empty_like(row)
        best[0] = count
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (right != item))
        # Insertions run along the row: best[j] = min over k <= j of best[k] + (j - k).
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])


def _mark(row: Mapping[str, Any], ignored: frozenset[int]) -> dict[str, list[bool]]:
    chosen, rejected = edited_tokens(row["chosen_ids"], row["rejected_ids"], ignored)
    return {"chosen_edits": chosen, "rejected_edits": rejected}
