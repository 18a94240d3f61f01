"""`tokenq demo`: train, read and report on the bundled model and data, in minutes on two cores."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tokenq.cli.arguments import CommandParser

if TYPE_CHECKING:
    from tokenq.demo.settings import DemoSettings


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False)

    with console.status("Loading libraries"):
        from tokenq.demo.run import run_demo

    run_demo(_settings(arguments), arguments.out, console)
    for name in ("index.html", "figure.png", "summary.json"):
        console.print(f"{arguments.out / name}", markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "demo",
        "Train SmolLM2-135M on real preferences between film review sentences, then "
        "show which tokens it learned to like and to blame, and how well that agrees with people. "
        "Minutes on two cores, after about 95 MB of downloads at first use. Started again with "
        "the same settings, it goes on where it was.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all results")
    parser.add_argument("--seed", type=int, default=0, help="draws pairs, order, first weights")
    parser.add_argument("--pairs", type=int, help="training pairs (by default 512, quick 48)")
    parser.add_argument(
        "--quick", action="store_true", help="much less of all, to see that it works; poor results"
    )
    return parser


def _settings(arguments: argparse.Namespace) -> "DemoSettings":
    from tokenq.demo.settings import QUICK, DemoSettings

    settings = QUICK if arguments.quick else DemoSettings()
    pairs = settings.pairs if arguments.pairs is None else arguments.pairs
    return replace(settings, seed=arguments.seed, pairs=pairs)
