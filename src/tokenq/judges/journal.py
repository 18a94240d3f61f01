"""Verdicts on disk as they come, so that a killed run goes on where it stopped."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenq.errors import UserError
from tokenq.storage import atomic_file, sole_writer, write_text

_RECORDS, _SETTINGS = "verdicts.jsonl", "settings.json"
_SYNC_SECONDS = 1.0


class VerdictJournal:
    """The verdicts of one set of comparisons in a folder, by judge and number of the comparison.

    `verdicts.jsonl` holds whole results only; between, records lie in `verdicts.jsonl.part`,
    written as they come. A judge can be added to a finished folder, whose verdicts are kept.

    settings: what decides the comparisons; a folder of others is refused

    Raises UserError on entering where the folder holds other comparisons, or is in use.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / _RECORDS
        self._part = folder / f"{_RECORDS}.part"
        self._settings_path = folder / _SETTINGS
        self._settings = _plain(settings)
        self._judges: dict[str, Any] = {}
        self._records: dict[tuple[str, int], dict[str, Any]] = {}
        self._held = ExitStack()
        self._synced = 0.0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(sole_writer(self.path))
            self._read()
            self._file = held.enter_context(self._part.open("a", encoding="utf-8"))
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()
        if self._part.exists() and not self._part.stat().st_size:
            self._part.unlink()

    def known(self, judge: str, identity: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The records of a judge that are there already, by comparison.

        identity: what decides its verdicts. Raises UserError where theirs came of another
        """
        found = self._judges.setdefault(judge, _plain(identity))
        if found != _plain(identity):
            raise UserError(
                f"{self.path.parent} holds verdicts of another judge {judge!r}: its "
                f"{_difference(found, _plain(identity))}; accepted: a new folder, or the same judge"
            )
        self._save_settings()
        return {number: each for (name, number), each in self._records.items() if name == judge}

    def append(self, judge: str, number: int, record: Mapping[str, Any]) -> None:
        """Add one record: a killed process keeps it, a power cut all but those of a second."""
        line = {"judge": judge, "comparison": number, **record}
        self._records[judge, number] = line
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Put all records under the final name, by judge and comparison."""
        order = list(self._judges)
        keys = sorted(self._records, key=lambda key: (order.index(key[0]), key[1]))
        with atomic_file(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for key in keys:
                file.write(json.dumps(self._records[key], ensure_ascii=False) + "\n")
        self._file.truncate(0)

    def _read(self) -> None:
        if self._settings_path.exists():
            found = json.loads(self._settings_path.read_text(encoding="utf-8"))
            self._judges = found.pop("judges", {})
            if found != self._settings:
                raise UserError(
                    f"{self.path.parent} holds verdicts on other comparisons: its "
                    f"{_difference(found, self._settings)}; accepted: a new folder, or the same "
                    "settings to go on"
                )
        for path in (self.path, self._part):
            if not path.exists():
                continue
            if not self._settings_path.exists():
                raise UserError(
                    f"{path}: nothing says which comparisons these verdicts are on "
                    f"({_SETTINGS} is gone); accepted: a new folder"
                )
            self._load(path)

    def _load(self, path: Path) -> None:
        """Read records; a torn last line, which a killed process leaves, is cut off."""
        whole = 0
        with path.open("rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(whole)
                    return
                whole += len(line)
                try:
                    record = json.loads(line)
                    self._records[record["judge"], record["comparison"]] = record
                except (ValueError, LookupError, TypeError) as error:
                    raise UserError(
                        f"{path}: holds a line that is no verdict; remove the file"
                    ) from error

    def _save_settings(self) -> None:
        text = json.dumps({**self._settings, "judges": self._judges}, indent=2, ensure_ascii=False)
        write_text(self._settings_path, text + "\n")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON reads it back."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _difference(found: dict[str, Any], now: dict[str, Any]) -> str:
    for name in [*now, *found]:
        if found.get(name) != now.get(name):
            return f"{name} is {found.get(name)!r}, now it is {now.get(name)!r}"
    return ""
