"""The monitor's folder in a run: what was probed, and what the trainer logged, line by line.

A line is on the disk before the run goes on, so a crash loses the probe that it interrupts and no
other. Anybody may read at any time; one process writes.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenq.errors import UserError
from tokenq.monitor.readings import History, Reading, Setup
from tokenq.storage import cut_torn_line, sole_writer, write_text

FOLDER = "monitor"
_SETUP, _READINGS, _LOGS = "setup.json", "readings.jsonl", "logs.jsonl"
_RESUMED = "resumed"
_FIXED = ("beta", "end_ids", "probe")
"""What may not change between the parts of a run. The reference's own numbers may, in their last
digits, on another machine; names and settings for people may as well."""


class MonitorFolder:
    """The folder `root`, by custom RUN_DIR/monitor.

    setup.json:     what the readings are read against, see `readings.Setup`
    readings.jsonl: a line a probe, see `readings.Reading`
    logs.jsonl:     a line each time the trainer logs, with its "step"

    Both .jsonl files only grow. A line {"resumed": N} voids the lines before it whose step is
    above N. What others keep beside them (the report, the reference's states) is not touched here.

    The first writing call keeps other writers out until :meth:`close`, or until the process ends.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held = ExitStack()
        self._writing = False

    @classmethod
    def of(cls, run_dir: Path) -> Self:
        """The monitor's folder of a run."""
        return cls(run_dir / FOLDER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write."""
        self._held.close()
        self._writing = False

    def exists(self) -> bool:
        """Whether a monitor has written here."""
        return any((self.root / name).exists() for name in (_SETUP, _READINGS, _LOGS))

    def write_setup(self, setup: Setup) -> None:
        """Keep the setup; where there is one already it stays, and must be of the same probe.

        Raises UserError where the folder holds readings of another probe or another beta.
        """
        self._write()
        path = self.root / _SETUP
        now = setup.to_dict()
        if path.exists():
            found = _json_file(path)
            for name in _FIXED:
                if found.get(name) != json.loads(json.dumps(now[name])):
                    raise UserError(_other_run(self.root, name, found, now))
            return
        write_text(path, json.dumps(now, allow_nan=False) + "\n")

    def append_reading(self, reading: Reading) -> None:
        """Add one probe; it is on the disk when this returns."""
        self._append(_READINGS, reading.to_line())

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Add a log line of the trainer, with its "step"; numbers that JSON lacks become null.

        Raises ValueError for a line without a step.
        """
        if not isinstance(line.get("step"), int):
            raise ValueError(f"a log line needs a step, got {dict(line)}")
        self._append(_LOGS, json.dumps({name: _plain(value) for name, value in line.items()}))

    def resume(self, step: int) -> None:
        """The run goes on from `step`: what was written of later steps is void. -1 voids all."""
        for name in (_READINGS, _LOGS):
            self._append(name, json.dumps({_RESUMED: step}))

    def history(self) -> History:
        """All that is there: readings in order of steps, the last of those with the same step.

        Raises UserError for a line that is neither whole nor the last.
        """
        setup = None
        path = self.root / _SETUP
        if path.exists():
            try:
                setup = Setup.from_dict(_json_file(path))
            except (LookupError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: holds no setup of a monitor; remove it") from error
        readings = {}
        for line, plain in _valid(self.root / _READINGS):
            try:
                reading = Reading.from_dict(plain)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise _bad_line(self.root / _READINGS, line, "reading") from error
            readings[reading.step] = reading
        logs = [_numbers(plain) for _, plain in _valid(self.root / _LOGS)]
        return History(setup, [readings[step] for step in sorted(readings)], logs)

    def _write(self) -> None:
        if self._writing:
            return
        self._held.enter_context(sole_writer(self.root / _READINGS))
        self._writing = True

    def _append(self, name: str, line: str) -> None:
        self._write()
        path = self.root / name
        if path.exists():
            cut_torn_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _valid(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and content of the lines that no later start has voided."""
    kept: list[tuple[int, dict[str, Any]]] = []
    for number, plain in _lines(path):
        if _RESUMED in plain:
            kept = [each for each in kept if each[1]["step"] <= plain[_RESUMED]]
        else:
            kept.append((number, plain))
    yield from kept


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                plain = json.loads(line)
            except ValueError as error:
                raise _bad_line(path, number, "JSON") from error
            if not isinstance(plain, dict) or not isinstance(plain.get("step", 0), int):
                raise _bad_line(path, number, "record")
            if _RESUMED not in plain and "step" not in plain:
                raise _bad_line(path, number, "record")
            yield number, plain


def _bad_line(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}: line {number} is no {what}; remove the line, or the folder")


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON; remove it to monitor anew") from error


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in line.items()}


def _other_run(root: Path, name: str, found: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    values = "" if name == "probe" else f" ({found.get(name)!r}, now {now[name]!r})"
    return (
        f"{root} holds the readings of another run: its {name} differs{values}; accepted: another "
        "folder, the same settings to go on, or an empty folder"
    )
