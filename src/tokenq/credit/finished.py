"""Scored data sets that lie on disk, and each source row beside what was found about it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenq.credit.journal import read_records
from tokenq.data.loading import Rows
from tokenq.errors import UserError

Record = dict[str, Any]


def open_finished(folder: str | Path, rows: Rows | None = None) -> tuple[Path, dict[str, Any]]:
    """The records' file and the settings of a finished `tokenq credit` run over `rows`.

    With the names of its models, where `summary.json` tells them.

    rows: None where it does not matter which they were

    Raises UserError if there is none, or it is a run over other rows.
    """
    folder = Path(folder)
    path, settings_file = folder / "credit.jsonl", folder / "settings.json"
    if not path.exists() or not settings_file.exists():
        raise UserError(
            f"{folder}: no credit.jsonl with its settings.json is there; accepted: the folder of a "
            "finished run"
        )
    settings = _read_object(settings_file)
    if rows is None:
        return path, settings
    for name, value in (("kind", rows.kind), ("data_fingerprint", rows.fingerprint)):
        if settings.get(name) != value:
            raise UserError(
                f"{folder} was scored over other rows: its {name} is {settings.get(name)!r}, that "
                f"of {rows.source} is {value!r}; accepted: the same data, split and limit"
            )
    summary_file = folder / "summary.json"
    if summary_file.exists():
        summary = _read_object(summary_file)
        names: dict[str, Any] = {
            name: summary[name] for name in ("policy", "reference") if name in summary
        }
        settings = {**names, **settings}
    return path, settings


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no JSON object; accepted: what `tokenq credit` wrote")
    return found


def records_by_row(path: Path, rows: Rows) -> Iterator[tuple[Record, Record]]:
    """Yield each source row with its record, in the order of the source.

    A row that was left out has the record `{"row": ..., "skipped": reason}`.

    Raises ValueError if the records are not those of the rows.
    """
    return _joined(rows.dataset, read_records(path))


def _joined(rows: Iterable[Any], records: Iterable[Record]) -> Iterator[tuple[Record, Record]]:
    for row, record in zip(rows, records, strict=True):
        if row["row"] != record["row"]:
            raise ValueError(f"row {row['row']} stands beside the record of row {record['row']}")
        yield row, record
