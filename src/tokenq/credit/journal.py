"""A JSON-lines file that grows row by row and survives being cut off at any moment."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenq.errors import UserError
from tokenq.storage import write_text


class Journal:
    """Records with an integer field `row`, under `path` once :meth:`finish` has been called.

    Until then they lie in `path` + `.part`, to which :meth:`append` adds. Beside it,
    `settings.json` says what they are records of; a journal opened with other settings is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a new journal, or one to be continued, from which a torn last line is cut.

        Raises UserError if records of other settings lie there.
        """
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._settings = path.with_name("settings.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or self._part.exists():
            self._check(settings)
        else:
            write_text(self._settings, json.dumps(settings, indent=2) + "\n")
        if path.exists():
            path.replace(self._part)
        self._part.touch()
        self.rows = self._recover()

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records and wait until they are on the disk."""
        with self._part.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self.rows.add(record["row"])
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give the file its final name."""
        self._part.replace(self.path)

    def _check(self, settings: Mapping[str, Any]) -> None:
        found: dict[str, Any] = {}
        if self._settings.exists():
            found = json.loads(self._settings.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(settings)).items():
            if found.get(name) != value:
                raise UserError(
                    f"{self.path.parent} holds the results of another run: its {name} is "
                    f"{found.get(name)!r}, now it is {value!r}; accepted: a new folder, or the "
                    "same settings to continue"
                )

    def _recover(self) -> set[int]:
        rows: set[int] = set()
        whole = 0
        with self._part.open("rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                rows.add(json.loads(line)["row"])
                whole += len(line)
            file.truncate(whole)
        return rows


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a finished journal, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
