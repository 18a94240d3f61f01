"""The figure of `tokenq reproduce theory`: what tabular DPO learns, from four sides."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenq.reproduce.experiment import Results
from tokenq.reproduce.theory_page import REACHED

PARTS = {
    "bradley_terry": "Bradley-Terry labels, all pairs",
    "deterministic": "labels without noise, all pairs",
    "uncovered": "Bradley-Terry labels, a third of the responses in no pair",
}


def figure(results: Results) -> Figure:
    """KL along training, learned against exact rewards, mass left free, KL against labels."""
    chart = Figure(figsize=(11, 7.5), layout="constrained")
    (paths, rewards), (masses, labels) = chart.subplots(2, 2)
    _draw_paths(paths, results["trained"])
    _draw_rewards(rewards, results["trained"])
    _draw_masses(masses, results["trained"])
    _draw_labels(labels, results["trained"])
    return chart


def _draw_paths(axes: Axes, trained: list[Results]) -> None:
    for color, (part, text) in zip(("C0", "C3", "C1"), PARTS.items(), strict=True):
        for index, one in enumerate(trained):
            path = one[part]["kl_path"]
            label = text if index == 0 else None
            axes.plot(path, color=color, alpha=0.6, linewidth=1, label=label)
    axes.axhline(REACHED, color="0.6", linestyle=":")
    axes.set(yscale="log", xlabel="iteration", ylabel="KL(pi* || pi), nats")
    axes.set_title("exact DPO loss: distance to pi*")
    axes.legend(fontsize=7)


def _draw_rewards(axes: Axes, trained: list[Results]) -> None:
    for index, one in enumerate(trained):
        part = one["bradley_terry"]
        for truth, color in (("reward", "0.7"), ("advantage", "C0")):
            label = f"exact {truth}" if index == 0 else None
            axes.plot(part[truth], part["learned"], ".", color=color, markersize=4, label=label)
    axes.set(xlabel="truth", ylabel="learned beta log(pi/pi_ref)")
    axes.set_title("the learned token reward is the advantage")
    axes.legend(fontsize=7)


def _draw_masses(axes: Axes, trained: list[Results]) -> None:
    for index, one in enumerate(trained):
        part = one["uncovered"]
        first = index == 0
        axes.plot([index] * len(part["masses"]), part["masses"], "o", color="C1", markersize=4,
                  label="learned, one point a start" if first else None)  # fmt: skip
        axes.plot(index, part["exact_mass"], "_", color="k", markersize=14,
                  label="pi*" if first else None)  # fmt: skip
    axes.set(xlabel="MDP", ylabel="mass on responses in no pair", ylim=(0, 1))
    axes.set_xticks(range(len(trained)))
    axes.set_title("uncovered responses: the mass is free")
    axes.legend(fontsize=7)


def _draw_labels(axes: Axes, trained: list[Results]) -> None:
    for one in trained:
        counts = [part["labels"] for part in one["sampled"]]
        axes.plot(counts, [part["kl"] for part in one["sampled"]], ".-", color="C2", alpha=0.6)
    axes.set(xscale="log", yscale="log", xlabel="labels", ylabel="KL(pi* || pi), nats")
    axes.set_title("finitely many Bradley-Terry labels")
