"""The figure of `tokenq reproduce uses`: a row for each use."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tokenq.reproduce.credit_uses.cleaning import MEMORISED, POLICY, REFERENCE, SAME
from tokenq.reproduce.credit_uses.locating import PLAIN, SIGNALS
from tokenq.reproduce.credit_uses.ranking import BEST, PER_TOKEN, RANDOM, REWARD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKED = {
    BEST: ("best of the group", "#888888", ":"),
    REWARD: ("implicit reward", "#2f7fc1", "-"),
    PER_TOKEN: ("implicit reward, a token", "#2f7fc1", "--"),
    "policy_logp": ("policy likelihood", "#c1702f", "-"),
    "reference_logp": ("reference likelihood", "#8c5fa8", "-"),
    "shorter": ("shortest", "#5a8f4e", "-"),
    RANDOM: ("random", "#888888", "-"),
}
_JUDGES = {
    POLICY: ("trained on other pairs", "#2f7fc1"),
    SAME: ("the same, pairs of the control", "#8fb8dc"),
    MEMORISED: ("trained on these pairs", "#c1702f"),
    REFERENCE: ("reference likelihood", "#8c5fa8"),
}
_KINDS = {"truthful": "-", "paraphrase": "--", "consistent": ":"}
_STEP = 0.025
_COLORS = ("#2f7fc1", "#8fb8dc", "#c1702f", "#8c5fa8", "#5a8f4e")


def draw(results: dict[str, Any]) -> Figure:
    """Bars are 95 % intervals over groups, pairs or packages; each point is a mean over seeds."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    _rank(axes[0, 0], results["rank"])
    _clean(axes[0, 1], results["clean"])
    _false_alarms(axes[1, 0], results["locate"])
    _found(axes[1, 1], results["locate"])
    figure.suptitle(f"Mean of {len(results['seeds'])} seeds with 95 % intervals", fontsize=9)
    return figure


def _rank(axes: "Axes", ranking: Mapping[str, Any]) -> None:
    for name, (label, color, line) in RANKED.items():
        found = [own["rating"][name] for own in ranking.values()]
        _points(axes, range(len(found)), found, label, color, line)
    axes.set_xticks(range(len(ranking)), list(ranking))
    axes.set_ylim(top=4)
    axes.set(title="rank", xlabel="texts in a group", ylabel="mean rating of the first, -4..4")
    axes.legend(fontsize=7, ncols=2, loc="upper left")


def _clean(axes: "Axes", cleaning: Mapping[str, Any]) -> None:
    rates = [rate for rate, own in cleaning.items() if "differences" in own]
    for name, (label, color) in _JUDGES.items():
        places = [at for at, rate in enumerate(rates) if name in cleaning[rate]["judges"]]
        found = [cleaning[rates[at]]["judges"][name]["auroc"] for at in places]
        _points(axes, places, found, label, color, "-")
    axes.set_xticks(range(len(rates)), rates)
    axes.axhline(0.5, color="#888888", lw=0.8)
    axes.set_ylim(0.2, 1)
    axes.set(title="clean", xlabel="% of labels exchanged", ylabel="AUROC of exchanged labels")
    axes.legend(fontsize=7, ncols=2, loc="lower left")


def _false_alarms(axes: "Axes", locating: Mapping[str, Any]) -> None:
    rates = list(locating["rates"])
    for kind, line in _KINDS.items():
        found = [own[PLAIN]["measures"][f"flagged {kind}"] for own in locating["rates"].values()]
        _points(axes, range(len(rates)), found, kind, _COLORS[0], line)
    axes.set_xticks(range(len(rates)), rates)
    axes.plot(range(len(rates)), [float(rate) for rate in rates], "_", color="black", ms=16)
    axes.set(
        title="locate, plain credit: false alarms",
        xlabel="stated rate (black)",
        ylabel="share of true summaries flagged",
    )
    axes.legend(fontsize=7)


def _found(axes: "Axes", locating: Mapping[str, Any]) -> None:
    rates = list(locating["rates"])
    for title, color in zip(SIGNALS, _COLORS, strict=True):
        found = [own[title]["measures"]["touched"] for own in locating["rates"].values()]
        _points(axes, range(len(rates)), found, title, color, "-")
    axes.set_xticks(range(len(rates)), rates)
    axes.set(
        title="locate: errors met by a flagged span",
        xlabel="stated rate of false alarms",
        ylabel="share of wrong summaries",
    )
    axes.legend(fontsize=7)


def _points(
    axes: "Axes",
    places: Sequence[int],
    found: Sequence[Mapping[str, Any]],
    label: str,
    color: str,
    line: str,
) -> None:
    """A line with its intervals, set off so that those of several lines stand side by side."""
    number = len(axes.get_legend_handles_labels()[0])
    moved = [place + _STEP * number for place in places]
    values = [each["value"] for each in found]
    axes.plot(moved, values, line, marker="o", ms=4, color=color, label=label)
    for place, each in zip(moved, found, strict=True):
        if each["low"] is not None:
            axes.plot([place, place], [each["low"], each["high"]], color=color, lw=0.9)
