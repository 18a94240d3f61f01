"""Error spans in the terminal: the response with its flagged spans marked, and a list of them."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tokenq.report.terminal import token_style
from tokenq.report.visible import tame, visible

_FLAGGED = token_style(-1.0, 1.0)
"""That of the most blamed token."""


def show_spans(console: Console, record: dict[str, Any], name: str) -> None:
    """Print one response of a record with spans (`credit.locating.with_spans`)."""
    side = record["responses"][name]
    console.print(Rule(Text(f"row {record['row']}, {name}"), style="dim"))
    console.print(Padding(marked_text(side), (0, 0, 0, 2)))
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("span")
    for column in ("characters", "blame", "p"):
        table.add_column(column, justify="right")
    for span in side["spans"]:
        style = "" if span["flagged"] else "dim"
        place = f"{span['start']}-{span['end']}"
        numbers = (f"{-span['reward']:+.3f}", f"{span['p_value']:.3f}")
        table.add_row(Text(visible(span["text"])), place, *numbers, style=style)
    console.print(Padding(table, (0, 0, 0, 2)))


def marked_text(side: dict[str, Any]) -> Text:
    """The response as written, its flagged spans underlined on a background of their own."""
    response = side["response"]
    text, reached = Text(), 0
    flagged = [span for span in side["spans"] if span["flagged"]]
    for span in sorted(flagged, key=lambda each: each["start"]):
        text.append(tame(response[reached : span["start"]]))
        text.append(tame(response[max(reached, span["start"]) : span["end"]]), _FLAGGED)
        reached = max(reached, span["end"])
    return text.append(tame(response[reached:]))
