"""Values of single tokens beside the ids of tokenised rows: checks, and columns made from lists.

A feature column is named after the answer it belongs to, `chosen_rewards` beside `chosen_ids`, and
has one value for each id.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
from torch import Tensor

from tokenq.data.hashing import json_hash
from tokenq.data.preparation import Prepared
from tokenq.errors import UserError

FEATURE_TYPES: dict[str, str] = {"segments": "int32", "edits": "bool", "rewards": "float32"}
"""Features that a column may hold, and the type of a value."""
_MADE_BY = {
    "segments": 'prepare(rows, tokenizer, segments="turns") or segments="steps"',
    "edits": "tokenq.data.add_edits(prepared)",
    "rewards": "tokenq.data.add_features(prepared, {...})",
}
_ACCEPTED = {
    "segments": "integers from -1 up (-1: not the model's own), one of them at least 0",
    "edits": "true or false",
    "rewards": "finite numbers",
}


def _are_segments(values: Sequence[Any]) -> bool:
    whole = set(map(type, values)) == {int}
    return whole and min(values) >= -1 and max(values) >= 0


def _are_edits(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {bool}


def _are_rewards(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))


_FITS = {"segments": _are_segments, "edits": _are_edits, "rewards": _are_rewards}


def check_features(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    columns: Iterable[str],
    source: str = "the data set",
) -> None:
    """Raise UserError unless each feature column is there and fits its ids; names row and field.

    Args:
        columns: such as ``chosen_edits``; each side's ``_ids`` column must be there too.
        source: name of the data set in messages.

    Of a stream only the names are looked at; see :func:`check_row` for its rows.
    """
    columns = list(columns)
    known = dataset.column_names
    for column in columns:
        _, feature = _parts(column)
        if known is not None and column not in known:
            raise UserError(f"{source}: has no column {column!r}; {_MADE_BY[feature]} makes it")
    if not columns or isinstance(dataset, datasets.IterableDataset):
        return
    ids = {_parts(column)[0] for column in columns}
    for number, row in enumerate(dataset.select_columns([*sorted(ids), *columns])):
        check_row(row, columns, f"{source}, row {number}")


def check_row(row: Mapping[str, Any], columns: Iterable[str], where: str) -> None:
    """Raise UserError, beginning with ``where``, unless the row's feature columns fit its ids."""
    for column in columns:
        ids_column, feature = _parts(column)
        ids, values = row[ids_column], row.get(column)
        if ids_column != "completions_ids":
            _check_values(values, len(ids), feature, f"{where}: field '{column}'", ids_column)
            continue
        if not isinstance(values, list) or len(values) != len(ids):
            raise UserError(
                f"{where}: field '{column}' has {_count(values)}; accepted: {len(ids)} lists, one "
                f"for each of {ids_column}"
            )
        for place, (some_ids, some) in enumerate(zip(ids, values, strict=True)):
            field = f"{where}: field '{column}[{place}]'"
            _check_values(some, len(some_ids), feature, field, f"{ids_column}[{place}]")


def add_features(prepared: Prepared, columns: Mapping[str, Sequence[Any]]) -> Prepared:
    """Add feature columns, one list of values a row (a list of lists in ranked rows).

    Raises:
        UserError: a column is no feature of an answer, has another number of rows, or does not fit
            its ids; or the data set is a stream.
    """
    dataset = prepared.dataset
    if isinstance(dataset, datasets.IterableDataset):
        raise UserError("features are added to a loaded data set, not to a stream")
    identity = json_hash({name: [list(row) for row in rows] for name, rows in columns.items()})
    for name, rows in columns.items():
        ids_column, _ = _parts(name)
        if ids_column not in dataset.column_names:
            raise UserError(f"column {name!r} has no ids beside it: there is no {ids_column!r}")
        if len(rows) != len(dataset):
            raise UserError(
                f"column {name!r} has {len(rows)} rows; accepted: {len(dataset)}, one for each of "
                "the data set"
            )
        for number, (ids, values) in enumerate(zip(dataset[ids_column], rows, strict=True)):
            check_row({ids_column: ids, name: values}, [name], f"row {number}")
        dataset = dataset.add_column(
            name,
            list(rows),
            new_fingerprint=json_hash([dataset._fingerprint, name, identity])[:32],
            feature=feature_column(name),
        )
    fingerprint = json_hash({"prepared": prepared.fingerprint, "features": identity})
    return replace(prepared, dataset=dataset, fingerprint=fingerprint)


def feature_column(name: str) -> datasets.List:
    """The type of a feature column."""
    ids_column, feature = _parts(name)
    values = datasets.List(datasets.Value(FEATURE_TYPES[feature]))
    return datasets.List(values) if ids_column == "completions_ids" else values


def rewards_from_logps(
    logps: Sequence[Tensor | Sequence[float]],
    ref_logps: Sequence[Tensor | Sequence[float]],
    beta: float = 1.0,
) -> list[list[float]]:
    """Token rewards of an oracle pair: beta * (log pi - log pi_ref) for each token of each row.

    It is the optimal advantage that the pair defines (From r to Q*, arXiv 2404.12358, eq. 10);
    SePO (2408.13518) ranks tokens by it and TGDPO (2506.14574) weights them with it.

    Args:
        logps, ref_logps: [T_i] natural-log probabilities of each row's tokens, as
            ``tokenq.token_logps`` returns them for both models of the pair.
        beta: scale; the rewards are in nats times ``beta``.

    Raises:
        UserError: the two models scored another number of rows or tokens, or a value is no finite
            number.
    """
    if len(logps) != len(ref_logps):
        raise UserError(f"{len(logps)} rows of logps but {len(ref_logps)} of ref_logps")
    rewards = []
    for number, (row, ref_row) in enumerate(zip(logps, ref_logps, strict=True)):
        if len(row) != len(ref_row):
            raise UserError(f"row {number}: {len(row)} logps but {len(ref_row)} ref_logps")
        pairs = zip(_floats(row), _floats(ref_row), strict=True)
        rewards.append([beta * (logp - ref_logp) for logp, ref_logp in pairs])
        if not all(map(math.isfinite, rewards[-1])):
            raise UserError(f"row {number}: a reward is not finite; accepted: finite logps")
    return rewards


def _floats(row: Tensor | Sequence[float]) -> list[float]:
    return row.tolist() if isinstance(row, Tensor) else [float(value) for value in row]


def _parts(column: str) -> tuple[str, str]:
    """The ids column that a feature column stands beside, and the feature."""
    side, _, feature = column.rpartition("_")
    if feature not in FEATURE_TYPES or not side:
        raise UserError(
            f"column {column!r} is no token feature; accepted: an answer's name and "
            f"{', '.join('_' + name for name in FEATURE_TYPES)}, such as chosen_rewards"
        )
    return f"{side}_ids", feature


def _check_values(values: Any, length: int, feature: str, field: str, ids_column: str) -> None:
    if not isinstance(values, list | tuple) or len(values) != length:
        raise UserError(
            f"{field} has {_count(values)}; accepted: {length}, one for each of {ids_column}"
        )
    if not _FITS[feature](values):
        raise UserError(f"{field} holds other values; accepted: {_ACCEPTED[feature]}")


def _count(values: Any) -> str:
    return f"{len(values)} values" if isinstance(values, list | tuple) else "no list of values"
