"""The picture of `tokenq reproduce displacement`."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenq.reproduce.mass_displacement.analysis import DISTINCT, LEVEL, MARGIN, at_level, margin_of
from tokenq.reproduce.mass_displacement.answers import KINDS
from tokenq.reproduce.mass_displacement.arms import FILTERS, OBJECTIVE_ARMS
from tokenq.reproduce.mass_displacement.predictors import PREDICTORS
from tokenq.reproduce.mass_displacement.settings import LEVELS
from tokenq.reproduce.statistics import Estimate

COLOURS = {"near": "#c0392b", "opposite": "#2471a3", "evasive": "#7f8c8d"}
NAMES = {"near": "near-duplicate", "opposite": "opposite", "evasive": "evasive"}


def draw(results: dict[str, Any]) -> Figure:
    """Four panels: single pairs, what predicts their fall, filters, objectives at equal margin."""
    drawing = Figure(figsize=(12, 9.2), layout="constrained")
    axes = drawing.subplots(2, 2)
    _single(axes[0, 0], results)
    _predictors(axes[0, 1], results)
    _filters(axes[1, 0], results)
    _objectives(axes[1, 1], results)
    return drawing


def _single(axes: Axes, results: dict[str, Any]) -> None:
    levels = np.linspace(0, LEVELS[-1], 33)
    for kind in KINDS:
        curves = [
            record["curve"]
            for records in results["singles"]
            for record in records
            if record["kind"] == kind
        ]
        values = np.array([[_chosen(curve, level) for level in levels] for curve in curves])
        # Only as far as most pairs got: a mean over the few that got further is of other pairs.
        far = np.isfinite(values).mean(0) > 0.5
        shown = values[:, far]
        low, middle, high = np.nanquantile(shown, [0.1, 0.5, 0.9], axis=0)
        axes.fill_between(levels[far], low, high, color=COLOURS[kind], alpha=0.15, lw=0)
        axes.plot(levels[far], middle, color=COLOURS[kind], label=NAMES[kind])
    axes.axhline(0, color="black", lw=0.6)
    axes.set_title("Trained on one pair: the chosen answer", fontsize=10)
    axes.set_xlabel("margin grown, nats")
    axes.set_ylabel("log pi(y+) - log pi_start(y+), nats\n(median, 10 to 90 % of pairs)")
    axes.legend(title="rejected answer", fontsize=8, title_fontsize=8)


def _chosen(curve: list[list[float]], level: float) -> float:
    row = at_level(curve, level)
    return float("nan") if row is None else row[1]


def _predictors(axes: Axes, results: dict[str, Any]) -> None:
    names = list(PREDICTORS)
    for offset, (which, colour) in enumerate((("all", "#34495e"), ("near", COLOURS["near"]))):
        label = "all pairs" if which == "all" else "near-duplicates only"
        for place, name in enumerate(names):
            value = results["correlations"][which][name]["fall"]
            if value is not None:
                at = len(names) - place + 0.15 - 0.3 * offset
                _point(axes, value, at, colour, label if place == 0 else None)
    axes.set_yticks([len(names) - place for place in range(len(names))], names, fontsize=8)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_xlabel("Spearman correlation with the fall of log pi(y+)")
    axes.set_title(f"What tells it before training (at {LEVEL:g} nats)", fontsize=10)
    _legend(axes, fontsize=8, loc="lower left")


def _point(axes: Axes, value: Estimate, at: float, colour: Any, label: str | None) -> None:
    bars = None
    if value["low"] is not None and value["high"] is not None:
        bars = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
    axes.errorbar([value["mean"]], [at], xerr=bars, fmt="o", ms=4, color=colour, label=label)


def _filters(axes: Axes, results: dict[str, Any]) -> None:
    for number, name in enumerate(FILTERS):
        for seed, run in enumerate(results["arms"][name]):
            start = run["readings"][0]["opposite"]
            margins = [margin_of(each, DISTINCT) for each in run["readings"]]
            gains = [each["opposite"] - start for each in run["readings"]]
            label = name if seed == 0 else None
            axes.plot(margins, gains, color=f"C{number}", lw=1.2, marker=".", ms=4, label=label)
    axes.axhline(0, color="black", lw=0.6)
    axes.set_xlabel("held-out margin of the pairs that are no near-duplicates, nats")
    axes.set_ylabel("change of the mass of opposite words")
    axes.set_title("Which pairs are trained on (each line a seed)", fontsize=10)
    axes.legend(fontsize=8)


def _objectives(axes: Axes, results: dict[str, Any]) -> None:
    for number, name in enumerate(OBJECTIVE_ARMS):
        found = results["at margin"][name][f"{MARGIN:g}"]
        if not found["reached"]:
            continue
        x, y = found["chosen"], found["opposite"]
        axes.errorbar(
            [x["mean"]],
            [y["mean"]],
            xerr=_half(x),
            yerr=_half(y),
            fmt="o" if number < 10 else "s",
            color=f"C{number % 10}",
            elinewidth=0.7,
            label=f"{name} ({found['reached']} of {found['of']})",
        )
    axes.axhline(0, color="black", lw=0.6)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_xlabel("change of held-out log pi(y+), nats")
    axes.set_ylabel("change of the mass of opposite words")
    axes.set_title(f"Objectives at a held-out margin of {MARGIN:g} nats (seeds there)", fontsize=10)
    _legend(axes, fontsize=7, ncols=2)


def _half(value: Estimate) -> float | None:
    return None if value["high"] is None else value["high"] - value["mean"]


def _legend(axes: Axes, **options: Any) -> None:
    """A legend where there is anything to name: too short a run may reach no margin."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)
