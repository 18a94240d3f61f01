"""Implicit rewards of chosen answers fall: after tuning on them, and not without it?"""

import argparse
from dataclasses import replace
from typing import Any

from tokenq.data import debian
from tokenq.data.film_snippets import snippets
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.likelihood_decline.settings import QUICK, TASKS, DeclineSettings
from tokenq.reproduce.likelihood_decline.work import Worker, chosen_runs, every_run


def run(run: Run) -> Results:
    """Train and read all runs, or find that done, and measure what was read."""
    options = run.arguments
    settings = QUICK if options.quick else DeclineSettings()
    if options.model is not None:
        samples = replace(settings.samples, model=options.model)
        settings = replace(settings, model=options.model, samples=samples)
    tasks = _tasks(options.tasks)
    seeds = options.seeds or (2 if options.quick else 3)
    wanted = chosen_runs(every_run(tasks, seeds), options.only)
    worker = Worker(run, settings)
    if options.join:
        wanted = [which for which in wanted if worker.is_done(which)]
        if not wanted:
            raise UserError(f"--join: no run is done in {run.out}; accepted: a run without it")
    with progress_bar("Training and reading", run.console) as progress:
        bar = progress.add_task("", total=len(wanted))
        for which in wanted:
            if options.train:
                worker.train(which)
            else:
                worker.history(which)
            progress.advance(bar)
    if options.only is not None or options.train:
        return {"unfinished": [which.key for which in wanted]}
    # Its measures are not needed where a process does some runs alone.
    from tokenq.reproduce.likelihood_decline.analysis import analysed
    from tokenq.reproduce.likelihood_decline.exact import tabular

    with run.console.status("Measuring"):
        exact = tabular(run, *((2, 10) if options.quick else (10, 60)))
        return {**analysed(worker, wanted, settings), "exact": exact}


def _tasks(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in TASKS:
            raise UserError(f"--tasks: {name!r} is unknown; accepted: {', '.join(TASKS)}")
    chosen = list(names or TASKS)
    # Data that cannot be had are known before anything trains.
    if "film" in chosen:
        snippets()
    if "debian" in chosen:
        debian.read()
    return chosen


def _draw(results: Results) -> Any:
    from tokenq.reproduce.likelihood_decline.figure import draw

    return draw(results)


def _page(results: Results) -> str:
    from tokenq.reproduce.likelihood_decline.page import page

    return page(results)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"unset: {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, help="runs of each arm; unset: 3")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="RUN",
        help="these runs alone, such as film/no-sft/0: several processes with the same --out may "
        "share the work, and the command without it then puts their parts together",
    )
    parser.add_argument(
        "--train", action="store_true", help="train, and leave the reading to a later command"
    )
    parser.add_argument(
        "--join", action="store_true", help="results of the runs that are done, making no others"
    )
    parser.add_argument("--model", help=f"name or folder; unset: {DeclineSettings().model}")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, few pairs, too small to quote"
    )


EXPERIMENT = Experiment(
    description="Train by DPO from a start that was tuned on the chosen answers, from one that was "
    "not tuned, and from two controls (tuned on other answers, and on the rejected ones), and "
    "follow the implicit rewards of chosen and rejected answers, of held-out ones and of the "
    "reference's own samples: does chosen fall after tuning and not without, and is the mean over "
    "the reference's samples minus beta times the KL divergence at every checkpoint? Beside it the "
    "same on token MDPs, where all of it is exact. Started again, it goes on with the run it was "
    "in.",
    run=run,
    figure=_draw,
    page=_page,
    add_arguments=_add_arguments,
)
