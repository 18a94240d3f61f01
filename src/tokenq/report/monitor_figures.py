"""The monitor's figures: matplotlib, as objects for files and as SVG for the page.

Colours are those of the pages. In an SVG for the page each becomes the page's own variable, so that
figures follow its light and dark theme; every line has its own dashes and marks besides.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenq.monitor.readings import History
from tokenq.report.monitor_charts import Chart, Line, charts
from tokenq.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.3, 2.9
"""Inches; in an SVG 72 units each."""

INK, SOFT, LINE = "#1b1e23", "#5c636e", "#e2e2de"
_MARK_LIMIT = 40
"""Probes beyond which marks would touch each other."""


@dataclass(frozen=True)
class Role:
    """How a line is told from the others: colour in light pages, the page's name for it, dashes."""

    color: str
    variable: str
    dashes: str | tuple[float, tuple[float, ...]]
    mark: str


ROLES = {
    "chosen": Role("#1a6199", "liked-ink", "-", "o"),
    "rejected": Role("#a34a00", "blamed-ink", (0, (5, 2)), "s"),
    "accent": Role("#5b3fd1", "accent", (0, (6, 1.5, 1.5, 1.5)), "^"),
    "second": Role("#a3306f", "second", (0, (2, 1.5)), "D"),
    "soft": Role(SOFT, "soft", (0, (8, 2, 1, 2, 1, 2)), "v"),
    "ink": Role(INK, "ink", (0, (1, 1.2)), "x"),
}

_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line"} | {
    role.color: role.variable for role in ROLES.values()
}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
}


def figures(history: History) -> "dict[str, Figure]":
    """Every figure that the history has values for, by name; titled, for files of their own."""
    return {chart.name: draw(chart) for chart in charts(history)}


def write_figures(folder: Path, history: History) -> list[Path]:
    """Write every figure as PNG into `folder`, each whole or not at all."""
    written = []
    for name, figure in figures(history).items():
        path = folder / f"{name}.png"
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160)
        written.append(path)
    return written


def draw(chart: Chart, *, titled: bool = True) -> "Figure":
    """Draw one chart; `titled`: with its title, which the page sets itself."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes(_box(chart, titled))
        if chart.level is not None:
            axes.axhline(chart.level, color=SOFT, lw=0.8, zorder=1)
        _draw_lines(axes, chart.lines) if chart.lines else _draw_clouds(axes, chart)
        _dress(axes, chart)
        if titled:
            figure.text(0.02, 0.975, chart.title, fontsize=10, fontweight="bold", va="top")
    return figure


@dataclass(frozen=True)
class Drawn:
    """A chart as an `<svg>` element for the page: its colours and its font, no size of its own.

    It holds no text but that of the chart's definition: none of a data set's.

    left, right: ends of the plotting area, as shares of the width
    low, high:   values at these ends
    """

    svg: str
    left: float
    right: float
    low: float
    high: float


def drawn(chart: Chart) -> Drawn:
    """Draw a chart for the page."""
    import matplotlib

    figure = draw(chart, titled=False)
    (axes,) = figure.axes
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    written = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart.name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    place = axes.get_position()
    return Drawn(_for_page(written.getvalue(), chart.name), place.x0, place.x1, *axes.get_xlim())


def _for_page(text: str, name: str) -> str:
    """The element alone, with ids that no other figure has, and the page's colours and font."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg )[^>]*?(viewBox="[^"]*")[^>]*>', r"\1\2>", text, count=1, flags=re.DOTALL)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r" transform=\"rotate\(-0 [^)]*\)\"|font-family: [^;\"]*; |>\s+(?=<)", _shorter, text
    )
    text = text.replace("xlink:href", "href")
    return re.sub(r"#[0-9a-f]{6}", lambda found: _themed(found.group()), text)


def _shorter(found: re.Match[str]) -> str:
    return ">" if found.group().startswith(">") else ""


def _themed(color: str) -> str:
    return f"var(--{_VARIABLES[color]})" if color in _VARIABLES else color


def _legend_rows(chart: Chart) -> int:
    labels = _labels(chart)
    return 0 if not labels else -(-len(labels) // _columns(labels))


def _labels(chart: Chart) -> list[str]:
    return [*(line.label for line in chart.lines), *(cloud.label for cloud in chart.clouds)]


def _columns(labels: Sequence[str]) -> int:
    if len(labels) == 3 and sum(map(len, labels)) < 32:
        return 3
    return 1 if max(map(len, labels)) > 24 else 2


def _box(chart: Chart, titled: bool) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of the plotting area, as shares of the figure."""
    top = 0.98 - 0.072 * (_legend_rows(chart) + 1) - (0.08 if titled else 0.0)
    return 0.135, 0.165, 0.845, top - 0.165


def _draw_lines(axes: "Axes", lines: Sequence[Line]) -> None:
    for line in lines:
        role = ROLES[line.role]
        steps = [step for step, _ in line.points]
        means = [interval.mean for _, interval in line.points]
        band = [
            (step, each.low, each.high)
            for step, each in line.points
            if each.low is not None and each.high is not None
        ]
        if band:
            axes.fill_between(
                [step for step, _, _ in band],
                [low for _, low, _ in band],
                [high for _, _, high in band],
                color=role.color,
                alpha=0.16,
                lw=0,
                zorder=2,
            )
        axes.plot(
            steps,
            means,
            color=role.color,
            ls=role.dashes,
            lw=1.6,
            marker=role.mark if len(steps) <= _MARK_LIMIT else None,
            ms=3.2,
            label=line.label,
            zorder=3,
        )


def _draw_clouds(axes: "Axes", chart: Chart) -> None:
    for cloud in chart.clouds:
        role = ROLES[cloud.role]
        axes.plot(
            cloud.x,
            cloud.y,
            color=role.color,
            ls=role.dashes if cloud.joined else "",
            lw=1.4,
            marker=role.mark,
            ms=3.4,
            alpha=0.9 if cloud.joined else 0.75,
            label=cloud.label,
            zorder=3,
        )


def _dress(axes: "Axes", chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=LINE, lw=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    axes.set_xlabel(chart.x_label, labelpad=3, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.x_label == "step"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.02, y=0.08)
    if _is_flat(chart):
        middle = sum(axes.get_ylim()) / 2
        axes.set_ylim(middle - 0.5, middle + 0.5)
    labels = _labels(chart)
    axes.text(-0.005, 1.025, chart.unit, transform=axes.transAxes, fontsize=8.5, color=SOFT)
    axes.set_title("", y=1.0)  # a place of its own, which matplotlib then does not look for
    if labels:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.012, 1.1),
            ncols=_columns(labels),
            frameon=False,
            borderaxespad=0,
            borderpad=0.1,
            handlelength=2.6,
            columnspacing=1.4,
            labelspacing=0.3,
        )


def _is_flat(chart: Chart) -> bool:
    """Whether all that is drawn is one value, around which matplotlib would zoom into rounding."""
    shown = [
        value
        for line in chart.lines
        for _, each in line.points
        for value in (each.mean, each.low, each.high)
        if value is not None
    ]
    shown += [y for cloud in chart.clouds for y in cloud.y]
    shown += [] if chart.level is None else [chart.level]
    return bool(shown) and max(shown) - min(shown) < 1e-9
