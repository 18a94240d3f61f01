"""`tokenq reproduce NAME`: one published claim, its figure and table, with confidence intervals."""

import argparse
import difflib
import importlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tokenq.cli.arguments import CommandParser
from tokenq.errors import UserError
from tokenq.reproduce import EXPERIMENTS

if TYPE_CHECKING:
    from tokenq.reproduce.experiment import Experiment


def main(argv: list[str]) -> int:
    """Run the command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, *rest = argv
    if name not in EXPERIMENTS:
        raise UserError(f"reproduce: unknown experiment {name!r}; {_suggestion(name)}")
    experiment: Experiment = importlib.import_module(f"tokenq.reproduce.{name}").EXPERIMENT
    arguments = _parser(name, experiment).parse_args(rest)

    from tokenq.reproduce.experiment import Run, carry_out

    out: Path = arguments.out or Path("results") / name
    console = Console(highlight=False)
    command = shlex.join(["tokenq", "reproduce", name, *rest])
    carry_out(
        name, experiment, Run(out, arguments, console), command, only_draw=arguments.only_draw
    )
    for file in ("results.json", "figure.png", "README.md"):
        console.print(f"{out / file}", markup=False, soft_wrap=True)
    return 0


def usage() -> str:
    """Return the list of experiments."""
    width = max(map(len, EXPERIMENTS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in EXPERIMENTS.items())
    return (
        "usage: tokenq reproduce NAME [options]\n\n"
        f"experiments:\n{lines}\n\n"
        "tokenq reproduce NAME --help lists an experiment's options"
    )


def _parser(name: str, experiment: "Experiment") -> argparse.ArgumentParser:
    parser = CommandParser(f"reproduce {name}", experiment.description)
    parser.add_argument("--out", type=Path, help=f"folder of the results; unset: results/{name}")
    parser.add_argument(
        "--only-draw", action="store_true", help="figure and page again, from results.json"
    )
    experiment.add_arguments(parser)
    return parser


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"accepted: {', '.join(EXPERIMENTS)}"
