"""A run in the terminal: the verdict, the main measures with their course, and the findings."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenq.monitor.decision import Decision, decide
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.readings import History
from tokenq.monitor.summary import last_step
from tokenq.report.monitor_glance import facts, glance
from tokenq.report.monitor_numbers import amount, bounded, opening

VERDICTS = {
    "expected": "Expected",
    "harmful": "Harmful",
    "undecided": "Not decided yet",
    "not negative": "It is not negative",
}
"""How the verdicts of `decide` are called, here and on the page."""

_STYLES = {
    "alarm": "bold red",
    "warning": "bold magenta",
    "note": "bold",
    "harmful": "bold red",
    "expected": "bold blue",
    "not negative": "bold blue",
    "undecided": "bold",
}
_BARS = "▁▂▃▄▅▆▇█"
_COURSE = 16
_WITH_UNITS = 92
"""Characters of a line from which on there is room for units."""


def answer_of(decision: Decision) -> str:
    """The answer behind its verdict, which stands before it already."""
    start = f"{VERDICTS[decision.verdict]}: "
    if not decision.answer.startswith(start):
        return decision.answer
    return opening(decision.answer.removeprefix(start))


def monitor_view(history: History, width: int = 80) -> RenderableType:
    """The whole run in a screen of `width` characters: headline, table, verdict, findings."""
    decision, found = decide(history), findings(history)
    headline = Text(style="dim")
    headline.append(" · ".join(f"{name.lower()} {value}" for name, value in facts(history)))
    verdict = Text("negative chosen reward: expected or harmful?  ", style="dim")
    verdict.append(VERDICTS[decision.verdict], _STYLES[decision.verdict] + " not dim")
    parts: list[RenderableType] = [headline, Text(), _table(history, width), Text(), verdict]
    parts.append(Padding(_plain(answer_of(decision)), (0, 0, 0, 2)))
    for each in found:
        parts += [Text(), *_finding(each)]
    if not found:
        parts += [Text(), Text("findings: none", style="dim")]
    return Group(*parts)


def show_run(console: Console, history: History) -> None:
    """Print the view."""
    console.print(monitor_view(history, console.width))


def news(before: History | None, history: History) -> Iterator[Text]:
    """Lines on what is new since `before`: a line a reading or log, and findings new or changed."""
    known = set() if before is None else {reading.step for reading in before.readings}
    for number, reading in enumerate(history.readings):
        if reading.step not in known:
            yield _line(_until(history, number))
    lines = 0 if before is None else len(before.logs)
    if not history.readings and len(history.logs) > lines:
        yield _line(history)
    told = {} if before is None else {each.name: each.severity for each in findings(before)}
    for each in findings(history):
        if told.get(each.name) != each.severity:
            yield from _finding(each)


def sparkline(course: Sequence[float], width: int = _COURSE) -> str:
    """The course of a measure in block characters; of a long one, evenly spaced values."""
    if len(course) > width:
        course = [course[round(i * (len(course) - 1) / (width - 1))] for i in range(width)]
    low, high = min(course, default=0.0), max(course, default=0.0)
    if not high > low:
        return _BARS[3] * len(course)
    return "".join(_BARS[round((value - low) / (high - low) * 7)] for value in course)


def _until(history: History, number: int) -> History:
    """The history as it was after a reading."""
    return History(history.setup, history.readings[: number + 1], ())


def _line(history: History) -> Text:
    text = Text(f"step {last_step(history):>6}", style="bold")
    for row in glance(history):
        if row.label in (
            "chosen reward",
            "rejected reward",
            "margin",
            "displaced at the fork",
        ):
            text.append(f"  {row.label} {bounded(row.now)}", style="not bold")
    return text


def _table(history: History, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("start", "now", "change, 95 %"):
        table.add_column(name, justify="right")
    table.add_column("course")
    units = width >= _WITH_UNITS
    if units:
        table.add_column("", style="dim")
    for row in glance(history):
        table.add_row(
            row.label,
            amount(row.start.mean),
            Text(amount(row.now.mean), style="bold"),
            bounded(row.change),
            Text(sparkline(row.course)),
            *([row.unit] if units else []),
        )
    return table


def _finding(finding: Finding) -> list[Text]:
    head = Text(finding.severity.upper(), style=_STYLES[finding.severity])
    head.append(f"  {finding.title}", style="not bold" if finding.severity == "note" else "")
    head.append(f"  since step {finding.since:,}", style="not bold dim")
    changes = [Text("  → ").append_text(_plain(change)) for change in finding.change[:2]]
    return [head, *changes]


def _plain(text: str) -> Text:
    """Prose with its `code` set apart."""
    parts = Text()
    for number, part in enumerate(text.split("`")):
        parts.append(part, style="bold cyan" if number % 2 else "")
    return parts
