"""The figure of `tokenq reproduce beam`: a row for each task, everything against the beams."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tokenq.reproduce.beam_decoding.decoding import BEAM
from tokenq.reproduce.beam_decoding.measures import JUDGES, LENGTH
from tokenq.reproduce.beam_decoding.policies import REFERENCE, TUNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {REFERENCE: "#555555", TUNED: "#c1702f"}
_DPO_COLORS = ("#2f7fc1", "#8fb8dc", "#14406b")
_LINES = {REFERENCE: "--", TUNED: "--"}
_STEP = 0.05
TITLES = {
    "rating": "rating judge",
    "valence": "valence of words",
    "reward": "reward model",
    "overlap": "words of the maintainer",
}


def draw(results: dict[str, Any]) -> Figure:
    """Bars are 95 % intervals over prompts; a point is a mean over seeds. Thin: the first seed,
    which was decoded with more numbers of beams."""
    if "unfinished" in results:
        return Figure(figsize=(4, 1))
    tasks = results["tasks"]
    figure = Figure(figsize=(14, 3.4 * len(tasks)), layout="constrained")
    axes: Any = figure.subplots(len(tasks), 4, squeeze=False)
    for row, (name, task) in zip(axes, tasks.items(), strict=True):
        arms = {arm: _beams(own) for arm, own in task["arms"].items()}
        arms = {arm: own for arm, own in arms.items() if own}
        for place, judge in enumerate(JUDGES[name]):
            _win_rates(row[place], name, judge, arms)
        _means(row[2], arms, LENGTH, f"{name}: length, tokens")
        _means(row[3], arms, "fluency", f"{name}: log-prob a token, untrained model")
    axes[0][0].legend(fontsize=7)
    return figure


def _beams(methods: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = [each for each in methods.values() if each["name"] == BEAM]
    return sorted(found, key=lambda each: int(each["width"]))


def _win_rates(axes: "Axes", task: str, judge: str, arms: Mapping[str, Any]) -> None:
    for number, (arm, methods) in enumerate(arms.items()):
        kept = [each for each in methods if each["width"] > 1 and "against own greedy" in each]
        compared = [each["against own greedy"][judge] for each in kept]
        found = [{**each["win rate"], "by_seed": each["by_seed"]} for each in compared]
        _line(axes, number, arm, kept, found, arms)
    axes.axhline(0.5, color="#888888", lw=0.8)
    axes.set(title=f"{task}: win rate against 1 beam, {TITLES[judge]}", xlabel="beams")
    axes.title.set_fontsize(9)


def _means(axes: "Axes", arms: Mapping[str, Any], name: str, title: str) -> None:
    for number, (arm, methods) in enumerate(arms.items()):
        found = [each["measures"][name] for each in methods]
        _line(axes, number, arm, methods, found, arms)
    axes.set(title=title, xlabel="beams")
    axes.title.set_fontsize(9)


def _line(
    axes: "Axes",
    number: int,
    arm: str,
    methods: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    arms: Mapping[str, Any],
) -> None:
    ours = [each for each in arms if each not in _COLORS]
    color = _COLORS.get(arm) or _DPO_COLORS[ours.index(arm) % len(_DPO_COLORS)]
    line = _LINES.get(arm, "-")
    most = max((len(each["seeds"]) for each in methods), default=0)
    # Side by side, so that intervals can be told apart.
    places = [each["width"] * (1 + _STEP * (number - len(arms) / 2) / 2) for each in methods]
    firsts = [each["by_seed"][0] for each in found]
    if any(len(each["seeds"]) < most for each in methods):
        axes.plot(places, firsts, line, color=color, lw=0.6, alpha=0.6)
    whole = [
        (place, each)
        for place, method, each in zip(places, methods, found, strict=True)
        if len(method["seeds"]) == most
    ]
    values = [each["value"] for _, each in whole]
    axes.plot([at for at, _ in whole], values, line, marker="o", ms=3, color=color, label=arm)
    for place, each in whole:
        axes.plot([place, place], [each["low"], each["high"]], color=color, lw=0.8)
    axes.set_xscale("log")
    ticks = [1, 2, 3, 5, 7, 10, 20]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
