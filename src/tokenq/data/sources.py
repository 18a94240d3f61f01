"""Where rows come from: a file, a folder, the hub or a bundled set; records or a `datasets` set.

Text files are read here line by line so that a bad row can be named by its line; everything that
Arrow holds is opened by `datasets`.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets

from tokenq.errors import UserError

TEXT_FORMATS = ("jsonl", "json", "csv")
_DATA_FORMATS = (*TEXT_FORMATS, "parquet")
_SPLIT_WORDS = {
    "train": ("train",),
    "test": ("test", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
# CSV cells of these columns are JSON.
_JSON_CELLS = (
    *("messages", "completions", "responses", "scores", "ranks"),
    *("tools", "chat_template_kwargs"),
)


@dataclass(frozen=True)
class Unreadable:
    """A line or record that holds no row at all: why, and what stands there."""

    fault: str
    value: Any


@dataclass(frozen=True)
class Record:
    """One row of a source: its number (from 0), where it stands, and what was read there."""

    index: int
    where: str
    row: "dict[str, Any] | Unreadable"


@dataclass(frozen=True)
class TextFiles:
    """Text files whose records are read one after the other."""

    paths: tuple[Path, ...]

    def records(self) -> Iterator[Record]:
        """All records in file order, numbered through.

        Raises:
            UserError: a file cannot be read, or its compression is damaged.
        """
        index = 0
        for path in self.paths:
            reader = {"jsonl": _jsonl, "json": _json, "csv": _csv}[_format_of(path) or ""]
            try:
                for where, value in reader(path):
                    yield Record(index, where, value)
                    index += 1
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: cannot be read ({_cause(error)})") from error

    def fingerprint(self) -> str:
        """Hash of the files' bytes."""
        return hash_files(self.paths)


@dataclass(frozen=True)
class ArrowSet:
    """A `datasets` set, its name in messages, and what identifies its content."""

    dataset: "datasets.Dataset | datasets.IterableDataset"
    name: str
    fingerprint: str


def open_source(
    source: str | Path, *, split: str, config: str | None, revision: str | None, streaming: bool
) -> TextFiles | ArrowSet:
    """Find ``source``: a file, a folder, ``bundled:NAME``, else a name on the hub.

    Raises:
        UserError: it does not exist, or what is there cannot be read.
    """
    if str(source).startswith("bundled:"):
        return _bundled(str(source), split)
    path = Path(source).expanduser()
    if path.is_file():
        if _format_of(path) is None:
            raise UserError(
                f"{path}: no known data file; accepted: {_accepted_suffixes()}, or a folder"
            )
        return _files([path], streaming)
    if path.is_dir():
        return _folder(path, split, streaming)
    looks_like_a_path = (
        _format_of(path) or path.is_absolute() or str(source).startswith(("./", "../", "~"))
    )
    if looks_like_a_path or str(source).count("/") > 1:
        raise UserError(f"{source}: no such file or folder")
    return _hub(str(source), split, config, revision, streaming)


