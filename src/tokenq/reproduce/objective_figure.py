"""The figure of `tokenq reproduce objectives`: a dot for every objective and measure."""

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tokenq.reproduce.objective_arms import DPO, START

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR, _OTHER = "#2f7fc1", "#c1502f"

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pairs ordered by the implicit reward", ("reward accuracy",)),
    ("pairs ordered by the log-probability", ("likelihood accuracy",)),
    ("Spearman of words with human valence", ("valence",)),
    ("change of log-prob, nats an answer\n(blue chosen, red rejected)", ("chosen", "rejected")),
    ("change of the end token's\nlog-prob, nats", ("end",)),
    ("KL from the start, nats an answer", ("kl",)),
    ("length of samples, tokens", ("length",)),
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
        if label.get_text().startswith(DPO.name):
            label.set_fontweight("bold")
    every[0].set_ylim(len(names) - 0.4, -0.6)
    count = len(results["seeds"])
    figure.suptitle(
        f"Mean and 95 % interval over {count} seeds; dashed: the model before training", fontsize=9
    )
    return figure


def _panel(axes: "Axes", rows: list[dict[str, Any]], measures: tuple[str, ...]) -> None:
    for measure, color in zip(measures, (_COLOR, _OTHER), strict=False):
        for place, row in enumerate(rows):
            found = row[measure]
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], color=color, lw=1.2)
            axes.plot(found["mean"], place, "o", ms=3.5, color=color)
    # One wide interval would hide all the rest.
    means = [row[measure]["mean"] for row in rows for measure in measures]
    margin = 0.35 * (max(means) - min(means)) or 0.1
    axes.set_xlim(min(means) - margin, max(means) + margin)
