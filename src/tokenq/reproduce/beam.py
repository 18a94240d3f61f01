"""A few beams help and many hurt: is it so here, and does it belong to DPO?"""

import argparse
from dataclasses import replace
from typing import Any

from tokenq.data import debian
from tokenq.data.film_snippets import snippets
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.reproduce.beam_decoding.settings import QUICK, TASKS, BeamSettings
from tokenq.reproduce.beam_decoding.work import Worker, chosen_pieces, pieces
from tokenq.reproduce.experiment import Experiment, Results, Run


def run(run: Run) -> Results:
    """Do all pieces, or find them done, and measure what was written."""
    options = run.arguments
    settings = QUICK if options.quick else BeamSettings()
    if options.model is not None:
        settings = replace(settings, model=options.model)
    tasks = _tasks(options.tasks)
    seeds = options.seeds or (2 if options.quick else 3)
    wanted = chosen_pieces(pieces(settings, tasks, seeds), options.only)
    worker = Worker(run, settings)
    if options.join:
        wanted = [piece for piece in wanted if worker.is_done(piece)]
        if not wanted:
            raise UserError(f"--join: no piece is done in {run.out}; accepted: a run without it")
    with progress_bar("Training, decoding and scoring", run.console) as progress:
        bar = progress.add_task("", total=len(wanted))
        for piece in wanted:
            worker.do(piece)
            progress.advance(bar)
    if options.only is not None:
        return {"unfinished": [piece.key for piece in wanted]}
    # Its measures are not needed where a process does some pieces alone.
    from tokenq.reproduce.beam_decoding.analysis import analysed

    with run.console.status("Measuring"):
        return analysed(worker, wanted, settings)


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
    from tokenq.reproduce.beam_decoding.figure import draw

    return draw(results)


def _page(results: Results) -> str:
    from tokenq.reproduce.beam_decoding.page import page

    return page(results)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"unset: {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, help="of the middle beta and the control; unset: 3")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PIECE",
        help="these pieces alone, such as film/dpo-0.1-0/beams: several processes with the same "
        "--out may share the work, and the command without it then puts their parts together",
    )
    parser.add_argument(
        "--join", action="store_true", help="results of the pieces that are done, making no others"
    )
    parser.add_argument("--model", help=f"name or folder; unset: {BeamSettings().model}")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, few prompts, too small to quote"
    )


EXPERIMENT = Experiment(
    description="Decode policies trained by DPO with 1 to 20 beams, and beside them the model that "
    "they were trained from and that model tuned further on the chosen answers: does quality rise "
    "with a few beams and fall with many, do texts grow, and is it DPO's doing? Film review "
    "sentences are judged by people's ratings of other sentences and by the valence of words, "
    "summaries of software packages by a reward model trained on other packages and by what they "
    "say that the description does not. Beside plain beams: search by log-ratio, "
    "alignment-aware decoding, best of n samples. Started again, it goes on with the run it was "
    "in.",
    run=run,
    figure=_draw,
    page=_page,
    add_arguments=_add_arguments,
)