def hash_files(paths: tuple[Path, ...]) -> str:
    """SHA-256 over the contents of ``paths``, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield f"{path}, line {number}", _json_row(line)


def _json_row(line: bytes) -> dict[str, Any] | Unreadable:
    try:
        return _row(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Unreadable(
            f"is not UTF-8 (byte {error.start + 1}); accepted: a JSON object", repr(line)
        )
    except json.JSONDecodeError as error:
        return Unreadable(
            f"is not valid JSON ({error.msg}, column {error.colno}); accepted: a JSON object",
            line.decode("utf-8"),
        )


def _row(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    return Unreadable(
        f"is a JSON {type(value).__name__}; accepted: a JSON object with named fields", value
    )


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path, "rb") as file:
        content = file.read()
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8; accepted: JSON") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: is not valid JSON ({error.msg}, column {error.colno}); "
            "accepted: a list of objects, or one object a line in a .jsonl file"
        ) from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise UserError(
            f'{path}: holds no list of rows; accepted: [{{...}}, ...] or {{"data": [...]}}'
        )
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", _row(row)


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with _open(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1  # where the row begins: a quoted cell may hold line ends
        try:
            header = next(reader, [])
            while True:
                line = reader.line_num + 1
                cells = next(reader, None)
                if cells is None:
                    return
                if cells:
                    yield f"{path}, line {line}", _csv_row(header, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}, line {line}: cannot be read ({error}); accepted: CSV in UTF-8"
            ) from None


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any] | Unreadable:
    if len(cells) != len(header):
        return Unreadable(
            f"has {len(cells)} cells; accepted: {len(header)}, as in the header "
            f"({', '.join(header)})",
            cells,
        )
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in _JSON_CELLS:
        if row.get(name):
            try:
                row[name] = json.loads(row[name])
            except json.JSONDecodeError as error:
                return Unreadable(
                    f"field '{name}' is not valid JSON ({error.msg}); accepted: JSON", row
                )
    labels = {"true": True, "1": True, "false": False, "0": False}
    if "label" in row:
        row["label"] = labels.get(row["label"].strip().lower(), row["label"])
    return row


def _files(paths: list[Path], streaming: bool) -> TextFiles | ArrowSet:
    formats = {_format_of(path) for path in paths}
    if len(formats) > 1:
        raise UserError(
            f"{paths[0].parent}: data files of several formats; keep one format a split"
        )
    if formats != {"parquet"}:
        return TextFiles(tuple(paths))
    names = [str(path) for path in paths]
    fingerprint = hash_files(tuple(paths))
    try:
        dataset = datasets.load_dataset(
            "parquet", data_files=names, split="train", streaming=streaming
        )
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise UserError(f"{paths[0]}: is no readable Parquet file ({_cause(error)})") from error
    return ArrowSet(dataset, names[0] if len(names) == 1 else str(paths[0].parent), fingerprint)


def _folder(path: Path, split: str, streaming: bool) -> TextFiles | ArrowSet:
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        if split not in names:
            raise UserError(f"{path}: has no split {split!r}; accepted: {', '.join(names)}")
        path = path / split
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        dataset = datasets.load_from_disk(str(path))
        listed = json.loads((path / "state.json").read_text())["_data_files"]
        shards = tuple(path / each["filename"] for each in listed)
        data = dataset.to_iterable_dataset() if streaming else dataset
        return ArrowSet(data, str(path), hash_files(shards))
    found = sorted(each for each in path.rglob("*") if each.is_file() and _format_of(each))
    found = [each for each in found if not each.name.startswith((".", "dataset_info"))]
    if not found:
        raise UserError(
            f"{path}: holds no data file; accepted: {_accepted_suffixes()}, or save_to_disk"
        )
    splits = {each: _split_of(each.relative_to(path)) for each in found}
    wanted = [each for each in found if splits[each] == split]
    if not wanted and any(splits.values()):
        there = ", ".join(sorted({name for name in splits.values() if name}))
        raise UserError(f"{path}: has no data file of split {split!r}; accepted: {there}")
    return _files(wanted or found, streaming)


def _split_of(path: Path) -> str | None:
    for part in (path.name, *reversed(path.parts[:-1])):
        words = part.lower().replace("_", "-").replace(".", "-").split("-")
        for split, names in _SPLIT_WORDS.items():
            if any(name in words for name in names):
                return split
    return None


def _hub(
    name: str, split: str, config: str | None, revision: str | None, streaming: bool
) -> ArrowSet:
    try:
        dataset = datasets.load_dataset(
            name, config, split=split, revision=revision, streaming=streaming
        )
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: no such file or folder, and not to be had from the hub ({_cause(error)})"
        ) from error
    identity = (
        dataset._fingerprint if isinstance(dataset, datasets.Dataset) else f"{name}@{revision}"
    )
    return ArrowSet(dataset, f"{name}[{split}]", identity)


def _bundled(source: str, split: str) -> ArrowSet:
    name, _, query = source.removeprefix("bundled:").partition("?")
    if name not in BUNDLED:
        raise UserError(f"{source}: no such bundled data set; accepted: {', '.join(BUNDLED)}")
    dataset = BUNDLED[name](split, query)
    identity = hashlib.sha256()
    for row in dataset:
        identity.update(json.dumps(row, sort_keys=True).encode())
    return ArrowSet(dataset, f"{source}[{split}]", identity.hexdigest())


def _film_reviews(split: str, query: str) -> datasets.Dataset:
    from tokenq.data import film_reviews

    return film_reviews.load(split, film_reviews.parse_options(query))


BUNDLED: dict[str, Callable[[str, str], datasets.Dataset]] = {"film-reviews": _film_reviews}


def _format_of(path: Path) -> str | None:
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz" and len(suffixes) > 1:
        return suffixes[-2] if suffixes[-2] in TEXT_FORMATS else None
    return suffixes[-1] if suffixes and suffixes[-1] in _DATA_FORMATS else None


def _open(path: Path, mode: str, **text: Any) -> IO[Any]:
    opener: Callable[..., IO[Any]] = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, mode, **text)


def _accepted_suffixes() -> str:
    return ", ".join(f".{name}" for name in _DATA_FORMATS) + " (text formats also .gz)"


def _cause(error: BaseException) -> str:
    root = error.__cause__ or error
    return " ".join(str(root).split())[:200] or type(root).__name__
