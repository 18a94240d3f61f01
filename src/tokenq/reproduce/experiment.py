"""What every experiment is made of, and the folder that it leaves: JSON, figure and page."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from tokenq import __version__
from tokenq.errors import UserError
from tokenq.reproduce.machine import processor_name
from tokenq.storage import check_writable, write_text

Results = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    out:       folder that receives the results; `runs/` in it keeps finished parts
    arguments: the parsed options of the experiment
    console:   where progress is shown
    """

    out: Path
    arguments: argparse.Namespace
    console: Console

    def part(self, key: str, settings: Mapping[str, Any], make: Callable[[], Results]) -> Results:
        """Return the part `key` (a seed, an arm): from an earlier run with these settings, or made.

        An interrupted experiment therefore goes on where it was. `settings` must hold all that
        decides the result. Raises UserError if the part was made with other settings.
        """
        path = self.out / "runs" / f"{key}.json"
        wanted = json.loads(json.dumps(dict(settings)))
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] != wanted:
                raise UserError(
                    f"{path} was made with other settings; accepted: another --out, or delete it"
                )
            result: Results = kept["result"]
            return result
        result = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"settings": wanted, "result": result}) + "\n")
        return result


@dataclass(frozen=True)
class Experiment:
    """An experiment; each module of `tokenq.reproduce` defines one as `EXPERIMENT`.

    description:   what is claimed and how it is tested, for --help
    run:           does the work; returns what goes into results.json
    figure:        draws results
    page:          results as a short Markdown page, without title and command line
    add_arguments: adds the experiment's own options
    """

    description: str
    run: Callable[[Run], Results]
    figure: Callable[[Results], Figure]
    page: Callable[[Results], str]
    add_arguments: Callable[[argparse.ArgumentParser], None] = field(default=lambda parser: None)


def carry_out(
    name: str, experiment: Experiment, run: Run, command: str, *, only_draw: bool = False
) -> Results:
    """Run the experiment and write `results.json`, `figure.png` and `README.md` into `run.out`.

    only_draw: make figure and page again from the results that are there.
    """
    check_writable(run.out, "--out")
    path = run.out / "results.json"
    if only_draw:
        if not path.is_file():
            raise UserError(f"{path} is not there; accepted: a run without --only-draw first")
        document = json.loads(path.read_text(encoding="utf-8"))
    else:
        document = {
            "experiment": name,
            "command": command,
            "date": date.today().isoformat(),
            "version": __version__,
            "machine": {"processor": processor_name(), "cores": os.cpu_count()},
            "results": experiment.run(run),
        }
        write_text(path, json.dumps(document, indent=1) + "\n")
    results: Results = json.loads(json.dumps(document["results"]))
    experiment.figure(results).savefig(run.out / "figure.png", dpi=150, bbox_inches="tight")
    write_text(run.out / "README.md", _page(name, document, experiment.page(results)))
    return results


def _page(name: str, document: Mapping[str, Any], body: str) -> str:
    machine = document["machine"]
    return (
        f"# {name}\n\n"
        f"    {document['command']}\n\n"
        f"{document['date']}, tokenq {document['version']}, {machine['processor']}, "
        f"{machine['cores']} cores. All numbers are in `results.json`.\n\n"
        f"![{name}](figure.png)\n\n"
        f"{body.strip()}\n"
    )
