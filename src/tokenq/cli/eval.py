"""`tokenq eval`: pair accuracy, margins and calibration of a policy, by data set."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenq.cli.arguments import (
    CommandParser,
    add_model_arguments,
    check_reference,
    load_models,
)
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable

if TYPE_CHECKING:
    from tokenq.data.loading import Rows
    from tokenq.judges import PairReport, PairScore
    from tokenq.models.pair import Pair


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    console = Console(highlight=False)
    rows = _load_rows(arguments)
    check_reference(arguments)
    check_writable(arguments.out, "--out")
    pair = load_models(arguments, console)
    scores = {name: _score(pair, name, each, arguments, console) for name, each in rows.items()}

    from tokenq.judges import judge_pairs

    reports = {
        name: judge_pairs(scored, arguments.beta, bins=arguments.bins, seed=arguments.seed)
        for name, (scored, _) in scores.items()
    }
    _write(pair, rows, scores, reports, arguments)
    for name, report in reports.items():
        _show(console, name, report)
    console.print(f"written: {arguments.out}", markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "eval",
        "Tell how often a policy's implicit reward beta * (log pi - log pi_ref) agrees with "
        "preference pairs, beside controls that need no training, and how far its Bradley-Terry "
        "probability can be taken at its word.",
    )
    add_model_arguments(parser)
    data = parser.add_argument_group("data: preference pairs (prompt, chosen, rejected)")
    data.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DATA",
        help=".jsonl, .json, .csv, .parquet, a folder, a hub name, bundled:NAME; one or more",
    )
    data.add_argument("--split", default="test", help="split of a folder, hub or bundled set")
    data.add_argument("--config", help="configuration of a hub data set")
    data.add_argument("--limit", type=int, help="at most so many rows of each data set")
    data.add_argument(
        "--out", type=Path, required=True, help="folder for summary.json, pairs.jsonl, a figure"
    )
    data.add_argument(
        "--skip_bad_rows",
        "--skip-bad-rows",
        action="store_true",
        help="set malformed rows aside in OUT",
    )
    data.add_argument(
        "--max_length",
        type=int,
        help="most tokens of prompt and response; longer responses lose their end "
        "(by default: what the models can read)",
    )
    data.add_argument(
        "--token_budget", type=int, default=4096, help="input tokens of one forward; bounds memory"
    )
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--beta", type=float, default=0.1, help="the KL penalty that the policy was trained with"
    )
    judging.add_argument("--bins", type=int, default=10, help="bins of the calibration error")
    judging.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for values out of range, before anything is loaded."""
    for name in ("beta", "bins", "token_budget"):
        if not getattr(arguments, name) > 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; accepted: a number above 0")
    if arguments.max_length is not None and arguments.max_length < 2:
        raise UserError(f"--max_length is {arguments.max_length}; accepted: 2 or more tokens")
    repeated = {each for each in arguments.data if arguments.data.count(each) > 1}
    if repeated:
        raise UserError(f"--data names {repeated.pop()} twice; accepted: each data set once")


def _load_rows(arguments: argparse.Namespace) -> dict[str, "Rows"]:
    from tokenq.data import load_rows

    found = {}
    for number, source in enumerate(arguments.data):
        rejects = arguments.out / f"rejects-{number}.jsonl" if arguments.skip_bad_rows else None
        found[source] = load_rows(
            source,
            split=arguments.split,
            config=arguments.config,
            limit=arguments.limit,
            rejects=rejects,
        )
        if found[source].kind != "preference":
            raise UserError(
                f"{source}: its rows are of kind '{found[source].kind}'; accepted: preference "
                "pairs (prompt, chosen, rejected)"
            )
    return found


def _score(
    pair: "Pair", name: str, rows: "Rows", arguments: argparse.Namespace, console: Console
) -> tuple[list["PairScore"], dict[str, Any]]:
    """Scores, and what preparation counted."""
    from tokenq.data import prepare
    from tokenq.judges import score_pairs
    from tokenq.models.pair import context_length

    limits = [each for each in (arguments.max_length, context_length(pair)) if each]
    prepared = prepare(rows, pair.tokenizer, max_length=min(limits, default=2**31))
    with progress_bar(f"Scoring {name}", console) as progress:
        task = progress.add_task("", total=len(prepared.dataset))
        scores = score_pairs(
            pair,
            prepared,
            token_budget=arguments.token_budget,
            on_progress=lambda count: progress.advance(task, count),
        )
    return scores, prepared.report.to_dict()


def _write(
    pair: "Pair",
    rows: dict[str, "Rows"],
    scores: dict[str, tuple[list["PairScore"], dict[str, Any]]],
    reports: dict[str, "PairReport"],
    arguments: argparse.Namespace,
) -> None:
    from tokenq import __version__
    from tokenq.judges import reliability_figure
    from tokenq.models import weight_hash
    from tokenq.models.pair import reference_of
    from tokenq.storage import write_text

    lines = [
        {"data": name, **score.record(arguments.beta)}
        for name, (scored, _) in scores.items()
        for score in scored
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(arguments.out / "pairs.jsonl", text)
    calibrations = {name: report.calibration for name, report in reports.items()}
    reliability_figure(arguments.out / "reliability.png", calibrations)
    summary = {
        "policy": pair.policy_name,
        "reference": pair.reference_name,
        "policy_hash": weight_hash(pair.policy),
        "reference_hash": weight_hash(reference_of(pair)),
        "beta": arguments.beta,
        "bins": arguments.bins,
        "seed": arguments.seed,
        "split": arguments.split,
        "tokenq": __version__,
        "data": {
            name: {
                "fingerprint": rows[name].fingerprint,
                "rejected": rows[name].rejected,
                "preparation": scores[name][1],
                **report.to_dict(),
            }
            for name, report in reports.items()
        },
    }
    write_text(arguments.out / "summary.json", json.dumps(summary, indent=2) + "\n")


def _show(console: Console, name: str, report: "PairReport") -> None:
    """Print the table of one data set."""
    table = Table(
        "the better response is the one with the higher", title=Text(name), box=None, pad_edge=False
    )
    table.add_column("accuracy", justify="right")
    table.add_column("95 %", justify="right")
    for rule, accuracy in report.accuracy.items():
        interval = f"{accuracy.low:.3f} to {accuracy.high:.3f}"
        table.add_row(rule, f"{accuracy.value:.3f}", interval)
    table.add_row("(chance)", "0.500", "", style="dim")
    console.print(table)
    margins, calibration = report.margins, report.calibration
    spread = "" if margins.sd is None else f", sd {margins.sd:.3f}"
    low, middle, high = (margins.quantiles[at] for at in ("0.05", "0.5", "0.95"))
    console.print(
        f"{report.pairs} pairs; margin (beta {report.beta:g}) mean {margins.mean:+.3f}{spread}; "
        f"quantiles 5/50/95 %: {low:+.3f} {middle:+.3f} {high:+.3f}"
    )
    console.print(
        f"calibration: error (ECE) {calibration.expected_calibration_error:.3f}, "
        f"Brier {calibration.brier:.3f}, log loss {calibration.log_loss:.3f} nats "
        f"(a coin: 0.250, 0.693)\n"
    )
