"""What each objective converges to and how fast, after "Reveal the Mystery of DPO" (2502.03095).

Exact expected losses on small bandits: the only difference between two rows is the loss. The losses
of the four levels of reward access are reconstructed, see `tokenq.mdp.targets`.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenq.mdp import targets
from tokenq.mdp.target_table import TARGETS, Target
from tokenq.mdp.targets import APPROXIMATIONS, PopulationLoss, PreferenceBandit
from tokenq.objectives import OBJECTIVES
from tokenq.report.progress import progress_bar
from tokenq.reproduce import bandit_network, udrra_page
from tokenq.reproduce.bandit_descent import (
    FIXED_STEP,
    GRID,
    MILESTONES,
    Descent,
    descend,
    tuned,
)
from tokenq.reproduce.bandit_objectives import population_loss, uses_reference
from tokenq.reproduce.bandit_problems import ANSWERS, COVERAGES, LABELS, TAUS, problem, stacked
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.statistics import estimate

Cell = dict[str, Any]

FIRST_TUNING_SEED = 1000
"""From it on are the problems that only the step size is chosen on."""
QUICK_ROWS = ("RDA", "dpo", "ipo")


def cells_of(name: str) -> list[tuple[str, str]]:
    """The coverages and label laws that the loss of a row can tell apart."""
    if name.startswith("BDA"):
        return [("uniform", "sampled")]
    if name in APPROXIMATIONS:
        return [(coverage, "sampled") for coverage in COVERAGES]
    return list(itertools.product(COVERAGES, LABELS))


def loss_of(target: Target, name: str, tau: float) -> tuple[PopulationLoss, bool]:
    """The loss of a row at a temperature, and whether it knows the reference."""
    if not target.objective:
        return APPROXIMATIONS[name], True
    scale = {target.scale: tau} if target.scale else {}
    objective = OBJECTIVES[target.objective](**scale, **target.settings)
    return population_loss(objective), uses_reference(objective)


# One row of the table


def measure(
    name: str, seeds: int, tuning: tuple[int, int], iterations: int, taus: Sequence[float]
) -> Results:
    """Tune the step on other problems, descend on `seeds` problems, for every cell of a row.

    tuning: number of problems and of iterations to choose the step by
    """
    return {
        "cells": [
            cell for tau in taus for cell in _at_temperature(name, tau, seeds, tuning, iterations)
        ]
    }


def _at_temperature(
    name: str, tau: float, seeds: int, tuning: tuple[int, int], iterations: int
) -> Iterator[Cell]:
    target = TARGETS[name]
    loss, informed = loss_of(target, name, tau)
    cells = cells_of(name)

    def problems(numbers: Sequence[int]) -> tuple[PreferenceBandit, Tensor]:
        every = stacked([problem(n, tau, *cell) for cell in cells for n in numbers])
        goal = (every if informed else every.without_reference()).target.log()
        return every, goal

    others, trials = tuning
    bandit, goal = problems(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + others))
    groups = torch.arange(len(cells)).repeat_interleave(others)
    steps = tuned(loss, bandit, groups, GRID, trials, goal)
    bandit, goal = problems(range(seeds))
    run = descend(loss, bandit, steps.repeat_interleave(seeds), iterations, goal)
    curvature = targets.rate(loss, run.log_policy, bandit)
    for index, (coverage, labels) in enumerate(cells):
        part = slice(index * seeds, (index + 1) * seeds)
        rate = targets.Rate(curvature.smallest[part], curvature.largest[part])
        yield {
            "tau": tau,
            "coverage": coverage,
            "labels": labels,
            "step": float(steps[index]),
            **_ends(run, part, goal, bandit),
            **_speed(run, part, rate, float(steps[index])),
            "to_own_law": _distance_to_law(target, bandit, run, part),
        }


def _ends(run: Descent, part: slice, goal: Tensor, bandit: PreferenceBandit) -> Cell:
    policy, aim = run.log_policy[part].exp(), goal[part].exp()
    forward = (aim * (goal[part] - run.log_policy[part])).sum(-1)
    return {
        "kl": estimate(targets.kl(policy, aim).tolist()),
        "kl_forward": float(forward.mean()),
        "reward_above_target": float(((policy - aim) * bandit.reward[part]).sum(-1).mean()),
        "diverged": int(run.diverged[part].sum()),
    }


def _speed(run: Descent, part: slice, rate: targets.Rate, step: float) -> Cell:
    """Iterations to the first milestone; decades of KL per iteration, measured and from theory.

    The distance of the logits shrinks by the contraction c in a step, so the KL by c^2. Rates are
    of runs that took at least 5 iterations from the second milestone to the last.
    """
    near, middle, last = run.reached[part].double().T
    there = last - middle >= 5
    contraction = rate.contraction(torch.tensor(step, dtype=torch.float64))[there]
    measured = math.log10(MILESTONES[1] / MILESTONES[2]) / (last - middle)[there]
    theory = -2 * torch.log10(contraction)
    return {
        "reached": int((near >= 0).sum()),
        "iterations": estimate(near.tolist()) if bool((near >= 0).all()) else None,
        "condition": float((rate.largest / rate.smallest).mean()) if bool(there.all()) else None,
        "decades_measured": measured.tolist(),
        "decades_theory": theory.tolist(),
    }


def _distance_to_law(
    target: Target, bandit: PreferenceBandit, run: Descent, part: slice
) -> float | None:
    """KL to the row's own closed form; None where it has none for these problems."""
    if target.closed_form is None:
        return None
    try:
        law = target.closed_form(bandit.take(torch.arange(part.start, part.stop)))
    except ValueError:  # outside the scope of the closed form, which it checks itself
        return None
    return float(targets.kl(run.log_policy[part].exp(), law).mean())


