"""Reliability figure: accuracy against confidence, one curve per data set, and how many pairs."""

from collections.abc import Mapping
from pathlib import Path

from tokenq.judges.accuracy import wilson_interval
from tokenq.judges.calibration import Bin, Calibration
from tokenq.storage import atomic_file


def reliability_figure(path: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Write a PNG with the bins of each named calibration; bars are 95 % Wilson intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.6), dpi=150, layout="constrained")
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0.5, 1], [0.5, 1], color="#888888", lw=1, ls="--", label="calibrated")
    for number, (name, calibration) in enumerate(calibrations.items()):
        filled = [each for each in calibration.bins if each.count]
        color = f"C{number}"
        shares = [each.accuracy or 0.0 for each in filled]
        error = calibration.expected_calibration_error
        curve.errorbar(
            [each.confidence or 0.0 for each in filled],
            shares,
            yerr=_error_bars(filled),
            marker="o",
            ms=4,
            lw=1.2,
            capsize=2,
            color=color,
            label=f"{name} (ECE {error:.3f})",
        )
        edges = [each.low for each in calibration.bins] + [calibration.bins[-1].high]
        counts.stairs([each.count for each in calibration.bins], edges, color=color, lw=1.2)
    curve.set(ylabel="accuracy", ylim=(0, 1.03), title="Bradley-Terry probability, held to account")
    curve.legend(fontsize=8, loc="lower right")
    counts.set(xlabel="confidence, max(p, 1 - p)", ylabel="pairs", xlim=(0.49, 1.01))
    for axes in (curve, counts):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _error_bars(bins: list[Bin]) -> list[list[float]]:
    """[below, above] of each bin's accuracy."""
    below, above = [], []
    for each in bins:
        share = each.accuracy or 0.0
        low, high = wilson_interval(share, each.count)
        below.append(max(0.0, share - low))
        above.append(max(0.0, high - share))
    return [below, above]
