"""The figure of `tokenq reproduce credit`: how well each signal finds what is wrong, by task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tokenq.reproduce.localisation.arms import DPO, SIZE_ARMS
from tokenq.reproduce.localisation.reading import (
    HEADLINE,
    WITHOUT_SIGNALS,
    Row,
    entry,
    headline_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CREDIT, _CONTROL, _FAINT = "#2f7fc1", "#c1702f", "#888888"


def draw(results: dict[str, Any]) -> Figure:
    """Above: signals by task, bars are 95 % intervals over texts, dots are seeds. Below: plain DPO
    credit against the number of training pairs."""
    tasks = {name: own for name, own in results["tasks"].items() if name not in WITHOUT_SIGNALS}
    if not tasks:
        return Figure(figsize=(4.6, 1.0))
    rows = {task: headline_rows(own, HEADLINE[_kind(task)][0]) for task, own in tasks.items()}
    height = 1.2 + 0.24 * max(len(own) for own in rows.values())
    figure = Figure(figsize=(4.6 * len(tasks), height + 2.6), layout="constrained")
    grid: Any = figure.subplots(
        2, len(tasks), squeeze=False, gridspec_kw={"height_ratios": [height, 2.2]}
    )
    for axes, task in zip(grid[0], tasks, strict=True):
        _signals(axes, rows[task], HEADLINE[_kind(task)][0])
        axes.set_title(f"{task}: {HEADLINE[_kind(task)][1]}", fontsize=9)
    for axes, (task, own) in zip(grid[1], tasks.items(), strict=True):
        _sizes(axes, own, HEADLINE[_kind(task)][0])
    count = len(results["seeds"])
    figure.suptitle(
        f"Mean of {count} seeds with 95 % interval over texts, dots: seeds. Blue: credit; orange: "
        "controls. Training saw labels of whole responses only.",
        fontsize=9,
    )
    return figure


def _kind(task: str) -> str:
    return "words" if task == "film" else "errors"


def _signals(axes: "Axes", rows: Sequence[Row], measure: str) -> None:
    for place, row in enumerate(rows):
        found = row.entry["measures"][measure]
        color = _CREDIT if row.is_credit else _CONTROL
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [place, place], color=color, lw=1.4)
        axes.plot(found["by_seed"], [place] * len(found["by_seed"]), ".", ms=3, color=_FAINT)
        axes.plot(found["value"], place, "o", ms=4, color=color)
    axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0.5 if "AUROC" in measure else 0.0, color=_FAINT, lw=0.9, ls="--", zorder=0)
    _plain(axes)


def _sizes(axes: "Axes", own: dict[str, Any], measure: str) -> None:
    points = sorted(
        (own["pairs"][arm.name], found["measures"][measure])
        for arm in (*SIZE_ARMS, DPO)
        if (found := entry(own, arm.name, "plain")) is not None
    )
    if len(points) < 2:
        axes.axis("off")
        return
    pairs = [count for count, _ in points]
    axes.plot(pairs, [found["value"] for _, found in points], "o-", ms=4, color=_CREDIT)
    axes.fill_between(
        pairs,
        [found["low"] for _, found in points],
        [found["high"] for _, found in points],
        color=_CREDIT,
        alpha=0.15,
        lw=0,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(pairs, [str(count) for count in pairs])
    axes.set_xlabel("training pairs, plain DPO credit", fontsize=8)
    _plain(axes)


def _plain(axes: "Axes") -> None:
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", lw=0.6)
    axes.set_axisbelow(True)
