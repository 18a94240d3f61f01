"""The figure of `tokenq reproduce decline`: a row a task, a column an arm, tabular rows last."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM
from tokenq.reproduce.likelihood_decline.settings import ARMS, CHOSEN, NONE, OTHER, REJECTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {FILM: "film reviews", DEBIAN: "summaries"}
ARM_TITLES = {
    CHOSEN: "SFT on chosen",
    NONE: "no SFT",
    OTHER: "control: SFT on other answers",
    REJECTED: "control: SFT on rejected",
}
_LINES = {
    "chosen": ("#2f7fc1", "-"),
    "rejected": ("#c1442e", "-"),
    "held-out chosen": ("#2f7fc1", "--"),
    "held-out rejected": ("#c1442e", "--"),
    "reference's samples": ("#333333", "-"),
}
_BAND, _BAND_COLOR = "minus beta KL", "#b9a44c"
_TABULAR = {
    "chosen": _LINES["chosen"],
    "rejected": _LINES["rejected"],
    "expected": ("#333333", ":"),
}


def draw(results: Mapping[str, Any]) -> Figure:
    """Bars and the band are 95 % intervals over seeds; every run starts at 0."""
    if "unfinished" in results:
        return Figure(figsize=(4, 1))
    tasks, exact = results["tasks"], results["exact"]["betas"]
    rows = len(tasks) + len(exact)
    figure = Figure(figsize=(14, 3.1 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, len(ARMS), squeeze=False, sharey="row")
    for row, (name, task) in zip(axes, tasks.items(), strict=False):
        for place, arm in zip(row, ARMS, strict=True):
            if arm in task["arms"]:
                _curves(place, task["arms"][arm])
            place.set_title(f"{TITLES[name]}, {ARM_TITLES[arm]}", fontsize=9)
            place.set_xlabel("steps of DPO", fontsize=8)
        row[0].set_ylabel("implicit reward, beta x nats")
    for row, (beta, arms) in zip(axes[len(tasks) :], exact.items(), strict=True):
        for place, arm in zip(row, ARMS, strict=True):
            _tabular(place, arms[arm])
            place.set_title(f"exact, beta {beta}, {ARM_TITLES[arm]}", fontsize=9)
            place.set_xlabel("steps of descent", fontsize=8)
        row[0].set_ylabel("implicit reward")
    axes[0][0].legend(fontsize=7, loc="lower left")
    return figure


def _curves(axes: "Axes", arm: Mapping[str, Any]) -> None:
    steps = [0, *arm["steps"]]
    low, high = _bounds(arm["curves"][_BAND])
    axes.fill_between(steps, low, high, color=_BAND_COLOR, alpha=0.45, lw=0, label=_BAND)
    for name, (color, line) in _LINES.items():
        points = arm["curves"][name]
        means = [0.0, *(point["mean"] for point in points)]
        axes.plot(steps, means, line, color=color, label=name, lw=1.4)
        low, high = _bounds(points)
        axes.vlines(steps, low, high, color=color, lw=0.8, alpha=0.6)
    _zero(axes)


def _bounds(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Of the intervals, from step 0 on; a single seed has none."""
    low = [p["mean"] if p["low"] is None else p["low"] for p in points]
    high = [p["mean"] if p["high"] is None else p["high"] for p in points]
    return [0.0, *low], [0.0, *high]


def _tabular(axes: "Axes", arm: Mapping[str, Any]) -> None:
    curves = arm["curves"]
    steps = range(len(curves["chosen"]))
    axes.plot(steps, curves["minus_beta_kl"], color=_BAND_COLOR, alpha=0.6, lw=6)
    for name, (color, line) in _TABULAR.items():
        axes.plot(steps, curves[name], line, color=color, lw=1.4)
    _zero(axes)


def _zero(axes: "Axes") -> None:
    axes.axhline(0, color="#999999", lw=0.7)
    axes.tick_params(labelsize=8)
