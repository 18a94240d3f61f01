"""JSON lines that grow row by row, written by one or more processes, and survive any cut."""

import heapq
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenq.credit.processes import ALONE, Processes
from tokenq.errors import UserError
from tokenq.storage import atomic_file, cut_torn_line, discard_parts, sole_writer, write_text

_ROW = re.compile(rb'\{"row": (\d+)')


class Journal:
    """Records with an integer field `row`, in its order under `path` once finished.

    Until then they lie beside it in parts, `path.N.part`: one for each process of each start, every
    one in ascending order of rows, so that what is done can be read, and all of it be merged, with
    one line of each in memory. `settings.json` says what they are records of.

    A context manager; inside, no other start can write to the same path. All `processes` make the
    same calls.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], processes: Processes = ALONE
    ) -> None:
        """
        settings: what decides the records

        Entering raises UserError if records of other settings lie there, or if another start is
        writing.
        """
        self.path = path
        self._settings = settings
        self._processes = processes
        self._held = ExitStack()
        self._earlier: list[Path] = []
        self._part = path

    def __enter__(self) -> Self:
        if self._processes.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as held:
                held.enter_context(sole_writer(self.path))
                self._check()
                self._mend()
                self._held = held.pop_all()
        self._processes.wait()
        self._earlier = self._parts()
        # Nobody begins a part before everybody has seen which ones there are.
        self._processes.wait()
        if not self.finished:
            last = max(map(_number, self._earlier), default=-1)
            self._part = self._named(last + 1 + self._processes.index)
            self._part.touch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    @property
    def finished(self) -> bool:
        """Whether all records are under their final name."""
        return self.path.exists()

    def done(self) -> Iterator[int]:
        """Yield the numbers of the rows that earlier starts have written, ascending."""
        return (row for row, _ in _merged(self._earlier))

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records, their rows above those added before, and wait until they are on the disk."""
        with self._part.open("a", encoding="utf-8") as file:
            for record in records:
                line = json.dumps({"row": record["row"], **record}, ensure_ascii=False)
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """When all processes have come here, put all records in order under the final name."""
        self._processes.wait()
        if self._processes.is_main and not self.finished:
            with atomic_file(self.path) as temporary, temporary.open("wb") as file:
                file.writelines(line for _, line in _merged(self._parts()))
        if self._processes.is_main:
            self._drop_parts()
        self._processes.wait()

    def _check(self) -> None:
        path = self.path.with_name("settings.json")
        if not (self.finished or self._parts()):
            write_text(path, json.dumps(self._settings, indent=2) + "\n")
            return
        found: dict[str, Any] = {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(self._settings)).items():
            if found.get(name) != value:
                raise UserError(
                    f"{self.path.parent} holds the results of another run: its {name} is "
                    f"{found.get(name)!r}, now it is {value!r}; accepted: a new folder, or the "
                    "same settings to continue"
                )

    def _mend(self) -> None:
        """Remove what a killed process left: unfinished lines, and parts that were merged."""
        discard_parts(self.path)
        if self.finished:
            self._drop_parts()
        for part in self._parts():
            cut_torn_line(part)

    def _drop_parts(self) -> None:
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        found = self.path.parent.glob(f"{self.path.name}.*.part")
        return sorted(found, key=_number)

    def _named(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}.part")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a finished journal, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _number(part: Path) -> int:
    return int(part.suffixes[-2][1:])


def _merged(parts: Iterable[Path]) -> Iterator[tuple[int, bytes]]:
    """Row and line of every record, ascending; one line of each part is in memory."""
    return heapq.merge(*map(_numbered_lines, parts), key=lambda numbered: numbered[0])


def _numbered_lines(part: Path) -> Iterator[tuple[int, bytes]]:
    with part.open("rb") as file:
        for line in file:
            match = _ROW.match(line)
            if match is None:
                raise UserError(f"{part}: holds a line that is no record; remove the file")
            yield int(match[1]), line
