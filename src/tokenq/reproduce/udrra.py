"""What each objective converges to and how fast, after "Reveal the Mystery of DPO" (2502.03095).

Exact expected losses on small bandits: the only difference between two rows is the loss. The losses
of the four levels of reward access are reconstructed, see `tokenq.mdp.targets`.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from tokenq.mdp import targets
from tokenq.mdp.target_table import TARGETS, Target
from tokenq.mdp.targets import APPROXIMATIONS, PopulationLoss, PreferenceBandit
from tokenq.objectives import OBJECTIVES
from tokenq.report.progress import progress_bar
from tokenq.reproduce import bandit_network
from tokenq.reproduce.bandit_descent import MILESTONES, Descent, descend, tuned
from tokenq.reproduce.bandit_objectives import population_loss, uses_reference
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.statistics import estimate, shown

ANSWERS = 5
TAUS = (0.2, 0.5, 1.0, 2.0)
COVERAGES = ("uniform", "skewed", "missing")
LABELS = ("sampled", "deterministic", "noisy")
FLIPS = 0.1
GRID = tuple(2.0**power for power in range(-3, 14))
TUNING_SEEDS = 2
"""Problems that only the step size is chosen on."""
FIXED_STEP = 0.5
NEAR = MILESTONES[0]

Cell = dict[str, Any]


# Problems


def problem(seed: int, tau: float, coverage: str, labels: str) -> PreferenceBandit:
    """A random bandit of `ANSWERS` answers; the seed decides reward, reference and who is rare.

    coverage: uniform; skewed: 1, 1/3, 1/9 ... in random order; missing: no pair has the best answer
    labels:   sampled: Bradley-Terry probabilities; deterministic; noisy: sampled, then flipped at
              rate `FLIPS`
    """
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(ANSWERS, generator=generator, dtype=torch.float64)
    reference = torch.softmax(
        0.5 * torch.randn(ANSWERS, generator=generator, dtype=torch.float64), -1
    )
    order = torch.randperm(ANSWERS, generator=generator).double()
    covered = {
        "uniform": torch.ones_like(reward),
        "skewed": 3.0**-order,
        "missing": torch.where(reward == reward.max(), 0.0, 1.0).double(),
    }[coverage]
    sampled = targets.bradley_terry(reward)
    preferences = {
        "sampled": sampled,
        "deterministic": targets.deterministic(reward),
        "noisy": targets.flipped(sampled, FLIPS),
    }[labels]
    temperature = torch.tensor(tau, dtype=torch.float64)
    return PreferenceBandit(reference, reward, temperature, covered, preferences)


def stacked(problems: Sequence[PreferenceBandit]) -> PreferenceBandit:
    """Several problems as one with a leading dimension."""
    return PreferenceBandit(
        *(torch.stack([getattr(one, f.name) for one in problems]) for f in fields(problems[0]))
    )


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


def measure(name: str, seeds: int, tuning: int, iterations: int, taus: Sequence[float]) -> Results:
    """Tune the step on other problems, descend on `seeds` problems, for every cell of a row."""
    return {
        "cells": [
            cell for tau in taus for cell in _at_temperature(name, tau, seeds, tuning, iterations)
        ]
    }


def _at_temperature(
    name: str, tau: float, seeds: int, tuning: int, iterations: int
) -> Iterator[Cell]:
    target = TARGETS[name]
    loss, informed = loss_of(target, name, tau)
    cells = cells_of(name)

    def problems(numbers: Sequence[int]) -> tuple[PreferenceBandit, Tensor]:
        every = stacked([problem(n, tau, *cell) for cell in cells for n in numbers])
        goal = (every if informed else every.without_reference()).target.log()
        return every, goal

    bandit, goal = problems(range(1000, 1000 + TUNING_SEEDS))
    groups = torch.arange(len(cells)).repeat_interleave(TUNING_SEEDS)
    steps = tuned(loss, bandit, groups, GRID, tuning, goal)
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
            found = targets.minimise(
                lambda p, seen=seen: targets.preference_loss(p, seen),
                ANSWERS,  # type: ignore[misc]
            )
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
    names = ["RDA", "PRA", "dpo", "ipo"] if quick else list(TARGETS)
    taus = TAUS[2:3] if quick else TAUS
    results: Results = {"seeds": seeds, "rows": {}}
    with progress_bar("rows", run.console) as bar:
        for name in bar.track(names):
            core = name in APPROXIMATIONS or name == "dpo"
            tuning, iterations = (100, 200) if quick else (1000, 10_000) if core else (150, 600)
            settings = {
                "seeds": seeds,
                "tuning": tuning,
                "iterations": iterations,
                "taus": taus,
                "row": dict(TARGETS[name].settings),
            }
            key = name.replace(", ", "+").replace(" ", "_")
            results["rows"][name] = run.part(
                key,
                settings,
                lambda n=name, s=settings: measure(  # type: ignore[misc]
                    n, s["seeds"], s["tuning"], s["iterations"], s["taus"]
                ),
            )
    fixed = {"seeds": seeds, "iterations": 200 if quick else 30_000}
    results["one_step"] = run.part("one_step", fixed, lambda: one_step_for_all(**fixed))
    samples: Results = {"seeds": 5 if quick else 40, "sizes": [100, 1000, 10_000, 100_000]}
    results["samples"] = run.part(
        "samples", samples, lambda: finite_samples(samples["seeds"], samples["sizes"])
    )
    network = {"seeds": seeds, "iterations": 20 if quick else 800}
    results["networks"] = run.part("networks", network, lambda: networks(**network))
    return results


def find(results: Results, name: str, tau: float, coverage: str, labels: str) -> Cell | None:
    """The cell of a row, None where it was not measured."""
    for cell in results["rows"].get(name, {"cells": []})["cells"]:
        if (cell["tau"], cell["coverage"], cell["labels"]) == (tau, coverage, labels):
            found: Cell = cell
            return found
    return None


def _figure(results: Results) -> Figure:
    figure, axes = plt.subplot_mosaic(
        [["heat", "iterations"], ["heat", "rates"], ["heat", "networks"]],
        figsize=(15, 13),
        width_ratios=(1.1, 1),
        layout="constrained",
    )
    _heat(figure, axes["heat"], results)
    _iterations(axes["iterations"], results)
    _rates(axes["rates"], results)
    _network_bars(axes["networks"], results)
    return figure


def _heat(figure: Figure, axes: Axes, results: Results) -> None:
    """KL to the target at temperature 1 of every row, by coverage and labels."""
    columns = list(itertools.product(COVERAGES, LABELS))
    names = list(results["rows"])
    values = np.full((len(names), len(columns)), np.nan)
    for (i, name), (j, column) in itertools.product(enumerate(names), enumerate(columns)):
        cell = find(results, name, 1.0, *column)
        if cell is not None:
            values[i, j] = max(1e-9, cell["kl"]["mean"])
    image = axes.imshow(values, norm=LogNorm(1e-9, 3), cmap="viridis_r", aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(
        range(len(columns)),
        [f"{coverage}\n{labels}" for coverage, labels in columns],
        rotation=60,
        ha="right",
    )
    axes.set_title("KL(pi || Boltzmann) at the end, temperature 1 (white: not applicable)")
    figure.colorbar(image, ax=axes, shrink=0.5)


def _iterations(axes: Axes, results: Results) -> None:
    for name in (*APPROXIMATIONS, "dpo"):
        for coverage, style in (("uniform", "-"), ("skewed", ":")):
            cells = [find(results, name, tau, coverage, "sampled") for tau in TAUS]
            shown_at = [
                (tau, cell["iterations"]["mean"])
                for tau, cell in zip(TAUS, cells, strict=True)
                if cell is not None and cell["iterations"] is not None
            ]
            if shown_at:
                axes.plot(
                    *zip(*shown_at, strict=True), style, marker="o", label=f"{name}, {coverage}"
                )
    for name, estimates in results["one_step"].items():
        at = [(tau, e["mean"]) for tau, e in zip(TAUS, estimates, strict=True) if e is not None]
        if at:
            axes.plot(
                *zip(*at, strict=True), "--", color="grey", marker="x", label=f"{name}, untuned"
            )
    axes.set(xscale="log", yscale="log", xlabel="temperature", ylabel="iterations to KL < 1e-3")
    axes.set_title("Tuned steps; grey: one step size for all")
    axes.legend(fontsize=7, ncols=2)


def _rates(axes: Axes, results: Results) -> None:
    for name, row in results["rows"].items():
        theory = [x for cell in row["cells"] for x in cell["decades_theory"]]
        measured = [x for cell in row["cells"] for x in cell["decades_measured"]]
        if name in APPROXIMATIONS or name == "dpo":
            axes.scatter(theory, measured, s=12, label=name)
    axes.axline((0.01, 0.01), slope=1, color="grey", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="decades of KL per iteration, from the Hessian")
    axes.set(ylabel="measured")
    axes.legend(fontsize=8)


def _network_bars(axes: Axes, results: Results) -> None:
    arms = list(results["networks"]["small"])
    for offset, (size, estimates) in zip((-0.2, 0.2), results["networks"].items(), strict=True):
        means = [max(1e-9, estimates[arm]["mean"]) for arm in arms]
        axes.barh(np.arange(len(arms)) + offset, means, 0.4, label=f"{size} network")
    axes.set_yticks(range(len(arms)), arms)
    axes.set(xscale="log", xlabel="mean KL to the target")
    axes.invert_yaxis()
    axes.legend(fontsize=8)


# The page


def _page(results: Results) -> str:
    return "\n\n".join(
        [
            "The formulas of BDA, RA, RDA and PRA were **reconstructed**: the full text of the paper "
            "was not available. So was the reading of the posterior forms (`-P`) as those with "
            "`pi_ref` as the prior. All other rows are the objectives as tokenq has them, handed "
            f"every pair of {ANSWERS} answers with its exact weight. {results['seeds']} random "
            "problems a cell; intervals are 95 %. The step size is the best of "
            f"{len(GRID)} powers of two, chosen for each row, temperature, coverage and label law "
            f"on {TUNING_SEEDS} other problems.",
            "## What holds\n\n" + _findings(results),
            _marked("speed", _speed_table(results)),
            _marked("limits", _limit_table(results)),
            _marked("temperature", _temperature_table(results)),
            _marked("more", _further(results)),
            _marked("targets", targets_table()),
        ]
    )


def _marked(name: str, body: str) -> str:
    """A section that the documentation can include by name."""
    return f"<!-- --8<-- [start:{name}] -->\n{body}\n<!-- --8<-- [end:{name}] -->"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _iterations_of(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell["iterations"] is None:
        return f"not reached ({cell['reached']} of {cell['kl']['n']})"
    return shown(cell["iterations"], 0)


def _speed_table(results: Results) -> str:
    rows = []
    for name, coverage in itertools.product((*APPROXIMATIONS, "dpo"), ("uniform", "skewed")):
        cells = [find(results, name, tau, coverage, "sampled") for tau in TAUS]
        if any(cells):
            ratios = [
                measured / theory
                for cell in cells
                if cell
                for measured, theory in zip(
                    cell["decades_measured"], cell["decades_theory"], strict=True
                )
            ]
            agreement = f"{np.median(ratios):.2f}" if ratios else ""
            steps = ", ".join(f"{cell['step']:g}" for cell in cells if cell)
            rows.append([name, coverage, *map(_iterations_of, cells), steps, agreement])
    head = ["loss", "coverage", *(f"tau {tau:g}" for tau in TAUS), "steps", "rate / theory"]
    fixed = [
        [name, *("not reached" if e is None else shown(e, 0) for e in estimates)]
        for name, estimates in results["one_step"].items()
    ]
    return (
        "## Iterations to KL < 1e-3, step size tuned\n\n"
        + _table(head, rows)
        + "\n\nRate / theory: decades of KL per iteration between 1e-6 and 1e-9, over those that "
        "the extreme eigenvalues of the Hessian give for that step; median over runs.\n\n"
        f"The same with one step size, {FIXED_STEP}, for all (uniform pairs):\n\n"
        + _table(["loss", *(f"tau {tau:g}" for tau in TAUS)], fixed)
    )


LIMIT_CELLS = (
    ("uniform", "sampled"),
    ("skewed", "sampled"),
    ("missing", "sampled"),
    ("uniform", "deterministic"),
    ("uniform", "noisy"),
)


def _limit_table(results: Results) -> str:
    rows = []
    for name in results["rows"]:
        cells = [find(results, name, 1.0, *which) for which in LIMIT_CELLS]
        own = cells[0]["to_own_law"] if cells[0] else None
        rows.append([f"`{name}`", *map(_end_of, cells), "" if own is None else _small(own)])
    head = [
        "row",
        *(f"{coverage}, {labels}" for coverage, labels in LIMIT_CELLS),
        "KL to its own law",
    ]
    return (
        "## KL(pi || Boltzmann) at temperature 1, nats\n\n"
        + _table(head, rows)
        + "\n\n`+` and `-`: expected reward more than 0.05 above or below that of the target "
        "(overshoot, undershoot). Own law: the closed form of its row, uniform coverage, sampled "
        "labels. Objectives without a reference are held to exp(r/tau)/Z. The first 6 rows ran "
        "10,000 iterations at most, the others 600: a limit at infinity is still on its way."
    )


def _small(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _end_of(cell: Cell | None) -> str:
    if cell is None:
        return ""
    above = cell["reward_above_target"]
    sign = " +" if above > 0.05 else " -" if above < -0.05 else ""
    runaway = f", {cell['diverged']} ran away" if cell["diverged"] else ""
    return _small(cell["kl"]["mean"]) + sign + runaway


def _temperature_table(results: Results) -> str:
    rows = []
    for name in results["rows"]:
        cells = [find(results, name, tau, "uniform", "sampled") for tau in TAUS]
        texts = [
            f"{_small(cell['kl']['mean'])} ({cell['iterations']['mean']:.0f})"
            if cell["iterations"]
            else _small(cell["kl"]["mean"])
            for cell in cells
            if cell
        ]
        rows.append([f"`{name}`", *texts])
    return (
        "## KL by temperature, uniform pairs, sampled labels\n\n"
        "In brackets: iterations to KL < 1e-3 where all problems got there. Every other cell of "
        "temperature x coverage x labels is in `results.json`.\n\n"
        + _table(["row", *(f"tau {tau:g}" for tau in TAUS)], rows)
    )


def _further(results: Results) -> str:
    samples = results["samples"]
    sampled = [
        [f"{size:,}", "" if e is None else shown(e, 5), str(unbounded)]
        for size, e, unbounded in zip(
            samples["sizes"], samples["kl"], samples["unbounded"], strict=True
        )
    ]
    networks = results["networks"]
    arms = [
        [arm, shown(networks["small"][arm], 4), shown(networks["large"][arm], 6)]
        for arm in networks["small"]
    ]
    return (
        "## DPO on N sampled labels, temperature 1\n\n"
        + _table(["labels", "KL of the minimiser to the target", "without finite minimum"], sampled)
        + "\n\n## One network for many prompts\n\n"
        f"{bandit_network.CONTEXTS} prompts, {bandit_network.ANSWERS} answers, tau 0.5; a tanh "
        f"layer of {bandit_network.SMALL} units (too small for the target) and of "
        f"{bandit_network.LARGE}; Adam, full batch. Mean KL to the target.\n\n"
        + _table(["told", "small", "large"], arms)
    )


def targets_table() -> str:
    """The table of all targets, from `tokenq.mdp.target_table`."""
    rows = [
        [
            f"`{name}`" + (" (reconstructed)" if target.reconstructed else ""),
            target.access,
            f"{target.law}" + (f" [{target.scope}]" if target.closed_form else ""),
            target.temperature,
            target.data,
            target.noise,
            target.rate,
        ]
        for name, target in TARGETS.items()
    ]
    head = ["objective", "access", "limit", "temperature", "coverage", "labels", "rate"]
    return "## Targets\n\n" + _table(head, rows)


def _findings(results: Results) -> str:
    return ""


EXPERIMENT = Experiment(
    description=(
        "What every objective converges to, and how fast: exact expected losses on small bandits "
        "against the Boltzmann law, by temperature, coverage and label law, with the step size "
        "tuned for each. Losses of the four levels of reward access are reconstructed."
    ),
    run=_run,
    figure=_figure,
    page=_page,
    add_arguments=_add_arguments,
)
