"""`tokenq credit`: scores responses token by token; writes JSON lines, a page and a summary."""

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenq.cli.arguments import (
    CommandParser,
    add_data_arguments,
    add_model_arguments,
    check_reference,
    count_rows,
    load_models,
)
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable

if TYPE_CHECKING:
    from tokenq.credit.dataset import CreditOptions, CreditRun
    from tokenq.credit.processes import Processes
    from tokenq.data.loading import Rows
    from tokenq.models.pair import Pair


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    if arguments.prompt is None:
        _credit_rows(arguments)
    else:
        _credit_one(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "credit",
        "Show which tokens of given responses a policy likes and blames, measured against its "
        "reference: beta * (log pi - log pi_ref) of each token, in nats times beta.",
    )
    add_model_arguments(parser)
    data = add_data_arguments(
        parser, "a data set", "folder for credit.jsonl, index.html, summary.json", required=False
    )
    data.add_argument(
        "--streaming",
        action="store_true",
        help="read rows as they are used: memory does not grow with the data set",
    )
    data.add_argument(
        "--parquet", action="store_true", help="also write OUT/credit.parquet, one row a response"
    )
    data.add_argument(
        "--columns",
        nargs="?",
        const="plain",
        metavar="ESTIMATOR",
        help="also write OUT/columns.parquet: the rows as token ids with their credit, for "
        "objectives that weigh tokens (plain without a name)",
    )
    data.add_argument(
        "--max_length",
        type=int,
        help="most tokens of prompt and response; longer responses lose their end "
        "(by default: what the models can read)",
    )
    data.add_argument("--page_rows", type=int, default=2000, help="most rows on the page")
    data.add_argument("--show", type=int, default=3, help="rows shown in the terminal")
    data.add_argument(
        "--token_budget", type=int, default=4096, help="input tokens of one forward; bounds memory"
    )

    single = parser.add_argument_group("or a single response, read in the terminal")
    single.add_argument("--prompt", help="text, which the response follows directly")
    single.add_argument("--response", help="text")
    single.add_argument(
        "--chat",
        action="store_true",
        help="put the prompt through the chat template",
    )

    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--beta", type=float, default=0.1, help="the KL penalty that the policy was trained with"
    )
    reading.add_argument(
        "--alternatives", type=int, default=3, help="best alternatives kept a token; 0 is faster"
    )
    reading.add_argument(
        "--min_probability",
        type=float,
        default=0.01,
        help="leave out alternatives to which the policy gives less",
    )
    reading.add_argument(
        "--facts",
        action="store_true",
        help="keep the entropies of both models, and the divergence between them, at every token",
    )
    reading.add_argument(
        "--estimator",
        nargs="+",
        default=[],
        metavar="NAME",
        help="token credits to keep beside the implicit reward, such as centred, words, "
        "centred_words; an unknown name lists all",
    )
    return parser


