"""`tokenq filter`: leave out the pairs that training is expected to lose the chosen answer of."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tokenq.cli.arguments import CommandParser, add_data_arguments, count_rows
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable, write_text

if TYPE_CHECKING:
    from tokenq.data.loading import Rows
    from tokenq.monitor.filtering import FilterSummary, Group

_BY = ("ches", "ches_sum", "gradient")


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    if arguments.keep is None and arguments.threshold is None:
        arguments.keep = 0.9
    rows = _rows(arguments)
    check_writable(arguments.out, "--out")
    console = Console(highlight=False)
    summary = _filter(rows, arguments, console)
    report = {"model": arguments.model, "data": rows.source, **summary.to_dict()}
    write_text(arguments.out / "summary.json", json.dumps(report, indent=2) + "\n")
    _show(summary, arguments, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "filter",
        "Part preference pairs by how alike their answers are to the model that training starts "
        "from: the more alike, the more training tends to make both less likely.",
    )
    model = parser.add_argument_group("model: a hub name, a folder, or bundled:NAME")
    model.add_argument("--model", required=True, help="the policy before preference training")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0")
    model.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    add_data_arguments(
        parser,
        "data: preference pairs (prompt, chosen, rejected)",
        "folder for kept.jsonl, left.jsonl, scores.jsonl, summary.json",
    )
    cut = parser.add_argument_group("what leaves")
    cut.add_argument(
        "--by",
        default="ches",
        choices=_BY,
        help="ches: similarity of mean hidden states (2410.08847); ches_sum: of their sums; "
        "gradient: what a step along the margin does to the chosen answer, to first order",
    )
    cut.add_argument("--keep", type=float, help="share of the pairs to keep (0.9)")
    cut.add_argument("--threshold", type=float, help="instead: pairs above this value leave")
    cut.add_argument(
        "--max_length", type=int, default=1024, help="most tokens of prompt and response"
    )
    cut.add_argument(
        "--token_budget", type=int, default=4096, help="input tokens of one forward; bounds memory"
    )
    cut.add_argument("--show", type=int, default=3, help="pairs that left, shown in the terminal")
    return parser


def _rows(arguments: argparse.Namespace) -> "Rows":
    """The rows, after everything that can be wrong without a model has been looked at."""
    from tokenq.monitor.filtering import check_cut

    check_cut(arguments.by, arguments.keep, arguments.threshold)
    for name, least in (("max_length", 2), ("token_budget", 1), ("show", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} is {getattr(arguments, name)}; accepted: {least} or more")

    from tokenq.data import load_rows

    rows = load_rows(
        arguments.data,
        split=arguments.split,
        config=arguments.config,
        limit=arguments.limit,
        rejects=arguments.out / "rejects.jsonl" if arguments.skip_bad_rows else None,
    )
    if rows.kind != "preference":
        raise UserError(
            f"{arguments.data}: its rows are of kind '{rows.kind}'; accepted: preference pairs "
            "(prompt, chosen, rejected)"
        )
    return rows


def _filter(rows: "Rows", arguments: argparse.Namespace, console: Console) -> "FilterSummary":
    from tokenq.data.preparation import prepare
    from tokenq.models.pair import load_pair
    from tokenq.monitor.filtering import filter_pairs

    with console.status("Loading the model"):
        pair = load_pair(arguments.model, device=arguments.device, dtype=arguments.dtype)
    prepared = prepare(rows, pair.tokenizer, max_length=arguments.max_length)
    with progress_bar("Measuring pairs", console) as progress:
        task = progress.add_task("", total=count_rows(rows))
        return filter_pairs(
            pair.policy,
            rows,
            prepared,
            arguments.out,
            by=arguments.by,
            keep=arguments.keep,
            threshold=arguments.threshold,
            token_budget=arguments.token_budget,
            on_progress=lambda count: progress.advance(task, count),
        )


def _show(summary: "FilterSummary", arguments: argparse.Namespace, console: Console) -> None:
    table = Table(box=None, title=f"by {summary.by}, cut at {summary.threshold:.4g}")
    for name in ("", "pairs", "mean", "chosen tokens", "rejected tokens", "tokens that differ"):
        table.add_column(name, justify="left" if not name else "right")
    for name, group in (("kept", summary.kept), ("left", summary.left)):
        if group is not None:
            table.add_row(name, *_cells(group))
    console.print(table)
    if summary.unmeasured:
        console.print(f"{summary.unmeasured} rows that training would leave out: unmeasured.jsonl")
    _show_left(arguments.out / "left.jsonl", arguments.show, console)
    console.print(f"written: {arguments.out}", markup=False, soft_wrap=True)


def _show_left(path: Path, count: int, console: Console) -> None:
    from tokenq.report.visible import visible

    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    lines.sort(key=lambda line: -line["displacement"]["value"])
    for line in lines[:count]:
        console.print(f"\nrow {line['row']}, {line['displacement']['value']:.4g}", style="bold")
        for side in ("chosen", "rejected"):
            text = line[side] if isinstance(line[side], str) else line[side][-1]["content"]
            console.print(f"  {side}: {visible(text[:160])}", markup=False, soft_wrap=True)


def _cells(group: "Group") -> list[str]:
    return [
        str(group.pairs),
        f"{group.value:.4g}",
        f"{group.chosen_tokens:.1f}",
        f"{group.rejected_tokens:.1f}",
        f"{100 * group.edited:.0f}%",
    ]
