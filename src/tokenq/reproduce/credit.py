"""Where token credit is right: trained on labels of whole responses, judged by truth of tokens."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from tokenq.data import debian
from tokenq.data.human_labels import labels_folder
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.credit_tabular import World, summary, tabular
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.localisation import analysis
from tokenq.reproduce.localisation.arms import ARMS, REWARD_MODEL, chosen_arms
from tokenq.reproduce.localisation.figure import draw
from tokenq.reproduce.localisation.page import page
from tokenq.reproduce.localisation.settings import (
    FilmSettings,
    PlantedSettings,
    QaSettings,
    Settings,
    SummEditsSettings,
)
from tokenq.reproduce.localisation.surface_measures import surface_measures
from tokenq.reproduce.localisation.tables import START, Table, tables

TABULAR = "tabular"
TASKS = (*ARMS, TABULAR)
WORLDS = 10
"""Token MDPs that are drawn and solved."""
QUICK_WORLD = World(prompts=2, horizon=2, pairs=(50,), objectives=("dpo",), iterations=20)
_OF_PEOPLE = {"summedits": "summedits", "qa": "finegrained_qa"}
"""Tasks whose data lies in the folder that TOKENQ_DATA names, and its folder there."""
_SMALL = Recipe(batch_size=4, learning_rate=1e-3, lora_r=4)
QUICK = Settings(
    layers=1,
    film=FilmSettings(_SMALL, pairs=24, max_words=8, tests=24, gradients=2, test_words=8),
    planted=PlantedSettings(_SMALL, pairs=24, prompt_words=40, tests=24, gradients=4),
    summedits=SummEditsSettings(_SMALL, document_words=60, pairs=8, tests=12, gradients=2),
    qa=QaSettings(_SMALL, questions=3, passage_words=30, tests=16, gradients=2),
)
"""Small enough to see that everything runs; too small for numbers to quote."""
_QUICK_ARMS = ["dpo", "dpo, labels by coin", "reward model"]


def run(run: Run) -> Results:
    """Train every arm with every seed on every task, or find it done, and measure its tokens."""
    options = run.arguments
    settings = QUICK if options.quick else Settings()
    if options.model is not None:
        settings = replace(settings, model=options.model)
    seeds = list(range(options.seeds or (2 if options.quick else 3)))
    if options.only_seed is not None:
        seeds = [options.only_seed]
    names = options.arms or (_QUICK_ARMS if options.quick else None)
    tasks, missing = _tasks(options.tasks)
    trained = [task for task in tasks if task != TABULAR]
    arms = {task: chosen_arms(task, names) for task in trained}
    found = tables(run, settings, trained, arms, seeds) if trained else {}
    resamples = 100 if options.quick else options.resamples
    results: dict[str, Any] = {
        "settings": {task: settings.of_task(task) for task in trained},
        "seeds": seeds,
        "resamples": resamples,
        "missing": missing,
        "tasks": {},
    }
    for task in trained:
        own = {
            arm: [found[task, arm, seed] for seed in seeds]
            for arm in (START, *(arm.name for arm in arms[task]))
        }
        with run.console.status(f"Measuring {task}"):
            results["tasks"][task] = _measured(task, own, resamples)
    if TABULAR in tasks:
        results["tasks"][TABULAR] = _tabular(run, QUICK_WORLD if options.quick else World())
    return results


def _measured(task: str, tables: Mapping[str, Sequence[Table]], resamples: int) -> dict[str, Any]:
    if task == "film":
        return analysis.words(tables, resamples)
    if task == "surface":
        scores = {
            arm: "prefix difference" if arm == REWARD_MODEL else "plain"
            for arm in tables
            if arm != START
        }
        return surface_measures(tables, scores, resamples)
    return analysis.localisation(tables, resamples)


def _tabular(run: Run, world: World) -> dict[str, Any]:
    """Worlds small enough to be solved, one a seed."""
    found = []
    seeds = range(2 if run.arguments.quick else WORLDS)
    with progress_bar("Solving token MDPs", run.console) as progress:
        bar = progress.add_task("", total=len(seeds))
        for seed in seeds:
            settings = {**asdict(world), "seed": seed}
            found.append(run.part(f"{TABULAR}-{seed}", settings, lambda: tabular(seed, world)))  # noqa: B023
            progress.advance(bar)
    return summary(found)


def _tasks(names: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """Tasks to run, and those that are left out for want of data, with the reason.

    Raises UserError for an unknown name, or for a task that is named and has no data.
    """
    for name in names or ():
        if name not in TASKS:
            raise UserError(f"--tasks: {name!r} is unknown; accepted: {', '.join(TASKS)}")
    missing = {}
    for name in names or TASKS:
        try:
            _check_data(name)
        except UserError as error:
            if names:
                raise UserError(f"--tasks: {name}: {error}") from error
            missing[name] = str(error)
    return [name for name in names or TASKS if name not in missing], missing


def _check_data(task: str) -> None:
    """Raise UserError if the data of a task cannot be had; training has not begun yet."""
    if task in _OF_PEOPLE:
        labels_folder(_OF_PEOPLE[task])
    elif task == "planted":
        debian.read()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"unset: {', '.join(TASKS)}")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="unset: all of each task")
    parser.add_argument("--seeds", type=int, help="number of seeds; unset: 3")
    parser.add_argument(
        "--only-seed",
        type=int,
        help="this seed alone: several processes with the same --out may share the training, and "
        "the command without it then puts their parts together",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap over texts")
    parser.add_argument("--model", help=f"name or folder; unset: {Settings().model}")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of three arms, too small to quote"
    )


EXPERIMENT = Experiment(
    description="Train a small model on which of two whole responses is better, read what it says "
    "of every token of other texts, and compare with what is known of these tokens: which words "
    "people find good or bad, which detail of a summary is wrong, which span of an answer people "
    "marked. Controls read the same texts: surprisal and entropy of every model, position, length, "
    "gradients, a reward model, labels drawn by a coin. Started again, it goes on with the run it "
    "was in.",
    run=run,
    figure=draw,
    page=page,
    add_arguments=_add_arguments,
)
