"""A run in numbers that programs read: the verdict, findings, every measure from first to last."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenq.monitor.decision import decide
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.identity import Interval
from tokenq.monitor.measures import MEASURES, measured
from tokenq.monitor.readings import History
from tokenq.storage import write_text

SUMMARY_FILE, FINDINGS_FILE = "summary.json", "findings.json"

Values = Mapping[str, Sequence[tuple[int, Interval]]]
"""Of each measure the steps at which it is known, in order, with its estimates."""


def values(history: History) -> Values:
    """Every measure at every step: of probes with intervals; else what logs say, without."""
    known: dict[str, list[tuple[int, Interval]]] = {}
    if history.setup is not None:
        for reading in history.readings:
            for name, interval in measured(history.setup, reading).items():
                known.setdefault(name, []).append((reading.step, interval))
    probed = set(known)
    for line in history.logs:
        for name, value in line.items():
            if name not in probed and name not in ("step", "epoch") and _is_number(value):
                point = (int(line["step"]), Interval(float(value), None, None))
                known.setdefault(name, []).append(point)
    return known


def last_step(history: History) -> int:
    """The last optimiser step that anything is known of."""
    steps = [reading.step for reading in history.readings]
    return max([*steps, *(int(line["step"]) for line in history.logs)], default=0)


def seconds(history: History) -> tuple[float, float]:
    """What the probes took, and what the run without them had taken until the last of them."""
    spent = sum(reading.seconds for reading in history.readings)
    whole = max((reading.training_seconds for reading in history.readings), default=0.0)
    return spent, max(0.0, whole - spent)


def summarise(
    history: History, *, ended: bool, monitor_seconds: float | None = None
) -> dict[str, Any]:
    """The contents of `summary.json`; numbers that JSON lacks are null.

    ended:           whether the run is over
    monitor_seconds: what the monitor took in all; None: the sum of its readings
    """
    spent, trained = seconds(history)
    spent = spent if monitor_seconds is None else monitor_seconds
    setup = history.setup
    found: dict[str, Any] = {
        "ended": ended,
        "steps": last_step(history),
        "readings": len(history.readings),
        "log_lines": len(history.logs),
        "policy": setup.policy if setup else None,
        "reference": setup.reference if setup else None,
        "beta": setup.beta if setup else None,
        "training_seconds": trained,
        "monitor_seconds": spent,
        "overhead": spent / trained if trained else None,
        "verdict": asdict(decide(history)),
        "findings": [each.to_dict() for each in findings(history)],
        "measures": {name: _measure(name, points) for name, points in values(history).items()},
    }
    return _plain(found)


def write_summary(
    folder: Path, history: History, *, ended: bool, monitor_seconds: float | None = None
) -> dict[str, Any]:
    """Write `summary.json` and `findings.json` into `folder`, each whole; return the first."""
    found = summarise(history, ended=ended, monitor_seconds=monitor_seconds)
    for name, content in ((FINDINGS_FILE, found["findings"]), (SUMMARY_FILE, found)):
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / name, text + "\n")
    return found


def _measure(name: str, points: Sequence[tuple[int, Interval]]) -> dict[str, Any]:
    (first, start), (last, now) = points[0], points[-1]
    return {
        "step": last,
        **vars(now),
        "unit": MEASURES[name].unit if name in MEASURES else None,
        "start": {"step": first, **vars(start)},
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """The same with null for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
