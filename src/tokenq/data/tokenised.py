"""Rows that come as token ids, with whatever token features their maker gave them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import datasets

from tokenq.data.features import FEATURE_TYPES, check_row, feature_column
from tokenq.data.formats import Kind
from tokenq.data.hashing import json_hash
from tokenq.data.preparation import Prepared
from tokenq.data.report import PreparationReport
from tokenq.data.sources import ArrowSet, Unreadable, open_source
from tokenq.errors import UserError

TOKENISED_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "ranked": ("prompt_ids", "completions_ids", "ranks"),
    "unpaired": ("prompt_ids", "completion_ids", "label"),
    "sft": ("prompt_ids", "completion_ids"),
}
"""Columns of each kind of tokenised rows, as :class:`Prepared` describes them."""


def tokenised_kind(columns: Collection[str]) -> Kind | None:
    """The kind of rows that have these columns; None if they are no tokenised rows."""
    found = (kind for kind, needed in TOKENISED_COLUMNS.items() if set(needed) <= set(columns))
    return next(found, None)


def holds_token_ids(
    source: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
) -> bool:
    """Whether the first row of a source holds token ids; arguments as in :func:`load_tokenised`."""
    opened = open_source(source, split=split, config=config, revision=revision, streaming=False)
    if isinstance(opened, ArrowSet):
        columns = list(opened.dataset.column_names or ())
    else:
        first = next(iter(opened.records()), None)
        columns = list(first.row) if first and isinstance(first.row, dict) else []
    return tokenised_kind(columns) is not None


def load_tokenised(
    source: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Prepared:
    """Load rows of token ids, and the feature columns beside them, with every row checked.

    A line of JSON: ``{"prompt_ids": [5, 9], "chosen_ids": [3, 2], "chosen_rewards": [0.5, -1.0],
    "rejected_ids": [4, 2], "rejected_rewards": [-0.2, 0.1]}``. Other columns are left out.

    Args:
        source, split, config, revision, limit: as :func:`tokenq.data.load_rows` takes them.

    Raises:
        UserError: nothing is there, it cannot be read, the columns are no kind of
            :data:`TOKENISED_COLUMNS`, or a row is malformed: where, field, accepted.
    """
    opened = open_source(source, split=split, config=config, revision=revision, streaming=False)
    places: list[str] = []
    rows: list[dict[str, Any]] = []
    if isinstance(opened, ArrowSet):
        fingerprint = opened.fingerprint
        columns = list(opened.dataset.column_names or ())
        for number, row in enumerate(opened.dataset):
            places.append(f"{opened.name}, row {number}")
            rows.append(row)
    else:
        fingerprint = opened.fingerprint()
        for record in opened.records():
            if isinstance(record.row, Unreadable):
                raise UserError(f"{record.where}: {record.row.fault}")
            places.append(record.where)
            rows.append(record.row)
        columns = list(dict.fromkeys(name for row in rows for name in row))
    rows, places = rows[:limit], places[:limit]
    if not rows:
        raise UserError(f"{source}: holds no rows")
    kind = tokenised_kind(columns)
    if kind is None:
        accepted = " or ".join("+".join(names) for names in TOKENISED_COLUMNS.values())
        raise UserError(
            f"{source}: has the columns {', '.join(columns)}; accepted for tokenised rows: "
            f"{accepted}"
        )
    types = _types(kind, columns)
    report = PreparationReport()
    for place, row in zip(places, rows, strict=True):
        _check(row, kind, types, place)
        answers = [row[name] for name in types if name.endswith("_ids") and name != "prompt_ids"]
        lengths = map(len, answers[0] if kind == "ranked" else answers)
        report.keep(len(row["prompt_ids"]), lengths, [])
    kept = [
        {"row": number, **{name: row[name] for name in types}} for number, row in enumerate(rows)
    ]
    features = datasets.Features({"row": datasets.Value("int64"), **types})
    if limit is not None:
        fingerprint = json_hash({"rows": fingerprint, "limit": limit})
    return Prepared(datasets.Dataset.from_list(kept, features), kind, report, fingerprint)


def _types(kind: Kind, columns: Collection[str]) -> dict[str, Any]:
    """The columns that are kept, and their types."""
    ids = datasets.List(datasets.Value("int32"))
    known: dict[str, Any] = {
        "label": datasets.Value("bool"),
        "ranks": datasets.List(datasets.Value("int64")),
        "completions_ids": datasets.List(ids),
    }
    types = {name: known.get(name, ids) for name in TOKENISED_COLUMNS[kind]}
    for ids_column in [name for name in types if name.endswith("_ids") and name != "prompt_ids"]:
        side = ids_column.removesuffix("_ids")
        names = [f"{side}_{feature}" for feature in FEATURE_TYPES]
        types |= {name: feature_column(name) for name in names if name in columns}
    return types


def _check(row: Mapping[str, Any], kind: Kind, types: Mapping[str, Any], where: str) -> None:
    for name in types:
        if name.endswith("_ids"):
            _check_ids(row.get(name), name, where)
    if kind == "unpaired" and row.get("label") not in (True, False):
        raise UserError(f"{where}: field 'label' is {row.get('label')!r}; accepted: true or false")
    if kind == "ranked":
        ranks, count = row.get("ranks"), len(row["completions_ids"])
        if not isinstance(ranks, list) or len(ranks) != count or not _are_numbers(ranks):
            raise UserError(
                f"{where}: field 'ranks' is {ranks!r}; accepted: {count} whole numbers from 0 up, "
                "one for each of completions_ids"
            )
    features = [name for name in types if name.rpartition("_")[2] in FEATURE_TYPES]
    check_row(row, features, where)


def _check_ids(value: Any, name: str, where: str) -> None:
    answers = value if name == "completions_ids" else [value]
    least = 2 if name == "completions_ids" else 1
    listed = isinstance(answers, list) and len(answers) >= least
    if not listed or not all(map(_are_numbers, answers)):
        many = "two or more lists" if least == 2 else "a list"
        raise UserError(
            f"{where}: field '{name}' holds no token ids; accepted: {many} of whole numbers from "
            "0 up, none empty"
        )


def _are_numbers(value: Any) -> bool:
    """Whether this is a list of whole numbers from 0 up, not empty."""
    return isinstance(value, list) and set(map(type, value)) == {int} and min(value) >= 0
