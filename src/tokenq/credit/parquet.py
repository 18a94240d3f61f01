"""A scored data set as Parquet: one row a response, one list a column of its tokens."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from tokenq.storage import atomic_file

_ROWS = 128
"""Responses of a row group, which are in memory at the same time."""

_NUMBERS = pyarrow.list_(pyarrow.float32())
_ALTERNATIVE = pyarrow.struct(
    {
        "token_id": pyarrow.int32(),
        "token": pyarrow.string(),
        "logp": pyarrow.float32(),
        "ref_logp": pyarrow.float32(),
        "reward": pyarrow.float32(),
    }
)
_COLUMNS: dict[str, pyarrow.DataType] = {
    "row": pyarrow.int64(),
    "name": pyarrow.string(),
    "prompt": pyarrow.string(),
    "response": pyarrow.string(),
    "label": pyarrow.bool_(),
    "rank": pyarrow.int32(),
    "margin": pyarrow.float64(),
    "reward": pyarrow.float64(),
    "tokens_cut": pyarrow.int32(),
    "tokens": pyarrow.list_(pyarrow.string()),
    "token_ids": pyarrow.list_(pyarrow.int32()),
    "starts": pyarrow.list_(pyarrow.int32()),
    "ends": pyarrow.list_(pyarrow.int32()),
    "logps": _NUMBERS,
    "ref_logps": _NUMBERS,
    "rewards": _NUMBERS,
    "values": _NUMBERS,
    "entropies": _NUMBERS,
    "ref_entropies": _NUMBERS,
    "divergences": _NUMBERS,
    "alternatives": pyarrow.list_(pyarrow.list_(_ALTERNATIVE)),
    "estimates": pyarrow.map_(pyarrow.string(), _NUMBERS),
}


def write_parquet(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Write the responses of scored rows (`CreditRun.records`) to `path`, whole or not at all.

    Fields are those of `credit.jsonl`, but `name` is the response's name, `starts` and `ends` its
    tokens' characters, `rank` its place where the row has an order (0 is best), and a prompt of
    messages is their JSON text. What a run did not keep is null.
    """
    schema = pyarrow.schema(list(_COLUMNS.items()))
    responses = _responses(records)
    with atomic_file(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while rows := list(islice(responses, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _responses(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        prompt = record["prompt"]
        common = {
            "row": record["row"],
            "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
            "label": record.get("label"),
            "margin": record.get("margin"),
        }
        for place, (name, side) in enumerate(record["responses"].items()):
            starts, ends = zip(*side["offsets"], strict=True)
            yield {
                **{field: value for field, value in side.items() if field in _COLUMNS},
                **common,
                "name": name,
                "rank": _rank(record, place),
                "starts": starts,
                "ends": ends,
                "estimates": list(side.get("estimates", {}).items()) or None,
            }


def _rank(record: dict[str, Any], place: int) -> int | None:
    if "ranks" in record:
        return int(record["ranks"][place])
    return place if "margin" in record else None
