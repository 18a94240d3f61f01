"""What is known of a run, from what it left: the monitor's folder, or a trainer's logs alone."""

import csv
import importlib.util
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from tokenq.errors import UserError
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.log_names import STEP_NAMES, trl_line
from tokenq.monitor.readings import History

_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_EVENTS = "*tfevents*"
_DEPTH = 3
"""Levels of folders with event files: trainers write to RUN_DIR/runs/NAME, no deeper."""
_LAST_STEP = 2**53
"""Beyond it a float is no exact count."""
_ACCEPTED = (
    "accepted: a run's folder (with monitor/, trainer_state.json, checkpoint-N/ or tensorboard "
    "event files), one of those files, or log lines with a step in .jsonl, .json or .csv"
)

Line = dict[str, Any]


def run_history(path: Path) -> History:
    """All that is known of the run at `path`.

    path: the run's folder, its monitor's folder or a checkpoint; or a file: trainer_state.json,
          log lines (.jsonl, .json, .csv) with a column "step", tensorboard events. Metrics come
          under TRL's names, see `log_names`

    Raises UserError where nothing is found, or a file is not what its name says.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; {_ACCEPTED}")
    if path.is_file():
        return History(None, [], _file_lines(path))
    for folder in (MonitorFolder.of(path), MonitorFolder(path)):
        if folder.exists():
            history = folder.history()
            logs = [trl_line(line) for line in history.logs]
            return replace(history, logs=logs or _folder_lines(path) or [])
    lines = _folder_lines(path)
    if lines is None:
        raise UserError(f"{path} holds no logs of a run; {_ACCEPTED}")
    return History(None, [], lines)


def _folder_lines(folder: Path) -> list[Line] | None:
    """Log lines of the trainer's state that went furthest, else of tensorboard's; None if none."""
    states = [folder / _STATE, *(child / _STATE for child in _checkpoints(folder))]
    found = [_state_lines(path) for path in states if path.is_file()]
    if found:
        return max(found, key=lambda lines: max((line["step"] for line in lines), default=-1))
    near = [path for depth in range(_DEPTH) for path in folder.glob("*/" * depth + _EVENTS)]
    events = sorted(near, key=lambda path: path.stat().st_mtime, reverse=True)
    for parent in dict.fromkeys(path.parent for path in events):
        if lines := _event_lines(parent):
            return lines
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """From the last to the first."""
    numbered = [
        (int(match[1]), child)
        for child in folder.iterdir()
        if (match := _CHECKPOINT.fullmatch(child.name))
    ]
    return [child for _, child in sorted(numbered, reverse=True)][:1]


def _file_lines(path: Path) -> list[Line]:
    if "tfevents" in path.name:
        return _event_lines(path)
    readers = {".json": _state_lines, ".jsonl": _json_lines, ".csv": _csv_lines}
    if path.suffix not in readers:
        raise UserError(f"{path} is a {path.suffix or 'file without ending'}; {_ACCEPTED}")
    return readers[path.suffix](path)


def _state_lines(path: Path) -> list[Line]:
    """Of a trainer_state.json, or of a list of log lines."""
    try:
        plain = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); {_ACCEPTED}") from error
    lines = plain.get("log_history") if isinstance(plain, dict) else plain
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{path} has no `log_history`, and is no list of log lines; {_ACCEPTED}")
    return _in_order(path, enumerate(lines, 1))


def _json_lines(path: Path) -> list[Line]:
    # A line that is still being written may end within a character.
    whole = _text(path, torn=True)

    def lines() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for number, text in enumerate(io.StringIO(whole, newline=None), 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError as error:
                if not text.endswith("\n"):
                    return
                raise UserError(f"{path}: line {number} is no JSON; {_ACCEPTED}") from error
            if not isinstance(line, dict):
                raise UserError(f"{path}: line {number} is no JSON object; {_ACCEPTED}")
            yield number, line

    return _in_order(path, lines())


def _csv_lines(path: Path) -> list[Line]:
    rows = [
        {name: value for name, value in row.items() if name and not _is_band(name)}
        for row in csv.DictReader(io.StringIO(_text(path), newline=""))
    ]
    return _in_order(path, enumerate(rows, 2))


def _event_lines(path: Path) -> list[Line]:
    """Of tensorboard's event files; path: a folder of one run's, or one of them."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            f"{path} holds tensorboard event files, which only tensorboard can read: pip install "
            "tensorboard; or give trainer_state.json or a .csv instead"
        )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    lines: dict[int, Line] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            lines.setdefault(event.step, {"step": event.step})[tag] = event.value
    return [trl_line(lines[step]) for step in sorted(lines)]


def _in_order(path: Path, lines: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Line]:
    """Lines with a step as an integer, metrics as numbers, under TRL's names.

    Where the step goes back, the run was resumed: what it had logged from there on is void.
    """
    kept: list[Line] = []
    for number, line in lines:
        named = {name: _number(value) for name, value in line.items() if value not in (None, "")}
        column = next((name for name in STEP_NAMES if name in named), None)
        step = named.pop(column) if column else None
        if not _is_step(step):
            numeric = isinstance(step, int | float)
            found = f"step {step}" if numeric else f"no step ({', '.join(line) or 'empty'})"
            raise UserError(
                f"{path}: line {number} has {found}; accepted: a whole number called "
                f"{', '.join(STEP_NAMES[:3])}"
            )
        while kept and kept[-1]["step"] > step:
            kept.pop()
        kept.append(trl_line({"step": int(step), **named}))
    return kept


def _text(path: Path, *, torn: bool = False) -> str:
    """A file's text; with `torn` without what follows its last line break, if that is no text."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        ended = raw.rfind(b"\n") + 1
        if torn and 0 < ended <= error.start:
            return raw[:ended].decode("utf-8")
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); {_ACCEPTED}") from error


def _is_step(step: Any) -> TypeGuard[int | float]:
    if isinstance(step, bool) or not isinstance(step, int | float):
        return False
    return abs(step) <= _LAST_STEP and step == int(step)


def _is_band(name: str) -> bool:
    """Whether it is the edge of a band that W&B draws around a curve."""
    return name.endswith(("__MIN", "__MAX"))


def _number(value: Any) -> Any:
    """A number that is written as text as a float; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
