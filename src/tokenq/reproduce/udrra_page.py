"""The page and the figure of `udrra`, drawn from its results alone."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from tokenq.mdp.target_table import TARGETS
from tokenq.mdp.targets import APPROXIMATIONS
from tokenq.reproduce import bandit_network
from tokenq.reproduce.bandit_descent import FIXED_STEP, GRID
from tokenq.reproduce.bandit_problems import ANSWERS, COVERAGES, LABELS, TAUS
from tokenq.reproduce.experiment import Results
from tokenq.reproduce.statistics import shown
from tokenq.reproduce.udrra_findings import Cell, find, findings, small


def figure(results: Results) -> Figure:
    drawn, axes = plt.subplot_mosaic(
        [["heat", "iterations"], ["heat", "rates"], ["heat", "networks"]],
        figsize=(15, 13),
        width_ratios=(1.1, 1),
        layout="constrained",
    )
    _heat(drawn, axes["heat"], results)
    _iterations(axes["iterations"], results)
    _rates(axes["rates"], results)
    _network_bars(axes["networks"], results)
    return drawn


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
    axes.set_xticks(TAUS, [f"{tau:g}" for tau in TAUS])
    axes.minorticks_off()
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


def page(results: Results) -> str:
    return "\n\n".join(
        [
            "The formulas of BDA, RA, RDA and PRA were **reconstructed**: the full text of the "
            "paper was not available. So was the reading of the posterior forms (`-P`) as those "
            "with `pi_ref` as the prior. All other rows are tokenq's objectives themselves, handed "
            f"every pair of {ANSWERS} answers with its exact weight. {results['seeds']} random "
            "problems a cell; intervals are 95 %. The step size is the best of "
            f"{len(GRID)} powers of two, chosen for each row, temperature, coverage and label law "
            "on other problems: 8 for the first six rows, 2 for the rest.",
            "## What holds\n\n" + findings(results),
            _section("Iterations to KL < 1e-3, step size tuned", "speed", _speed_table(results)),
            _section("KL to the target at temperature 1", "limits", _limit_table(results)),
            _section("KL by temperature", "temperature", _temperature_table(results)),
            _section("DPO on N sampled labels, temperature 1", "samples", _samples(results)),
            _section("One network for many prompts", "networks", _networks(results)),
            _section("Targets", "targets", targets_table()),
        ]
    )


def _section(title: str, name: str, body: str) -> str:
    """A section whose body the documentation can include by name."""
    return f"## {title}\n\n<!-- --8<-- [start:{name}] -->\n{body}\n<!-- --8<-- [end:{name}] -->"


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
        _table(head, rows)
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
        rows.append([f"`{name}`", *map(_end_of, cells), "" if own is None else small(own)])
    head = [
        "row",
        *(f"{coverage}, {labels}" for coverage, labels in LIMIT_CELLS),
        "KL to its own law",
    ]
    return (
        "KL(pi || Boltzmann), nats.\n\n"
        + _table(head, rows)
        + "\n\n`+` and `-`: expected reward more than 0.05 above or below that of the target "
        "(overshoot, undershoot). Own law: the closed form of its row, uniform coverage, sampled "
        "labels. Objectives without a reference are held to exp(r/tau)/Z. The first 6 rows ran "
        "3,000 iterations at most, the others 400: a limit at infinity is still on its way. If no "
        "step reaches the target, the step is the one with the lowest loss; under `use_weighting` "
        "and in the sorted losses of AOT that is no good guide, since a run that empties an answer "
        "lowers the loss as well."
    )


def _end_of(cell: Cell | None) -> str:
    if cell is None:
        return ""
    above = cell["reward_above_target"]
    sign = " +" if above > 0.05 else " -" if above < -0.05 else ""
    runaway = f", {cell['diverged']} ran away" if cell["diverged"] else ""
    return small(cell["kl"]["mean"]) + sign + runaway


def _temperature_table(results: Results) -> str:
    rows = []
    for name in results["rows"]:
        cells = [find(results, name, tau, "uniform", "sampled") for tau in TAUS]
        texts = [
            f"{small(cell['kl']['mean'])} ({cell['iterations']['mean']:.0f})"
            if cell["iterations"] and cell["kl"]["mean"] < 1e-3
            else small(cell["kl"]["mean"])
            for cell in cells
            if cell
        ]
        rows.append([f"`{name}`", *texts])
    return (
        "Uniform pairs, sampled labels; in brackets: iterations to KL < 1e-3 where all problems "
        "got there. Every other cell of temperature x coverage x labels is in `results.json`.\n\n"
        + _table(["row", *(f"tau {tau:g}" for tau in TAUS)], rows)
    )


def _samples(results: Results) -> str:
    samples = results["samples"]
    rows = [
        [f"{size:,}", "" if e is None else shown(e, 5), str(unbounded)]
        for size, e, unbounded in zip(
            samples["sizes"], samples["kl"], samples["unbounded"], strict=True
        )
    ]
    head = ["N", "KL of the minimiser to the target", "without finite minimum"]
    return "The same number of labels for every pair.\n\n" + _table(head, rows)


def _networks(results: Results) -> str:
    networks = results["networks"]
    rows = [
        [arm, shown(networks["small"][arm], 4), shown(networks["large"][arm], 6)]
        for arm in networks["small"]
    ]
    return (
        f"{bandit_network.CONTEXTS} prompts, {bandit_network.ANSWERS} answers, tau 0.5; a tanh "
        f"layer of {bandit_network.SMALL} units (too small for the target) and of "
        f"{bandit_network.LARGE}; Adam, full batch. Mean KL to the target.\n\n"
        + _table(["told", "small", "large"], rows)
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
    return _table(head, rows)
