"""The monitor's figures as data and as drawings, and its numbers as people read them."""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from histories import made_history, made_logs
from scipy import stats

import tokenq.report
from tokenq.monitor.identity import Interval
from tokenq.monitor.measures import MEASURES, measured
from tokenq.monitor.readings import History
from tokenq.report.monitor_charts import GROUPS, Chart, Line, charts
from tokenq.report.monitor_figures import ROLES, draw, drawn, figures, write_figures
from tokenq.report.monitor_glance import glance
from tokenq.report.monitor_numbers import amount, bounded, chance, duration, share

STYLE = (Path(tokenq.report.__file__).parent / "page" / "page.css").read_text()


@pytest.fixture(scope="module")
def history() -> History:
    return made_history("displacement", steps=(0, 40, 80, 120), pairs=8)


@pytest.fixture(scope="module")
def shown(history: History) -> list[Chart]:
    return charts(history)


def test_lines_are_the_measures_with_their_intervals(history: History, shown: list[Chart]) -> None:
    assert history.setup is not None
    at = {reading.step: measured(history.setup, reading) for reading in history.readings}
    names = [line.measure for chart in shown for line in chart.lines]
    assert len(set(names)) > 40
    for chart in shown:
        for line in chart.lines:
            if chart.group == "logs":
                continue
            assert line.measure in MEASURES
            assert [(step, at[step][line.measure]) for step, _ in line.points] == line.points
    # Samples are drawn in every second probe only.
    samples = next(chart for chart in shown if chart.name == "sample_tokens")
    assert [step for step, _ in samples.lines[0].points] == [0, 80]


def test_groups_stand_in_their_order_and_names_are_unique(shown: list[Chart]) -> None:
    order = [list(GROUPS).index(chart.group) for chart in shown]
    assert order == sorted(order)
    assert len({chart.name for chart in shown}) == len(shown)


def test_logs_alone_give_the_figures_that_they_allow() -> None:
    logs = made_logs("healthy")
    shown = charts(logs)
    assert {chart.group for chart in shown} == {"logs"}
    rewards = next(chart for chart in shown if chart.name == "log_rewards")
    expected = [(line["step"], line["rewards/chosen"]) for line in logs.logs]
    assert [(step, each.mean) for step, each in rewards.lines[0].points] == expected
    assert all(each.low is None for _, each in rewards.lines[0].points)


def test_measures_in_logs_are_shown_where_there_are_no_probes() -> None:
    logs = [{"step": n, "likelihood/fork_other": n / 10, "loss": float("nan")} for n in (1, 2)]
    [chart] = charts(History(None, [], logs))
    assert chart.name == "forks"
    assert [each.mean for _, each in chart.lines[0].points] == [0.1, 0.2]


def test_every_pair_is_a_dot_of_its_similarity_and_change(
    history: History, shown: list[Chart]
) -> None:
    assert history.setup is not None
    dots = next(chart for chart in shown if chart.name == "ches").clouds
    assert [len(cloud.x) for cloud in dots] == [8, 8]
    last = history.readings[-1].pairs.logps[0].sum(0)
    changes = last - history.setup.baseline.ref_logps[0].sum(0)
    assert [*dots[0].y, *dots[1].y] == pytest.approx(changes.tolist())
    assert [*dots[0].x, *dots[1].x] == history.setup.baseline.ches_normalised.tolist()


def test_what_is_drawn_is_the_line_and_its_band(shown: list[Chart]) -> None:
    chart = next(chart for chart in shown if chart.name == "rewards")
    [axes] = draw(chart).axes
    by_label = {line.get_label(): line for line in axes.lines}
    for line, band in zip(chart.lines, axes.collections, strict=True):
        drawn_line = by_label[line.label]
        assert list(drawn_line.get_xdata()) == [step for step, _ in line.points]
        assert list(drawn_line.get_ydata()) == [each.mean for _, each in line.points]
        corners = band.get_paths()[0].vertices[:, 1]
        assert corners.min() == min(each.low for _, each in line.points)
        assert corners.max() == max(each.high for _, each in line.points)


def test_a_level_line_of_one_value_is_not_zoomed_into() -> None:
    points = [(step, Interval(2.0 + 1e-13 * step, None, None)) for step in range(3)]
    chart = Chart("flat", "logs", "Flat", "nats", "", [Line("m", "line", "chosen", points)])
    low, high = draw(chart).axes[0].get_ylim()
    assert high - low > 0.5