def _credit_rows(arguments: argparse.Namespace) -> None:
    if arguments.data is None or arguments.out is None:
        raise UserError("nothing to read; accepted: --data and --out, or --prompt and --response")
    if arguments.response is not None or arguments.chat:
        raise UserError("--response and --chat belong to --prompt, not to --data")
    for name in ("page_rows", "show"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; accepted: 0 or more")
    started = time.perf_counter()

    from tokenq.credit.processes import join_processes
    from tokenq.data import load_rows

    options = _options(arguments)
    processes = join_processes(arguments.device)
    console = Console(highlight=False, quiet=not processes.is_main)
    rejects = arguments.out / "rejects.jsonl" if arguments.skip_bad_rows else None
    with processes.main_first():
        rows = load_rows(
            arguments.data,
            split=arguments.split,
            config=arguments.config,
            limit=arguments.limit,
            rejects=rejects,
            streaming=arguments.streaming,
        )
    check_reference(arguments)
    check_writable(arguments.out, "--out")
    pair = load_models(arguments, console)
    run = _score(pair, rows, arguments.out, options, processes, console)
    if processes.is_main:
        _write(run, rows, arguments, time.perf_counter() - started)
        if arguments.columns is not None:
            _write_columns(run, rows, pair, arguments, console)
        _show(run, arguments, console)
    processes.leave()


def _credit_one(arguments: argparse.Namespace) -> None:
    if arguments.response is None:
        raise UserError("--prompt is given without --response; accepted: both")
    if arguments.data is not None or arguments.out is not None:
        raise UserError("--data and --out belong to a data set, not to --prompt")
    options = _options(arguments)
    check_reference(arguments)
    console = Console(highlight=False)

    from tokenq.credit.api import credit
    from tokenq.report.terminal import show_response

    prompt = arguments.prompt
    if arguments.chat:
        prompt = [{"role": "user", "content": prompt}]
    reading = credit(load_models(arguments, console), prompt, arguments.response, arguments.beta)
    record = reading.to_dict(
        alternatives=arguments.alternatives,
        min_probability=arguments.min_probability,
        estimators=options.estimators,
    )
    show_response(console, record)


def _options(arguments: argparse.Namespace) -> "CreditOptions":
    from tokenq.credit.dataset import CreditOptions

    return CreditOptions(
        beta=arguments.beta,
        max_length=arguments.max_length,
        alternatives=arguments.alternatives,
        min_probability=arguments.min_probability,
        token_budget=arguments.token_budget,
        skip_bad_rows=arguments.skip_bad_rows,
        facts=arguments.facts,
        estimators=_estimators(arguments),
    )


def _estimators(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Those asked for, and the one whose credit becomes columns."""
    names = list(arguments.estimator)
    if arguments.columns not in (None, "plain"):
        names.append(arguments.columns)
    return tuple(dict.fromkeys(names))


def _score(
    pair: "Pair",
    rows: "Rows",
    out: Path,
    options: "CreditOptions",
    processes: "Processes",
    console: Console,
) -> "CreditRun":
    from tokenq.credit.dataset import credit_dataset

    with progress_bar("Scoring rows", console) as progress:
        task = progress.add_task("", total=count_rows(rows))
        return credit_dataset(
            pair,
            rows,
            out,
            options,
            processes=processes,
            on_progress=lambda count: progress.advance(task, count),
        )


def _write(run: "CreditRun", rows: "Rows", arguments: argparse.Namespace, seconds: float) -> None:
    from tokenq.report.html import PageHead, write_page
    from tokenq.storage import write_text

    summary = run.summary
    head = PageHead(
        policy=run.settings["policy"],
        reference=run.settings["reference"] or "its base",
        beta=run.settings["beta"],
        data=rows.source,
        accuracy=summary.accuracy,
        mean_margin=summary.margins.value,
        ordered=summary.margins.count,
        rows=summary.rows,
        tokens=summary.tokens,
        skipped=sum(summary.skipped.values()) + rows.rejected,
        min_probability=arguments.min_probability,
        format=summary.form.to_dict(),
    )
    write_page(arguments.out / "index.html", run.records(), head, page_rows=arguments.page_rows)
    if arguments.parquet:
        from tokenq.credit.parquet import write_parquet

        write_parquet(run.records(), arguments.out / "credit.parquet")
    report: dict[str, Any] = {
        **run.settings,
        **summary.to_dict(),
        "rejected": rows.rejected,
        "seconds": round(seconds, 3),
    }
    write_text(arguments.out / "summary.json", json.dumps(report, indent=2) + "\n")


def _write_columns(
    run: "CreditRun",
    rows: "Rows",
    pair: "Pair",
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    from tokenq.credit.columns import write_columns

    path = arguments.out / "columns.parquet"
    report = write_columns(rows, pair.tokenizer, run.records(), path, estimator=arguments.columns)
    console.print(f"{path}: {report.rows} rows", markup=False, soft_wrap=True)
    for reason, count in report.left_out.items():
        console.print(f"{count} left out: {reason}", markup=False)


def _show(run: "CreditRun", arguments: argparse.Namespace, console: Console) -> None:
    from tokenq.report.terminal import show_rows

    show_rows(console, islice(run.records(), arguments.show), run.settings["beta"])
    summary = run.summary
    console.print(f"\n{summary.rows} rows, {summary.tokens} tokens", end="")
    if summary.accuracy is not None:
        console.print(
            f"; chosen above rejected in {100 * summary.accuracy:.1f}% of {summary.margins.count}, "
            f"mean margin {summary.margins.value:+.3f}",
            end="",
        )
    console.print()
    for reason, count in summary.skipped.items():
        console.print(f"{count} skipped: {reason}", markup=False)
    if summary.form.warning is not None:
        console.print(summary.form.warning, markup=False, style="yellow")
    console.print(f"page: {arguments.out / 'index.html'}", markup=False, soft_wrap=True)
