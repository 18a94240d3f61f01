"""What `rank`, `clean` and `locate` share: rows with their credit, computed or found on disk."""

import argparse
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenq.cli.arguments import (
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
    from collections.abc import Callable, Collection, Iterator

    from tokenq.credit.dataset import CreditOptions
    from tokenq.data.loading import Rows
    from tokenq.models.pair import Pair

BETA = 0.1
_SCORING = ("reference", "beta", "max_length")


@dataclass(frozen=True)
class Scored:
    """The records of a scored data set, and what they were computed with.

    settings: with the names of policy and reference where they are known
    """

    records: Path
    settings: dict[str, Any]


def add_scoring_arguments(parser: argparse.ArgumentParser, rows: str) -> None:
    """Add models, data, and how they are scored; `rows`: what the data should hold."""
    add_model_arguments(parser, required=False)
    add_data_arguments(parser, f"data: {rows}", "folder for what is written")
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument(
        "--credit",
        type=Path,
        metavar="DIR",
        help="use what `tokenq credit` wrote for the same data; no model is loaded then",
    )
    scoring.add_argument(
        "--beta", type=float, help=f"the KL penalty of the policy's training ({BETA} if left out)"
    )
    scoring.add_argument(
        "--max_length",
        type=int,
        help="most tokens of prompt and response; longer responses lose their end "
        "(by default: what the models can read)",
    )
    scoring.add_argument(
        "--token_budget", type=int, default=4096, help="input tokens of one forward; bounds memory"
    )


def check_scoring(arguments: argparse.Namespace) -> "CreditOptions":
    """Raise UserError for arguments that do not go together, before anything is read."""
    from tokenq.credit.dataset import CreditOptions

    if arguments.credit is not None:
        for name in ("policy", *_SCORING):
            if getattr(arguments, name) is not None:
                raise UserError(
                    f"--{name} decides scores, which --credit has already; accepted: one of them"
                )
        if arguments.credit.resolve() == arguments.out.resolve():
            raise UserError(
                f"--out is {arguments.out}, as is --credit, whose summary and page would be "
                "overwritten; accepted: another folder"
            )
    elif arguments.policy is None:
        raise UserError(
            "nothing scores the rows; accepted: --policy (and --reference), or --credit"
        )
    return CreditOptions(
        beta=BETA if arguments.beta is None else arguments.beta,
        max_length=arguments.max_length,
        alternatives=0,
        token_budget=arguments.token_budget,
        skip_bad_rows=arguments.skip_bad_rows,
    )


def read_rows(arguments: argparse.Namespace, kinds: "Collection[str]", accepted: str) -> "Rows":
    """Load the data; UserError if its rows are of no kind in `kinds` (`accepted`, in words)."""
    from tokenq.data import load_rows

    rejects = arguments.out / "rejects.jsonl" if arguments.skip_bad_rows else None
    rows = load_rows(
        arguments.data,
        split=arguments.split,
        config=arguments.config,
        limit=arguments.limit,
        rejects=rejects,
    )
    if rows.kind not in kinds:
        raise UserError(
            f"{arguments.data}: its rows are of kind '{rows.kind}'; accepted: {accepted}"
        )
    return rows


def score_rows(
    arguments: argparse.Namespace, rows: "Rows", options: "CreditOptions", console: Console
) -> Scored:
    """Score the rows into OUT, or open what `--credit` names."""
    if arguments.credit is not None:
        from tokenq.credit.finished import open_finished

        check_writable(arguments.out, "--out")
        return Scored(*open_finished(arguments.credit, rows))
    check_reference(arguments)
    check_writable(arguments.out, "--out")
    return score_with(load_models(arguments, console), rows, arguments.out, options, console)


def score_with(
    pair: "Pair", rows: "Rows", out: Path, options: "CreditOptions", console: Console
) -> Scored:
    """Score the rows with loaded models into a folder, going on where an earlier run stopped."""
    from tokenq.credit.dataset import credit_dataset

    with row_progress("Scoring rows", rows, console) as advance:
        run = credit_dataset(pair, rows, out, options, on_progress=advance)
    return Scored(run.path, run.settings)


@contextmanager
def row_progress(title: str, rows: "Rows", console: Console) -> "Iterator[Callable[[int], None]]":
    """Show a bar over the rows; yields what is to be called with a number of rows done."""
    with progress_bar(title, console) as progress:
        task = progress.add_task("", total=count_rows(rows))
        yield lambda count: progress.advance(task, count)
