"""`tokenq clean`: preference pairs whose label a policy disputes, and the words that say so."""

import argparse
import json
import math
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from tokenq.cli.arguments import CommandParser
from tokenq.cli.scoring import (
    Scored,
    add_scoring_arguments,
    check_scoring,
    read_rows,
    row_progress,
    score_rows,
)
from tokenq.errors import UserError
from tokenq.report.visible import visible
from tokenq.storage import write_text

if TYPE_CHECKING:
    from tokenq.credit.cleaning import CleaningSummary
    from tokenq.data.loading import Rows

_ACCEPTED = "preference pairs (prompt, chosen, rejected)"


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    options = check_scoring(arguments)
    console = Console(highlight=False)
    rows = read_rows(arguments, ("preference",), _ACCEPTED)
    scored = score_rows(arguments, rows, options, console)

    from tokenq.credit.cleaning import clean_dataset

    settings = {name: getattr(arguments, name) for name in ("threshold", "flip")}
    with row_progress("Judging labels", rows, console) as advance:
        summary = clean_dataset(
            rows, scored.records, arguments.out, **settings, on_progress=advance
        )
    memorised = summary.memorised(_trained_on(scored, arguments.data))
    report = {
        **scored.settings,
        **settings,
        **summary.to_dict(),
        "memorised": memorised,
        "rejected": rows.rejected,
    }
    write_text(arguments.out / "summary.json", json.dumps(report, indent=2) + "\n")
    _write_page(rows, scored, summary, arguments)
    _show(summary, memorised, arguments, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "clean",
        "Find preference pairs in which a policy gives the rejected answer the higher implicit "
        "reward, say how likely their label is wrong, and which words are behind it.",
    )
    add_scoring_arguments(parser, _ACCEPTED)
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        help="pairs whose margin, in nats times beta, is below this are disputed",
    )
    cleaning.add_argument(
        "--flip",
        type=float,
        metavar="P",
        help="write disputed pairs whose label is wrong with at least this probability to "
        "flipped.jsonl, their answers exchanged",
    )
    cleaning.add_argument("--page_rows", type=int, default=2000, help="most rows on the page")
    cleaning.add_argument("--show", type=int, default=5, help="disputes shown in the terminal")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if not math.isfinite(arguments.threshold):
        raise UserError(f"--threshold is {arguments.threshold}; accepted: a number")
    if arguments.flip is not None and not 0 < arguments.flip <= 1:
        raise UserError(f"--flip is {arguments.flip}; accepted: above 0, up to 1")
    for name in ("page_rows", "show"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; accepted: 0 or more")


def _trained_on(scored: Scored, data: str) -> bool:
    """Whether the policy lies in the folder of a `tokenq train` run over `data`."""
    policy = scored.settings.get("policy")
    record = Path(policy or "") / "run.json"
    if policy is None or not record.is_file():
        return False
    settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
    trained = settings.get("dataset_name")
    names = trained if isinstance(trained, list) else [trained]
    return any(name == data or _same_file(name, data) for name in names if name)


def _same_file(one: str, two: str) -> bool:
    return Path(one).exists() and Path(two).exists() and Path(one).samefile(two)


def _write_page(
    rows: "Rows", scored: Scored, summary: "CleaningSummary", arguments: argparse.Namespace
) -> None:
    from tokenq.credit.cleaning import disputed_records
    from tokenq.report.html import PageHead, write_page

    head = PageHead(
        policy=scored.settings.get("policy", "the policy"),
        reference=scored.settings.get("reference") or "its base",
        beta=scored.settings["beta"],
        data=f"{rows.source}: pairs whose label is disputed",
        accuracy=summary.accuracy,
        mean_margin=summary.margins.value,
        ordered=summary.margins.count,
        rows=summary.disputed,
        tokens=summary.disputed_tokens,
        skipped=sum(summary.skipped.values()) + rows.rejected,
        source="disputed.jsonl",
        format=summary.form.to_dict(),
    )
    records = disputed_records(scored.records, arguments.threshold)
    write_page(arguments.out / "index.html", records, head, page_rows=arguments.page_rows)


def _show(
    summary: "CleaningSummary",
    memorised: str | None,
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    from tokenq.credit.journal import read_records

    found = read_records(arguments.out / "disputed.jsonl")
    for line in nsmallest(arguments.show, found, key=lambda each: each["dispute"]["margin"]):
        _show_dispute(line, console)
    low, high = summary.noise.interval
    console.print(
        f"\n{summary.disputed} of {summary.margins.count} pairs disputed, "
        f"{summary.by_form} of them for their form alone"
    )
    console.print(
        f"wrong labels, if the policy is not wrong: {100 * summary.noise.rate:.1f}% "
        f"({100 * low:.1f} to {100 * high:.1f}%)"
    )
    if arguments.flip is not None:
        console.print(f"{summary.flipped} labels exchanged in flipped.jsonl")
    for reason, count in summary.skipped.items():
        console.print(f"{count} skipped: {reason}", markup=False)
    for warning in (memorised, summary.form.warning):
        if warning:
            console.print(f"warning: {warning}", style="yellow", markup=False)
    page = arguments.out / "index.html"
    console.print(f"written: {arguments.out}\npage: {page}", markup=False, soft_wrap=True)


def _show_dispute(line: dict[str, Any], console: Console) -> None:
    dispute = line["dispute"]
    console.print(Rule(Text(f"row {line['row']}"), style="dim"))
    console.print(
        f"margin {dispute['margin']:+.3f}, label wrong with probability "
        f"{dispute['probability_wrong']:.2f}"
    )
    for reason in dispute["reasons"]:
        text = f"  {reason['difference']:+.3f}  {reason['side']}: {visible(reason['text'].strip())}"
        console.print(Text(text), soft_wrap=True)
    console.print(f"  {dispute['shared']:+.3f}  words that both have, and their ends")
