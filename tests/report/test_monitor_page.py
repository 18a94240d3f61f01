"""The monitor's page in a real browser: its order, figures, theme, and that it asks nobody."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from colorspacious import cspace_convert
from histories import made_history, made_logs
from page_records import HOSTILE
from playwright.sync_api import expect

from tokenq.monitor.decision import decide
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.identity import Interval
from tokenq.monitor.measures import MEASURES
from tokenq.monitor.readings import History
from tokenq.report.monitor_charts import charts
from tokenq.report.monitor_numbers import bounded
from tokenq.report.monitor_page import MOST_POINTS, thinned, write_monitor_page
from tokenq.report.monitor_terminal import VERDICTS

STEPS = (0, 40, 80, 120)


class HostileWords:
    """A tokenizer whose every text tries to break out of the page."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" {HOSTILE} w{token}" for token in ids)


@pytest.fixture(scope="module")
def history() -> History:
    made = made_history("displacement", steps=STEPS, pairs=24)
    assert made.setup is not None
    setup = replace(made.setup, policy=HOSTILE[:-2], facts={"objective": "<b>dpo</b>"})
    return replace(made, setup=setup)


@pytest.fixture(scope="module")
def files(history: History, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run with alarms, and that of logs alone."""
    folder = tmp_path_factory.mktemp("pages")
    found = {"watched": folder / "watched.html", "logs": folder / "logs.html"}
    write_monitor_page(found["watched"], history, tokenizer=HostileWords())
    write_monitor_page(found["logs"], made_logs("displacement"))
    return found


@pytest.fixture
def opened(chromium: Any, files: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Function of a page's name: the page; it must say nothing and ask for nothing but itself."""
    contexts, said, asked = [], [], []

    def open_page(name: str = "watched", **settings: Any) -> Any:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "offline": True, **settings}
        )
        contexts.append(context)
        context.set_default_timeout(120_000)  # milliseconds; a busy machine is no failure
        context.on("request", lambda request: asked.append(request.url.split("#")[0]))
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(files[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) <= {path.as_uri() for path in files.values()}


def test_the_verdict_stands_first_then_findings_then_figures(
    opened: Callable[..., Any], history: History
) -> None:
    page = opened()
    heads = page.locator("main h2").all_inner_texts()
    assert heads[0] == "Negative chosen reward: expected or harmful?"
    assert heads[1:3] == ["Findings", "At a glance"]
    decision, found = decide(history), findings(history)
    assert page.locator(".verdict").inner_text() == VERDICTS[decision.verdict]
    reasons = page.locator(".reasons .test").all_text_contents()
    assert sorted(reasons) == sorted(each.test for each in decision.reasons)
    signs = [each.get_attribute("class") for each in page.locator(".reasons > li").all()]
    order = ["sign-harmful", "sign-open", "sign-expected", "sign-fact"]
    assert signs == sorted(signs, key=order.index)
    assert signs[0] == "sign-harmful"
    titles = page.locator(".finding h3").all_inner_texts()
    assert titles == [each.title for each in found]
    for each in found:
        card = page.locator(f"#finding-{each.name}")
        assert f"since step {each.since}" in card.inner_text()
        assert card.locator(".change li").count() == len(each.change)


def test_findings_lead_to_figures_and_figures_to_definitions(opened: Callable[..., Any]) -> None:
    page = opened()
    for link in page.locator("main a, nav a").all():
        target = link.get_attribute("href")
        assert target.startswith("#")
        assert page.evaluate("id => document.getElementById(id) !== null", target[1:]), target
    first = page.locator(".finding .shown a").first
    assert "figure" in first.get_attribute("href")
    terms = page.locator(".definitions tbody tr")
    assert terms.count() > 40
    name = "likelihood/fork_other"
    assert MEASURES[name].definition in page.locator(f"[id='measure-{name}']").inner_text()


def test_every_chart_is_a_figure_with_a_name_and_a_table(
    opened: Callable[..., Any], history: History
) -> None:
    page = opened()
    shown = charts(history)
    assert page.locator("figure svg").count() == len(shown)
    for chart in shown:
        figure = page.locator(f"#figure-{chart.name}")
        assert chart.title in figure.locator("[role=img]").get_attribute("aria-label")
        rows = figure.locator("tbody tr")
        if chart.lines:
            steps = sorted({step for line in chart.lines for step, _ in line.points})
            assert [row.get_attribute("data-step") for row in rows.all()] == list(map(str, steps))
            last = rows.last.locator("td").last.text_content().strip()
            points = dict(chart.lines[-1].points)
            assert last == (bounded(points[steps[-1]]) if steps[-1] in points else "")
        else:
            assert rows.count() == sum(len(cloud.x) for cloud in chart.clouds)


def test_the_pointer_reads_values(opened: Callable[..., Any], history: History) -> None:
    page = opened()
    plot = page.locator("#figure-rewards .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    left, right = map(float, plot.get_attribute("data-axis").split()[:2])
    # Two thirds of the way lies the third of four probes, at step 80.
    share = left + (right - left) * 0.67
    page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
    chart = next(chart for chart in charts(history) if chart.name == "rewards")
    told = plot.locator(".readout > *").all_text_contents()
    values = [f"{line.label}  {bounded(dict(line.points)[80])}" for line in chart.lines]
    assert told == ["step 80", *values]
    page.mouse.move(2, 2)
    expect(plot.locator(".readout")).to_have_count(0)


def test_texts_of_data_are_shown_and_not_run(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.locator("script").count() == 1
    assert page.locator("main u, main b, main img, main script").count() == 0
    assert "<b>dpo</b>" in page.locator("footer").inner_text()
    forks = page.locator(".tokens-table").inner_text()
    samples = page.locator(".samples").inner_text()
    for text in (forks, samples):
        for visible in ("</script>", "U+202E", "<u>x</u>"):
            assert visible in text
    assert page.locator("[class*=kind-chosen]").count() > 0


def test_forks_show_who_holds_the_probability(opened: Callable[..., Any], history: History) -> None:
    page = opened()
    worst = int(np.nanargmax(history.readings[-1].forks.other))
    head = page.locator(".pair h4").first.inner_text()
    assert f"pair {worst}:" in head
    kinds = page.locator(".pair").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert {"chosen", "rejected", "other"} == set(kinds)
    now = [
        float(text.rstrip(" %"))
        for text in page.locator(".pair").first.locator("td:last-child").all_inner_texts()
    ]
    assert now == sorted(now, reverse=True)


def test_logs_alone_give_their_figures_and_say_what_a_probe_would_add(
    opened: Callable[..., Any],
) -> None:
    page = opened("logs")
    assert page.locator("figure").count() >= 5
    assert page.locator(".tokens-table, .samples, .definitions").count() == 0
    text = page.locator("main").inner_text()
    assert "A probe would add" in text
    assert "tokenq monitor RUN_DIR --data" in text


@pytest.mark.parametrize("name", ["watched", "logs"])
@pytest.mark.parametrize("width", [360, 760, 1280])
def test_it_fits_the_screen(opened: Callable[..., Any], name: str, width: int) -> None:
    page = opened(name, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("() => { scrollTo(0, 500); return scrollY; }") == 500


def contrast(one: list[float], two: list[float]) -> float:
    """Ratio of relative luminances, WCAG 2.2."""

    def luminance(color: list[float]) -> float:
        linear = cspace_convert(np.array(color) / 255, "sRGB1", "sRGB1-linear")
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dim = sorted((luminance(one), luminance(two)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def channels(color: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", color)[:3]]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_legible_in_both_themes(opened: Callable[..., Any], theme: str) -> None:
    page = opened(color_scheme=theme)
    found = page.evaluate(
        """() => [...document.querySelectorAll('figure')].map((figure) => ({
            paper: getComputedStyle(figure).backgroundColor,
            texts: [...figure.querySelectorAll('svg text')].map((t) => getComputedStyle(t).fill),
            lines: [...figure.querySelectorAll('svg [id*=line2d] > path')]
                .map((path) => getComputedStyle(path))
                .map((style) => [style.stroke, parseFloat(style.strokeWidth)]),
        }))"""
    )
    assert sum(len(each["texts"]) for each in found) > 200
    for each in found:
        paper = channels(each["paper"])
        for fill in each["texts"]:
            assert contrast(channels(fill), paper) >= 4.5
        strong = [stroke for stroke, width in each["lines"] if width > 1.2]
        for stroke in strong:
            assert contrast(channels(stroke), paper) >= 3
    page.keyboard.press("t")
    other = page.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
    assert other != found[0]["paper"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["watched", "logs"])
def test_no_barrier_is_found_by_axe(opened: Callable[..., Any], name: str, theme: str) -> None:
    page = opened(name, color_scheme=theme)
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:160]) for each in found] == []


def test_it_prints_without_controls(opened: Callable[..., Any]) -> None:
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator(".jump").is_hidden()
    assert page.locator("#theme").is_hidden()
    paper = page.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
    assert contrast(channels(paper), [255, 255, 255]) == pytest.approx(1)


def test_a_run_with_nothing_to_say_has_a_page(tmp_path: Path) -> None:
    write_monitor_page(tmp_path / "page.html", History(None, [], []))
    text = (tmp_path / "page.html").read_text()
    assert "No rule has found anything" in text


def test_long_logs_are_drawn_as_means_of_windows() -> None:
    points = [(step, Interval(float(step), None, None)) for step in range(1, 10_002)]
    shown = thinned({"loss": points, "short": points[:10]})

    assert shown["short"] == points[:10]
    assert len(shown["loss"]) <= MOST_POINTS
    assert shown["loss"][0] == points[0]
    assert shown["loss"][-1] == points[-1]
    # Each window's mean lies half a window before its last step.
    lag = [step - value.mean for step, value in shown["loss"][1:-2]]
    assert set(lag) == {(10_001 - 2 + 497) // 498 / 2 - 0.5}