# Further questions


def one_step_for_all(seeds: int, iterations: int) -> Results:
    """Iterations with `FIXED_STEP` everywhere, uniform pairs: what an untuned comparison shows."""
    out: Results = {}
    for name in ("RDA", "PRA"):
        every = stacked(
            [problem(n, tau, "uniform", "sampled") for tau in TAUS for n in range(seeds)]
        )
        steps = torch.full((len(TAUS) * seeds,), FIXED_STEP, dtype=torch.float64)
        run = descend(APPROXIMATIONS[name], every, steps, iterations, every.target.log())
        near = run.reached[:, 0].view(len(TAUS), seeds)
        out[name] = [
            estimate(row.tolist()) if bool((row >= 0).all()) else None for row in near.double()
        ]
    return out


def finite_samples(seeds: int, sizes: Sequence[int]) -> Results:
    """DPO on N sampled labels, as many for every pair: KL of its minimiser to pi^tau at tau 1."""
    bandit = problem(0, 1.0, "uniform", "sampled")
    generator = torch.Generator().manual_seed(7)
    pairs = ANSWERS * (ANSWERS - 1) // 2
    out: Results = {"sizes": list(sizes), "kl": [], "unbounded": []}
    for size in sizes:
        distances = []
        for _ in range(seeds):
            each = size // pairs
            wins = torch.binomial(
                torch.full_like(bandit.preferences, each), bandit.preferences, generator=generator
            )
            upper = torch.triu(wins / each, 1)
            told = upper + torch.tril(1 - upper.mT, -1) + 0.5 * torch.eye(ANSWERS)
            seen = replace(bandit, preferences=told)
            found = targets.minimise(partial(targets.preference_loss, bandit=seen), ANSWERS)
            if found.finite:
                distances.append(float(targets.kl(found.policy, bandit.target)))
        out["kl"].append(estimate(distances) if distances else None)
        out["unbounded"].append(seeds - len(distances))
    return out


def networks(seeds: int, iterations: int) -> Results:
    """A network that cannot hold the target and one that can, by loss and by what it is told."""
    contexts = bandit_network.contexts(seeds, 0.5)

    def plain(bandit: PreferenceBandit, _: Tensor) -> PreferenceBandit:
        return bandit

    def rare(bandit: PreferenceBandit, _: Tensor) -> PreferenceBandit:
        return bandit_network.from_worst(bandit)

    def own(bandit: PreferenceBandit, log_policy: Tensor) -> PreferenceBandit:
        return replace(bandit, coverage=log_policy.exp())

    def certain(bandit: PreferenceBandit, _: Tensor) -> PreferenceBandit:
        return replace(bandit, preferences=targets.deterministic(bandit.reward))

    arms = {
        "BDA": (targets.bda, plain),
        "RA": (targets.ra, plain),
        "RDA": (targets.rda, plain),
        "RDA, good answers rare": (targets.rda, rare),
        "PRA": (targets.pra, plain),
        "PRA, good answers rare": (targets.pra, rare),
        "PRA, pairs from the policy": (targets.pra, own),
        "DPO, deterministic labels": (targets.preference_loss, certain),
    }
    sizes = {"small": bandit_network.SMALL, "large": bandit_network.LARGE}
    return {
        size: {
            arm: estimate(
                bandit_network.train(loss, contexts, hidden, iterations, see=see).tolist()
            )
            for arm, (loss, see) in arms.items()
        }
        for size, hidden in sizes.items()
    }


# The experiment


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5, help="problems per cell (default: 5)")
    parser.add_argument(
        "--quick", action="store_true", help="a few rows and iterations: seconds, for tests"
    )


def _run(run: Run) -> Results:
    quick, seeds = run.arguments.quick, run.arguments.seeds
    results: Results = {"seeds": seeds, "rows": {}}
    with progress_bar("rows", run.console) as bar:
        for name in bar.track(QUICK_ROWS if quick else list(TARGETS)):
            results["rows"][name] = row(run, name)
    fixed = {"seeds": seeds, "iterations": 200 if quick else 30_000}
    results["one_step"] = run.part("one_step", fixed, lambda: one_step_for_all(**fixed))
    samples: Results = {"seeds": 40, "sizes": [100, 1000, 10_000, 100_000]}
    if quick:
        samples = {"seeds": 2, "sizes": [100, 1000]}
    results["samples"] = run.part(
        "samples", samples, lambda: finite_samples(samples["seeds"], samples["sizes"])
    )
    network = {"seeds": seeds, "iterations": 5 if quick else 800}
    results["networks"] = run.part("networks", network, lambda: networks(**network))
    return results


def row(run: Run, name: str) -> Results:
    """The part of a run that measures one row of the table."""
    seeds = run.arguments.seeds
    tuning, iterations = (2, 80), 400
    taus: Sequence[float] = TAUS
    if name in APPROXIMATIONS or name == "dpo":
        tuning, iterations = (8, 300), 3000
    if run.arguments.quick:
        tuning, iterations, taus = (2, 40), 120, TAUS[2:3]
    settings = {
        "seeds": seeds,
        "tuning": tuning,
        "iterations": iterations,
        "taus": taus,
        "row": dict(TARGETS[name].settings),
    }
    key = name.replace(", ", "+").replace(" ", "_")
    return run.part(key, settings, lambda: measure(name, seeds, tuning, iterations, taus))


EXPERIMENT = Experiment(
    description=(
        "What every objective converges to, and how fast: exact expected losses on small bandits "
        "against the Boltzmann law, by temperature, coverage and label law, with the step size "
        "tuned for each. Losses of the four levels of reward access are reconstructed."
    ),
    run=_run,
    figure=udrra_page.figure,
    page=udrra_page.page,
    add_arguments=_add_arguments,
)
