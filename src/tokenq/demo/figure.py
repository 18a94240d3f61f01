"""The demonstration's figure: words against their human valence, and all that is compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokenq.demo.words import REWARD, Agreement, WordScore
from tokenq.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tokenq.demo.results import Results
    from tokenq.judges import Accuracy

_OWN, _CONTROL = "#2f7fc1", "#9a9a9a"
_NAMED = 7


def draw(path: Path, results: "Results") -> None:
    """Write the PNG: a scatter of words, bars of Spearman's rho, bars of pair accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 5.2), dpi=130, layout="constrained")
    scatter, rho, accuracy = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _scatter(scatter, results.vocabulary, results.words)
    _rho_bars(rho, results)
    _accuracy_bars(accuracy, {**results.pairs.accuracy, **results.texts})
    for axes in (scatter, rho, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _scatter(axes: "Axes", vocabulary: list[WordScore], words: Agreement) -> None:
    for in_training, color, label in (
        (True, _OWN, "in training pairs"),
        (False, "#e07b27", "in none of them"),
    ):
        some = [each for each in vocabulary if each.in_training == in_training]
        axes.scatter(
            [each.valence for each in some],
            [each.signals[REWARD] for each in some],
            s=[8 + 6 * each.count for each in some],
            color=color,
            alpha=0.5,
            lw=0,
            label=label,
        )
    for each in (*vocabulary[:_NAMED], *vocabulary[-_NAMED:]):
        axes.annotate(
            each.word,
            (each.valence, each.signals[REWARD]),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=7,
        )
    value = words.spearman[REWARD].rho
    shown = "undefined" if value is None else f"{value:+.2f}"
    axes.axhline(0, color="#cccccc", lw=0.8, zorder=0)
    axes.axvline(0, color="#cccccc", lw=0.8, zorder=0)
    axes.set(
        xlabel="human valence of the word (10 raters, never trained on)",
        ylabel="implicit reward, mean over its places (beta × nats)",
        title=f"{words.words} words of held-out sentences, Spearman {shown}",
    )
    axes.legend(fontsize=8, loc="upper left")


def _rho_bars(axes: "Axes", results: "Results") -> None:
    names = list(results.words.spearman)
    height = 0.38
    sets = [("all words", results.words, 0.0, 1.0)]
    if results.unseen is not None:
        sets.append(("words in no training pair", results.unseen, height, 0.5))
    for label, agreement, shift, alpha in sets:
        for place, name in enumerate(names):
            found = agreement.spearman[name]
            if found.rho is None:
                continue
            low, high = found.over_words or (found.rho, found.rho)
            axes.barh(
                place + shift,
                found.rho,
                height,
                color=_OWN if name == REWARD else _CONTROL,
                alpha=alpha,
                xerr=[[max(0, found.rho - low)], [max(0, high - found.rho)]],
                error_kw={"lw": 0.8, "capsize": 2},
                label=f"{label} (n = {agreement.words})" if place == 0 else None,
            )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) + 0.7, -0.6)  # the legend lies below the bars
    axes.axvline(0, color="#444444", lw=0.8)
    axes.set(xlabel="Spearman with human valence, 95 % over words", title="Words: beside controls")
    axes.legend(fontsize=8, loc="lower right")


def _accuracy_bars(axes: "Axes", accuracy: Mapping[str, "Accuracy"]) -> None:
    for place, (name, found) in enumerate(accuracy.items()):
        axes.barh(
            place,
            found.value,
            0.6,
            color=_OWN if name == REWARD else _CONTROL,
            xerr=[[found.value - found.low], [found.high - found.value]],
            error_kw={"lw": 0.8, "capsize": 2},
        )
    count = next(iter(accuracy.values())).count
    axes.set_yticks(range(len(accuracy)), list(accuracy), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0.5, color="#444444", lw=0.8, ls="--")
    axes.set(xlabel="accuracy, 95 %", title=f"{count} held-out pairs", xlim=(0, 1))