def test_figures_follow_the_theme_and_share_no_ids(shown: list[Chart]) -> None:
    pictures = [drawn(chart) for chart in shown[:3]]
    ids = [found for each in pictures for found in re.findall(r' id="([^"]+)"', each.svg)]
    assert len(ids) == len(set(ids))
    for picture in pictures:
        assert set(re.findall(r"#[0-9a-fA-F]{3,6}\b", picture.svg)) == set()
        names = set(re.findall(r"var\(--([a-z-]+)\)", picture.svg))
        assert names <= {role.variable for role in ROLES.values()} | {"ink", "soft", "line"}
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", picture.svg)
        for target in re.findall(r'(?:url\(#|href="#)([^")]+)', picture.svg):
            assert target in ids
        assert 0 < picture.left < picture.right < 1
        assert picture.low <= 0
        assert picture.high >= 120


def test_the_same_chart_is_drawn_the_same(shown: list[Chart]) -> None:
    assert drawn(shown[0]) == drawn(shown[0])


def test_figures_are_written_as_files(tmp_path: Path) -> None:
    history = made_logs("healthy")
    paths = write_figures(tmp_path / "figures", history)
    assert [path.stem for path in paths] == list(figures(history))
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


def palette(theme: str) -> dict[str, list[float]]:
    """The page's colours by name, as sRGB in [0, 1]."""
    block = STYLE.split(":root[data-theme")[0 if theme == "light" else 1]
    return {
        name: [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        for name, color in re.findall(r"--([a-z-]+): #([0-9a-f]{6});", block)
    }


def together(shown: Sequence[Chart]) -> set[tuple[str, str]]:
    """Pairs of roles that occur in one chart."""
    found = set()
    for chart in shown:
        roles = sorted({each.role for each in (*chart.lines, *chart.clouds)})
        found |= set(combinations(roles, 2))
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", ["all cones", "protanomaly", "deuteranomaly", "tritanomaly"])
def test_lines_of_a_chart_are_told_apart(shown: list[Chart], theme: str, sight: str) -> None:
    """By dashes and marks always; by colour for most (distances in CAM02-UCS, 1 is just visible),
    and each stands out from the paper."""
    colors = palette(theme)
    seen = {}
    for name in (*(role.variable for role in ROLES.values()), "paper"):
        color = np.array(colors[name])
        if sight != "all cones":
            blind = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
            color = np.clip(cspace_convert(color, blind, "sRGB1"), 0, 1)
        seen[name] = color
    for one, two in together(shown):
        assert ROLES[one].dashes != ROLES[two].dashes
        assert ROLES[one].mark != ROLES[two].mark
        apart = deltaE(seen[ROLES[one].variable], seen[ROLES[two].variable], input_space="sRGB1")
        assert apart > 5, (one, two, apart)
    for role in ROLES.values():
        assert deltaE(seen[role.variable], seen["paper"], input_space="sRGB1") > 30


def test_light_figures_have_the_colours_of_the_page() -> None:
    colors = palette("light")
    for role in ROLES.values():
        shown = [int(role.color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert shown == colors[role.variable]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-1e-9, "0"), (-0.1234, "−0.123"), (1.005, "1.00"), (0.9951, "1.00"),
        (-12.345, "−12.3"), (1234.5, "1234"), (2e-5, "2.0e−05"),
        (-7.5e-4, "−0.00075"), (-3e6, "−3.0e+06"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_true_minus(value: float, text: str) -> None:
    assert amount(value) == text


def test_intervals_shares_chances_and_durations() -> None:
    assert bounded(Interval(-0.5, -1.0, 0.25)) == "−0.500 [−1.00, 0.250]"
    assert bounded(Interval(2.0, None, None)) == "2.00"
    assert [share(x) for x in (0.0312, -0.004, 1.0)] == ["3.1 %", "−0.40 %", "100 %"]
    assert [chance(p) for p in (1e-9, 0.0123, 0.5)] == ["below 0.001", "0.012", "0.5"]
    assert [duration(s) for s in (4.2, 600, 9000)] == ["4 s", "10 min", "2.5 h"]


def test_a_glance_pairs_the_first_with_the_last(history: History) -> None:
    assert history.setup is not None
    row = next(row for row in glance(history) if row.label == "entropy, responses")
    responses = [
        reading.responses.entropy for reading in (history.readings[0], history.readings[-1])
    ]
    pairs = np.array([each.pair for each in history.setup.probe.responses])
    gaps = responses[1] - responses[0]
    by_prompt = np.array([gaps[pairs == pair].mean() for pair in np.unique(pairs)])
    assert row.change.mean == pytest.approx(by_prompt.mean())
    half = stats.sem(by_prompt) * stats.t.ppf(0.975, len(by_prompt) - 1)
    assert row.change.high == pytest.approx(by_prompt.mean() + half)
    assert len(row.course) == 4
    points = [tuple(map(float, point.split(","))) for point in row.path.split()]
    assert [x for x, _ in points] == [0, 32, 64, 96]
    assert all(2 <= y <= 18 for _, y in points)
