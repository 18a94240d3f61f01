"""`load_rows`: any source to checked rows in the columns of their kind."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from tokenq.data.formats import COLUMNS, TEMPLATE_COLUMNS, Kind, MalformedRow, RowFormat
from tokenq.data.sources import ArrowSet, Record, TextFiles, Unreadable, open_source
from tokenq.errors import UserError
from tokenq.storage import cache_dir, write_text

_log = logging.getLogger(__name__)
_PROBLEM = "__problem"
_CHECK = 1  # raise when the same row would be read otherwise, so that no cached rows are used
_SAMPLE = 100  # records looked at to tell a streamed file's format


@dataclass(frozen=True)
class Rows:
    """Checked rows of one kind.

    ``dataset``: the kind's columns and the source's other columns (`tools`,
    `chat_template_kwargs` and whatever else is there), and ``row``: the row's number in the source,
    from 0, malformed rows counted.

    * preference: ``prompt``, ``chosen``, ``rejected``
    * sft: ``prompt``, ``completion``
    * unpaired: ``prompt``, ``completion``, ``label`` (bool)
    * ranked: ``prompt``, ``completions`` (best first), ``ranks`` (0 = best; equal ranks are ties,
      as are all those of a source's `responses`, which have no order)

    Prompts and answers are strings, or lists of messages, throughout the data set.

    ``fingerprint``: hash that names the content (files' bytes, or the hub's revision).
    ``rejected``: malformed rows set aside; for a stream, those met so far are in the rejects file.
    """

    dataset: "datasets.Dataset | datasets.IterableDataset"
    kind: Kind
    source: str
    fingerprint: str
    rejected: int


def load_rows(
    source: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    rejects: Path | None = None,
    limit: int | None = None,
) -> Rows:
    """Load and check rows.

    Args:
        source: a `.jsonl`, `.json` (a list, or `{"data": list}`), `.csv` (these also `.gz`) or
            `.parquet` file; a folder (`save_to_disk`, or data files named by split); a hub name;
            or `bundled:film-reviews[?option=value&...]`.
        split: split of a folder, a hub or a bundled set. A single file is one split.
        config: configuration of a hub data set.
        revision: revision of a hub data set.
        streaming: read rows as they are used; a malformed row is met when its turn comes.
        rejects: file for malformed rows (JSONL: ``row``, ``where``, ``reason``, ``value``).
            Without it the first malformed row raises. A stream rewrites the whole file at each
            row it sets aside.
        limit: read at most this many rows of the source.

    Raises:
        UserError: nothing is there, it cannot be read, it has no known columns, no usable row is
            left, or (without ``rejects``) a row is malformed: file, line or row, field, accepted.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; accepted: a number of rows from 1 up")
    opened = open_source(source, split=split, config=config, revision=revision, streaming=streaming)
    rejected = Rejects(rejects)
    if isinstance(opened, TextFiles):
        fingerprint = opened.fingerprint()
        loaded = (_stream_text if streaming else _load_text)(opened, rejected, limit)
    else:
        fingerprint = opened.fingerprint
        loaded = (_stream_arrow if streaming else _load_arrow)(opened, rejected, limit)
    dataset, kind = loaded
    if limit is not None:
        fingerprint = hashlib.sha256(f"{fingerprint}[:{limit}]".encode()).hexdigest()
    if not streaming:
        rejected.save()
        if not len(dataset):
            raise UserError(f"{source}: has no usable row ({len(rejected.rows)} malformed)")
        if rejected.rows:
            _log.warning(
                "%s: %d malformed rows set aside in %s", source, len(rejected.rows), rejects
            )
    return Rows(dataset, kind, str(source), fingerprint, len(rejected.rows))


def source_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it can be written and loaded again: without the empty cells that Arrow adds."""
    return {name: _without_nulls(value) for name, value in row.items() if value is not None}


class Rejects:
    """Malformed rows: raised at once, or collected for the file given."""

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, index: int, where: str, reason: str, value: Any) -> None:
        """Set one row aside; raises UserError if there is no file for it."""
        if self.path is None:
            raise UserError(f"{where}: {reason} (--skip-bad-rows sets such rows aside)")
        self.rows.append({"row": index, "where": where, "reason": reason, "value": value})

    def save(self) -> None:
        """Write the file (whole, also when no row is malformed)."""
        if self.path is not None:
            lines = [json.dumps(row, default=str) + "\n" for row in self.rows]
            try:
                write_text(Path(self.path), "".join(lines))
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error


def _load_text(
    files: TextFiles, rejects: Rejects, limit: int | None
) -> tuple[datasets.Dataset, Kind]:
    records = list(itertools.islice(files.records(), limit))
    columns = _columns(files, records)
    form = RowFormat.detect(columns, _readable(records))
    extras = [name for name in columns if name not in form.fields]
    rows = []
    for record in records:
        row = _checked(record, form, rejects)
        if row is not None:
            # Every row needs every column: Arrow takes the columns from the first.
            rows.append({**dict.fromkeys(extras), **row})
    return datasets.Dataset.from_list(rows, on_mixed_types="use_json"), form.kind


def _stream_text(
    files: TextFiles, rejects: Rejects, limit: int | None
) -> tuple[datasets.IterableDataset, Kind]:
    sample = list(itertools.islice(files.records(), _SAMPLE))
    form = RowFormat.detect(_columns(files, sample), _readable(sample))
    return _stream(lambda: files.records(), form, rejects, limit), form.kind


def _load_arrow(
    source: ArrowSet, rejects: Rejects, limit: int | None
) -> tuple[datasets.Dataset, Kind]:
    dataset = source.dataset
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    form = RowFormat.detect(dataset.column_names, itertools.islice(dataset, _SAMPLE))
    key = json.dumps([_CHECK, source.fingerprint, limit, vars(form)])
    key = hashlib.sha256(key.encode()).hexdigest()
    checked = dataset.map(
        _check_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"form": form},
        remove_columns=[name for name in form.fields if name not in COLUMNS[form.kind]],
        features=_features(dataset.features, form),
        new_fingerprint=key,
        # Never beside the user's own files, where the library would put it.
        cache_file_name=str(cache_dir("rows") / f"{key}.arrow") if dataset.cache_files else None,
        desc="Checking rows",
    )
    problems = checked[_PROBLEM]
    kept = []
    for index, problem in enumerate(problems):
        if problem is None:
            kept.append(index)
        else:
            rejects.add(index, f"{source.name}, row {index}", problem, dataset[index])
    checked = checked.remove_columns(_PROBLEM)
    return (checked if len(kept) == len(checked) else checked.select(kept)), form.kind


def _stream_arrow(
    source: ArrowSet, rejects: Rejects, limit: int | None
) -> tuple[datasets.IterableDataset, Kind]:
    sample = list(itertools.islice(source.dataset, _SAMPLE))
    form = RowFormat.detect(sample[0] if sample else (), sample)

    def records() -> Iterator[Record]:
        for index, row in enumerate(source.dataset):
            yield Record(index, f"{source.name}, row {index}", row)

    return _stream(records, form, rejects, limit), form.kind


def _stream(
    records: Callable[[], Iterator[Record]], form: RowFormat, rejects: Rejects, limit: int | None
) -> datasets.IterableDataset:
    def rows() -> Iterator[dict[str, Any]]:
        rejects.rows.clear()
        for record in itertools.islice(records(), limit):
            row = _checked(record, form, rejects)
            if row is None:
                rejects.save()
            else:
                yield row

    return datasets.IterableDataset.from_generator(rows)


def _columns(files: TextFiles, records: list[Record]) -> list[str]:
    if not records:
        raise UserError(f"{files.paths[0]}: holds no rows")
    columns = list(dict.fromkeys(name for row in _readable(records) for name in row))
    if not columns:
        where, row = records[0].where, records[0].row
        fault = row.fault if isinstance(row, Unreadable) else "is an empty object"
        raise UserError(f"{where}: {fault}")
    return columns


def _readable(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    return (record.row for record in records if not isinstance(record.row, Unreadable))


def _checked(record: Record, form: RowFormat, rejects: Rejects) -> dict[str, Any] | None:
    """The normalised row with its other columns, or None once it is set aside."""
    if isinstance(record.row, Unreadable):
        rejects.add(record.index, record.where, record.row.fault, record.row.value)
        return None
    try:
        row = form.normalise(record.row)
    except MalformedRow as error:
        rejects.add(record.index, record.where, str(error), record.row)
        return None
    extras = {name: value for name, value in record.row.items() if name not in form.fields}
    return {**extras, **row, "row": record.index}


def _check_batch(
    batch: Mapping[str, list[Any]], indices: list[int], form: RowFormat
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS[form.kind]}
    problems: list[str | None] = []
    read = [name for name in (*form.fields, *TEMPLATE_COLUMNS) if name in batch]
    for position in range(len(indices)):
        row: dict[str, Any] = dict.fromkeys(columns)
        try:
            row = form.normalise({name: batch[name][position] for name in read})
            problems.append(None)
        except MalformedRow as error:
            problems.append(str(error))
        for name, values in columns.items():
            values.append(row[name])
    return {**columns, "row": indices, _PROBLEM: problems}


def _features(source: datasets.Features, form: RowFormat) -> datasets.Features:
    """Column types after the check: messages keep the type that the source gives them."""
    message_columns = [
        name for name in ("prompt", *form.fields) if _holds_messages(source.get(name))
    ]
    text = datasets.Value("string")
    messages = datasets.List({"role": text, "content": text})
    if form.conversational and message_columns:
        kept = message_columns[-1] if form.message_answers else message_columns[0]
        listed = kept in ("completions", "responses")
        messages = source[kept].feature if listed else source[kept]
    prompt_or_answer: Any = messages if form.conversational else text
    types: dict[str, Any] = {
        "prompt": prompt_or_answer,
        "chosen": prompt_or_answer,
        "rejected": prompt_or_answer,
        "completion": prompt_or_answer,
        "completions": datasets.List(prompt_or_answer),
        "label": datasets.Value("bool"),
        "ranks": datasets.List(datasets.Value("int64")),
    }
    extras = {name: kind for name, kind in source.items() if name not in form.fields}
    kept_types = {name: types[name] for name in COLUMNS[form.kind]}
    own = {"row": datasets.Value("int64"), _PROBLEM: text}
    return datasets.Features({**extras, **kept_types, **own})


def _holds_messages(feature: Any) -> bool:
    return isinstance(feature, datasets.List) and not isinstance(feature.feature, datasets.Value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value
