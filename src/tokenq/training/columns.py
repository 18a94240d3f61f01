"""Columns beyond token ids that some objectives learn from: checked, and made where they can be."""

import sys
from typing import Any

import datasets

from tokenq.data import check_features
from tokenq.data.features import FEATURE_TYPES
from tokenq.errors import UserError
from tokenq.training.batches import feature_column
from tokenq.training.config import PreferenceConfig
from tokenq.training.mixture import Mixture


def token_features(
    dataset: Any, columns: tuple[str, ...], mixture: Mixture, args: PreferenceConfig, name: str
) -> tuple[str, ...]:
    """Return the features that rows bring and that are looked at; `segments` always are.

    Raises UserError if a term needs one that is neither there nor to be had.
    """
    there = set(getattr(dataset, "column_names", None) or ())
    wanted = [f for f in FEATURE_TYPES if f == "segments" or f in mixture.needs]
    found = tuple(
        f for f in wanted if all(feature_column(column, f) in there for column in columns)
    )
    for feature in wanted:
        if feature in found or feature not in mixture.needs:
            continue
        if feature == "rewards" and args.oracle is not None:
            continue
        lacking = [feature_column(c, feature) for c in columns]
        oracle = ", or --oracle" if feature == "rewards" else ""
        raise UserError(
            f"{name}: loss_type {', '.join(mixture.asking_for(feature))} needs {feature} of every "
            f"token; accepted: rows with {' and '.join(lacking)}{oracle}"
        )
    check_features(dataset, [feature_column(column, f) for f in found for column in columns])
    return found


def with_mismatched(
    dataset: Any, column: str, args: PreferenceConfig, name: str
) -> datasets.Dataset:
    """Add `mismatched_ids`: the answer of the next row, cut to the room its prompt leaves.

    Raises UserError for a stream and for a single row, where there is no other answer.
    """
    if not isinstance(dataset, datasets.Dataset) or len(dataset) < 2:
        raise UserError(
            f"{name}: the loss_type compares answers with other rows' prompts; accepted: 2 or more "
            "rows, not streamed"
        )
    rows = dataset.select_columns(["prompt_ids", column])[:]
    following = [*rows[column][1:], rows[column][0]]
    most = args.max_length or sys.maxsize
    mismatched = [
        answer[: max(1, most - len(prompt))]
        for prompt, answer in zip(rows["prompt_ids"], following, strict=True)
    ]
    return dataset.add_column("mismatched_ids", mismatched)
