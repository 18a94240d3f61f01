"""`tokenq rank`: the responses of each prompt, best first by implicit reward."""

import argparse
import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenq.cli.arguments import CommandParser
from tokenq.cli.scoring import (
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
    from tokenq.credit.ranking import RankingSummary

_ACCEPTED = "prompt+responses, prompt+completions, or preference pairs (prompt, chosen, rejected)"
_WIDTH = 100


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    options = check_scoring(arguments)
    console = Console(highlight=False)
    rows = read_rows(arguments, ("ranked", "preference"), _ACCEPTED)
    scored = score_rows(arguments, rows, options, console)

    from tokenq.credit.journal import read_records
    from tokenq.credit.ranking import rank_dataset

    settings = {name: getattr(arguments, name) for name in ("by", "keep", "min_margin")}
    with row_progress("Ranking", rows, console) as advance:
        summary = rank_dataset(rows, scored.records, arguments.out, **settings, on_progress=advance)
    report = {**scored.settings, **settings, **summary.to_dict(), "rejected": rows.rejected}
    write_text(arguments.out / "summary.json", json.dumps(report, indent=2) + "\n")
    for ranked in islice(read_records(arguments.out / "ranked.jsonl"), arguments.show):
        _show_row(console, ranked)
    _show(summary, arguments.out, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "rank",
        "Put the responses of each prompt in the order of their implicit reward, the sum over "
        "tokens of beta * (log pi - log pi_ref), and keep the best.",
    )
    add_scoring_arguments(parser, _ACCEPTED)
    ranking = parser.add_argument_group("ranking")
    ranking.add_argument(
        "--by",
        default="implicit_reward",
        help="implicit_reward, policy_logp or reference_logp, each also with _per_token; shorter",
    )
    ranking.add_argument(
        "--keep", type=int, default=1, help="so many best responses a prompt go to best.jsonl"
    )
    ranking.add_argument(
        "--min_margin",
        type=float,
        default=0.0,
        help="best and worst of a prompt go to pairs.jsonl if their scores differ by more",
    )
    ranking.add_argument("--show", type=int, default=3, help="prompts shown in the terminal")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    from tokenq.credit.ranking import check_signal

    check_signal(arguments.by)
    if arguments.keep < 1:
        raise UserError(f"--keep is {arguments.keep}; accepted: 1 or more responses")
    if arguments.show < 0:
        raise UserError(f"--show is {arguments.show}; accepted: 0 or more")
    if not 0 <= arguments.min_margin < math.inf:
        raise UserError(f"--min_margin is {arguments.min_margin}; accepted: 0 or more")


def _show_row(console: Console, ranked: dict[str, Any]) -> None:
    """Print a line of ranked.jsonl."""
    table = Table(title=f"row {ranked['row']}", title_justify="left", box=None, pad_edge=False)
    for name in ("score", "tokens", "place"):
        table.add_column(name, justify="right")
    table.add_column("response")
    columns = (ranked[name] for name in ("completions", "scores", "tokens", "places"))
    for response, score, tokens, place in zip(*columns, strict=True):
        text = response if isinstance(response, str) else str(response[-1].get("content", ""))
        shown = visible(text)
        shown = shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + "…"
        table.add_row(f"{score:+.3f}", str(tokens), str(place + 1), Text(shown))
    console.print(table)


def _show(summary: "RankingSummary", out: Path, console: Console) -> None:
    plain = summary.to_dict()
    console.print(f"\n{summary.prompts} prompts, {summary.responses} responses, by {summary.by}")
    table = Table("signal", box=None, pad_edge=False)
    table.add_column("Kendall's tau", justify="right")
    if plain["agreement"] is not None:
        table.add_column("pairs", justify="right")
        table.add_column("first", justify="right")
    for name in summary.agreement:
        tau = plain["kendall_tau"].get(name)
        cells = [name, "" if tau is None else f"{tau:+.2f}"]
        if plain["agreement"] is not None:
            found = plain["agreement"][name]
            cells += [f"{100 * found['accuracy']:.1f}%", f"{100 * found['top_1']:.1f}%"]
        table.add_row(*cells)
    console.print(table)
    legend = "Kendall's tau: with what was ranked by, mean over prompts"
    if plain["agreement"] is not None:
        legend += "; pairs, first: share that is as in the data"
    console.print(legend, style="dim")
    for reason, count in summary.skipped.items():
        console.print(f"{count} skipped: {reason}", markup=False)
    console.print(f"written: {out}", markup=False, soft_wrap=True)
