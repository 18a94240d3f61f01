"""Arguments that several commands share, and what they load."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from tokenq.errors import UserError

if TYPE_CHECKING:
    from tokenq.data.loading import Rows
    from tokenq.models.pair import Pair


class CommandParser(argparse.ArgumentParser):
    """The parser of one command: options in full, and UserError for what does not fit them."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"tokenq {command}",
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage, which would bury the one line that matters."""
        raise UserError(f"{' '.join(message.split())}; {self.prog} --help lists the options")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(action.default)})"
        return super()._get_help_string(action)


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add policy, reference, and where and how to hold them; `required`: the policy is."""
    models = parser.add_argument_group("models: a hub name, a folder, or bundled:NAME")
    models.add_argument("--policy", required=required, help="the trained model, or a PEFT adapter")
    models.add_argument(
        "--reference", help="what its training started from; an adapter's base if left out"
    )
    models.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0")
    models.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")


def add_data_arguments(
    parser: argparse.ArgumentParser, title: str, out: str, *, required: bool = True
) -> argparse._ArgumentGroup:
    """Add a data set and where results go, and return the group for what a command adds.

    title: of the group; out: what the folder of results is for; required: data and folder are
    """
    data = parser.add_argument_group(title)
    data.add_argument(
        "--data",
        required=required,
        help=".jsonl, .json, .csv, .parquet, a folder, a hub name, bundled:NAME",
    )
    data.add_argument("--split", default="train", help="split of a folder, hub or bundled set")
    data.add_argument("--config", help="configuration of a hub data set")
    data.add_argument("--limit", type=int, help="at most so many rows")
    data.add_argument("--out", type=Path, required=required, help=out)
    data.add_argument(
        "--skip_bad_rows",
        "--skip-bad-rows",
        action="store_true",
        help="leave out rows that are malformed (see OUT/rejects.jsonl) or cannot be scored",
    )
    return data


def check_reference(arguments: argparse.Namespace) -> None:
    """Raise UserError if no reference is named and the policy is no adapter that brings its own."""
    from tokenq.models.checkpoint import inspect

    if arguments.reference is None and inspect(arguments.policy).base is None:
        raise UserError(
            f"'{arguments.policy}' has no reference; accepted: --reference, what its preference "
            "training started from"
        )


def load_models(arguments: argparse.Namespace, console: Console) -> "Pair":
    """Load what :func:`add_model_arguments` names."""
    from tokenq.models.pair import load_pair

    with console.status("Loading models"):
        return load_pair(
            arguments.policy, arguments.reference, device=arguments.device, dtype=arguments.dtype
        )


def count_rows(rows: "Rows") -> int | None:
    """Number of rows, where it is known before they are read."""
    from datasets import Dataset

    return len(rows.dataset) if isinstance(rows.dataset, Dataset) else None
