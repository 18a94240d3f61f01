"""Every objective on the same film review pairs: what each learns from the same little data."""

import argparse
import re
from dataclasses import replace
from typing import Any

from tokenq.objectives import OBJECTIVES
from tokenq.report.progress import progress_bar
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.objective_arms import ARMS, DPO, START, Arm, chosen_arms
from tokenq.reproduce.objective_figure import draw
from tokenq.reproduce.objective_page import page
from tokenq.reproduce.objective_runs import Bench, Settings
from tokenq.reproduce.statistics import estimate, paired_difference

QUICK = Settings(
    pairs=8, held_out=6, max_words=8, batch_size=4, layers=1, lora_r=4, samples=2, sample_tokens=4
)
_QUICK_ARMS = [arm.name for arm in ARMS[:2]] + ["kto"]


def run(run: Run) -> Results:
    """Train every arm with every seed, or find it done, and put the measures together."""
    options = run.arguments
    settings = _settings(options)
    seeds = list(range(options.seeds or (2 if options.quick else 3)))
    names = options.objectives or (_QUICK_ARMS if options.quick else None)
    arms = chosen_arms(names)
    bench = Bench(settings)
    start = run.part("start", settings.to_dict(), bench.start)
    found: dict[str, list[Results]] = {}
    with progress_bar("Training and measuring", run.console) as progress:
        task = progress.add_task("", total=len(arms) * len(seeds))
        for arm in arms:
            found[arm.name] = []
            for seed in seeds:
                found[arm.name].append(_one(run, bench, arm, seed))
                progress.advance(task)
    controls = [bench.controls(seed) for seed in seeds]
    return {
        "settings": settings.to_dict(),
        "seeds": seeds,
        START: start,
        "controls": {name: estimate([each[name] for each in controls]) for name in controls[0]},
        "arms": {arm.name: _summary(arm, found) for arm in arms},
    }


def _settings(options: argparse.Namespace) -> Settings:
    settings = QUICK if options.quick else Settings()
    given = {
        "pairs": options.pairs,
        "learning_rate": options.learning_rate,
        "model": options.model,
    }
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _one(run: Run, bench: Bench, arm: Arm, seed: int) -> Results:
    settings = {
        **bench.settings.to_dict(),
        "arm": repr(arm),
        "objective": _objective(arm),
        "seed": seed,
    }

    def make() -> Results:
        return bench.run(arm, seed, _rewards(run, bench, seed) if arm.oracle else None)

    return run.part(f"{_slug(arm.name)}-{seed}", settings, make)


def _rewards(run: Run, bench: Bench, seed: int) -> list[list[float]]:
    settings = {**bench.settings.to_dict(), "objective": _objective(DPO), "seed": seed}
    made = run.part(f"oracle-{seed}", settings, lambda: {"rewards": bench.token_rewards(DPO, seed)})
    rewards: list[list[float]] = made["rewards"]
    return rewards


def _objective(arm: Arm) -> str:
    return repr(OBJECTIVES[arm.loss_type](**arm.arguments))


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _summary(arm: Arm, found: dict[str, list[Results]]) -> dict[str, Any]:
    runs = found[arm.name]
    measures = list(runs[0])
    summary: dict[str, Any] = {
        "objective": _objective(arm),
        "runs": runs,
        "measures": {name: estimate([each[name] for each in runs]) for name in measures},
    }
    if DPO.name in found and arm is not DPO:
        summary["less dpo"] = {
            name: paired_difference(
                [each[name] for each in runs], [each[name] for each in found[DPO.name]]
            )
            for name in measures
        }
    return summary


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--objectives", nargs="+", metavar="NAME", help=f"unset: {', '.join(a.name for a in ARMS)}"
    )
    parser.add_argument("--seeds", type=int, help="number of seeds; unset: 3")
    parser.add_argument("--pairs", type=int, help=f"training pairs; unset: {Settings().pairs}")
    parser.add_argument(
        "--learning-rate", type=float, help=f"of all objectives; unset: {Settings().learning_rate}"
    )
    parser.add_argument("--model", help=f"name or folder; unset: {Settings().model}")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of three objectives, too small to quote"
    )


EXPERIMENT = Experiment(
    description="Train a small model with every objective on the same film review pairs, in the "
    "same order and from the same first weights, and measure it on pairs of other sentences: which "
    "of two it prefers, which words it credits, how far it went and how long its answers became. "
    "A run with labels drawn by a coin, the untrained model and two rules without a model stand "
    "beside it. Started again, it goes on with the run it was in.",
    run=run,
    figure=draw,
    page=page,
    add_arguments=_add_arguments,
)
