"""How long each stage took, kept over sessions of the same run."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from tokenq.storage import write_text


class Clock:
    """Announces stages and measures them; the file `path` remembers finished ones.

    Seconds are those of the session that finished a stage first: a later run with the same settings
    only reads the results again.
    """

    def __init__(self, path: Path, console: Console, stages: int) -> None:
        self._path = path
        self._console = console
        self._stages = stages
        self._begun = 0
        self.seconds: dict[str, dict[str, float]] = {}
        if path.is_file():
            self.seconds = json.loads(path.read_text(encoding="utf-8"))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage: wall seconds, and CPU seconds of all threads."""
        self._begun += 1
        self._console.rule(f"[bold]{self._begun}/{self._stages}  {name}", align="left")
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent = {
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        self.seconds.setdefault(name, spent)
        write_text(self._path, json.dumps(self.seconds, indent=2) + "\n")

    def total(self) -> dict[str, Any]:
        """Sums over stages."""
        names = ("seconds", "cpu_seconds")
        return {name: round(sum(each[name] for each in self.seconds.values()), 2) for name in names}
