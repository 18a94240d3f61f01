"""The figure of `tokenq reproduce objectives`: a dot for every objective and measure."""

from statistics import median
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tokenq.reproduce.objective_arms import DPO, START

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR, _OTHER = "#2f7fc1", "#c1502f"

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pairs ordered by\nthe implicit reward", ("reward accuracy",)),
    ("pairs ordered by\nthe log-probability", ("likelihood accuracy",)),
    ("Spearman of words\nwith human valence", ("valence",)),
    ("log-prob, change in nats\n(blue chosen, red rejected)", ("chosen", "rejected")),
    ("log-prob of the end token,\nchange in nats", ("end",)),
    ("KL from the start,\nnats an answer", ("kl",)),
    ("length of samples,\ntokens", ("length",)),
)


def draw(results: dict[str, Any]) -> Figure:
    """Rows are objectives, best implicit reward first; bars are 95 % intervals over seeds."""
    arms = results["arms"]
    names = sorted(arms, key=lambda name: -arms[name]["measures"]["reward accuracy"]["mean"])
    height = 1.4 + 0.24 * len(names)
    figure = Figure(figsize=(2.3 * len(PANELS) + 1.2, height), layout="constrained")
    every: Any = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for axes, (title, measures) in zip(every, PANELS, strict=True):
        _panel(axes, [arms[name]["measures"] for name in names], measures)
        axes.axvline(results[START][measures[0]], color="#888888", lw=0.9, ls="--", zorder=0)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee", lw=0.6)
        axes.set_axisbelow(True)
    every[0].set_yticks(range(len(names)), names, fontsize=8)
    for label in every[0].get_yticklabels():
        if label.get_text() == DPO.name:
            label.set_fontweight("bold")
    every[0].set_ylim(len(names) - 0.4, -0.6)
    count = len(results["seeds"])
    figure.suptitle(
        f"Mean and 95 % interval over {count} seeds; dashed: the model before training", fontsize=9
    )
    return figure


def _panel(axes: "Axes", rows: list[dict[str, Any]], measures: tuple[str, ...]) -> None:
    shifts = (0.0,) if len(measures) == 1 else (-0.15, 0.15)
    halves = []
    for measure, color, shift in zip(measures, (_COLOR, _OTHER), shifts, strict=False):
        for place, row in enumerate(rows):
            found, at = row[measure], place + shift
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [at, at], color=color, lw=1.2)
                halves.append(found["high"] - found["mean"])
            axes.plot(found["mean"], at, "o", ms=3.5, color=color)
    # The widest intervals may leave the panel: they would press all the others together.
    means = [row[measure]["mean"] for row in rows for measure in measures]
    margin = max(0.1 * (max(means) - min(means)), median(halves or [0.0])) or 0.1
    axes.set_xlim(min(means) - 1.2 * margin, max(means) + 1.2 * margin)
