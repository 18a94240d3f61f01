"""What credit is worth where it is used: ranking responses, cleaning labels, locating errors."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenq.report.progress import progress_bar
from tokenq.reproduce.credit_uses.cleaning import (
    MEMORISED,
    POLICY,
    REFERENCE,
    SAME,
    Cleaned,
    Cleaning,
    cleaned,
)
from tokenq.reproduce.credit_uses.figure import draw
from tokenq.reproduce.credit_uses.film import (
    HeldOutPair,
    Memoriser,
    Record,
    exchanged,
    held_out_pairs,
    held_out_records,
    read_by_reference,
)
from tokenq.reproduce.credit_uses.judging import findings
from tokenq.reproduce.credit_uses.locating import locating
from tokenq.reproduce.credit_uses.page import page
from tokenq.reproduce.credit_uses.ranking import ranking
from tokenq.reproduce.credit_uses.settings import QUICK, UsesSettings
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.localisation.arms import ARMS, COIN, DPO
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.tables import START, tables

FILM, PLANTED = "film", "planted"
_JUDGE = "dpo, twice the pairs"
"""The arm of `localisation` that ranks and cleans: all film pairs of the settings."""
_ARMS = {
    FILM: [arm for arm in ARMS[FILM] if arm.name == _JUDGE],
    PLANTED: [arm for arm in ARMS[PLANTED] if arm.name in (DPO.name, COIN)],
}


def run(run: Run) -> Results:
    """Train what is not there yet, and measure the three uses."""
    options = run.arguments
    settings = QUICK if options.quick else UsesSettings()
    if options.model is not None:
        settings = replace(settings, model=options.model)
    seeds = list(range(options.seeds or (2 if options.quick else 3)))
    source = replace(run, out=options.credit) if options.credit else run
    found = tables(source, settings.localisation, list(_ARMS), _ARMS, seeds)
    bench = Bench(settings.model, settings.layers)
    pairs = held_out_pairs(settings.film)
    records = [
        held_out_records(
            pairs,
            found[FILM, START, seed],
            found[FILM, _JUDGE, seed],
            bench.encoder,
            settings.beta,
        )
        for seed in seeds
    ]
    memorised = _memorised(run, Memoriser(run, settings, bench, pairs), settings, seeds)
    use = settings.locate
    by_arm = {
        arm: [found[PLANTED, arm, seed] for seed in seeds]
        for arm in (START, *(arm.name for arm in _ARMS[PLANTED]))
    }
    with run.console.status("Measuring"):
        results: dict[str, Any] = {
            "settings": settings.to_dict(),
            "seeds": seeds,
            "rank": ranking(pairs, records, settings.film.groups, settings.resamples),
            "clean": _cleaning(pairs, settings, seeds, records, memorised),
            "locate": locating(by_arm, use.rates, use.splits, settings.resamples),
        }
    return {**results, "findings": findings(results)}


def _memorised(
    run: Run, memoriser: Memoriser, settings: UsesSettings, seeds: Sequence[int]
) -> dict[float, list[list[Record]]]:
    """By share of exchanged labels, the records of each seed."""
    found: dict[float, list[list[Record]]] = {rate: [] for rate in settings.film.control}
    with progress_bar("Training on the pairs to clean", run.console) as progress:
        bar = progress.add_task("", total=len(seeds) * len(found))
        for rate, own in found.items():
            for seed in seeds:
                own.append(memoriser.records(seed, rate))
                progress.advance(bar)
    return found


def _cleaning(
    pairs: Sequence[HeldOutPair],
    settings: UsesSettings,
    seeds: Sequence[int],
    held_out: Sequence[Sequence[Record]],
    memorised: dict[float, list[list[Record]]],
) -> dict[str, Any]:
    """By share of exchanged labels, in percent: the measures of each judge."""
    few = settings.film.memorised
    known = Cleaning(len(pairs), settings.resamples)
    results: dict[str, Any] = {}
    for rate in settings.film.rates:
        wrong = [exchanged(len(pairs), rate, seed) for seed in seeds]

        def judge(records: Sequence[Sequence[Record]], wrong: Any = wrong) -> list[Cleaned]:
            return [
                cleaned(pairs[: len(own)], own, labels[: len(own)])
                for own, labels in zip(records, wrong, strict=True)
            ]

        reference = [[read_by_reference(record) for record in own] for own in held_out]
        judges = {POLICY: judge(held_out), REFERENCE: judge(reference)}
        if rate in memorised:
            judges[SAME] = judge([own[:few] for own in held_out])
            judges[MEMORISED] = judge(memorised[rate])
        found: dict[str, Any] = {
            "judges": {name: known.measures(own) for name, own in judges.items()}
        }
        if rate:
            found["differences"] = known.differences(judges)
        results[f"{100 * rate:g}"] = found
    return results


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, help="number of seeds; unset: 3")
    parser.add_argument("--model", help=f"name or folder; unset: {UsesSettings().model}")
    parser.add_argument(
        "--credit",
        type=Path,
        metavar="DIR",
        help="folder of a `tokenq reproduce credit`, whose policies are used; those that are not "
        "there are trained there. Unset: they are trained here",
    )
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of few pairs, too small to quote"
    )


EXPERIMENT = Experiment(
    description="Measure what credit is used for. Rank: how people rate the film review sentence "
    "that comes first by implicit reward. Clean: how many exchanged labels of film review pairs "
    "are disputed, and what is said of their share. Locate: how often true summaries of packages "
    "are flagged at a stated rate, and how often a planted error is. Controls: likelihoods, "
    "length, a policy trained on the pairs that it judges, labels by coin, surprisal. Started "
    "again, it goes on with the run it was in.",
    run=run,
    figure=draw,
    page=page,
    add_arguments=_add_arguments,
)
