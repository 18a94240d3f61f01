"""The page in a real browser: what it draws, its controls, keys, colours, and that it asks nobody.

Every page of these tests also fails its test if it writes to the console or requests anything
(`opened` in conftest.py).
"""

import re
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from colorspacious import cspace_convert, deltaE
from page_records import HOSTILE, head, record, side
from playwright.sync_api import expect

from tokenq.credit.aggregation import Shares, sentence_units, word_units
from tokenq.credit.alignment import aligned_segments
from tokenq.report.html import write_page

Open = Callable[..., Any]


def scored(
    row: int, chosen: str, good: list[float], rejected: str, bad: list[float]
) -> dict[str, Any]:
    """A pair with the rewards given (the end token's last), its margin and segments."""
    sides = {"chosen": side(chosen, rewards=good), "rejected": side(rejected, rewards=bad)}
    pair = {"row": row, "prompt": "Review:", "responses": sides, "margin": sum(good) - sum(bad)}
    return {**pair, "segments": [each.to_dict() for each in aligned_segments(pair)]}


ROWS = [
    scored(0, "a fine film", [0.1, 0.4, 0.0, 0.1], "a poor film", [0.1, -0.5, 0.0, -0.1]),
    scored(1, "dull", [-0.9, 0.0], "bright and warm", [0.2, 0.0, 0.3, 0.1]),
    scored(2, "one two three four five", [0.2] * 6, "six seven", [0.1, 0.2, 0.0]),
]


def listed(page: Any) -> list[int]:
    """Numbers of the rows in the list, from top to bottom."""
    return [
        int(text.split("#")[1].split()[0]) for text in page.locator("#rows li").all_inner_texts()
    ]


def tokens(page: Any, number: int = 0) -> Any:
    """The coloured units of one response."""
    return page.locator(".side").nth(number).locator(".tok")


def labels(page: Any, number: int = 0) -> list[str]:
    """What a screen reader says of the units of one response."""
    return [each.get_attribute("aria-label") for each in tokens(page, number).all()]


def rewards(page: Any, number: int = 0) -> list[float]:
    """The rewards that a screen reader says."""
    return [float(label.rsplit(", ", 1)[1].replace("−", "-")) for label in labels(page, number)]


def focused(page: Any) -> str | None:
    """The label of what has the focus."""
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


# ---- What it draws -------------------------------------------------------------------------------


def test_hostile_text_is_drawn_and_not_run(opened: Open) -> None:
    rows = [record(0, "fine text", "b", 0.5), record(1, HOSTILE, "a\n\nb", -0.4)]
    page = opened(rows, head(accuracy=0.5, mean_margin=0.05, ordered=2), anchor="#row=1")
    assert page.locator("script").count() == 2
    assert page.locator("main u, main img, main script").count() == 0
    for number, name in enumerate(("chosen", "rejected")):
        assert tokens(page, number).count() == len(rows[1]["responses"][name]["tokens"])
    assert page.locator("polyline").count() == 2
    text = page.locator("main").inner_text()
    for visible in ("U+202E", "U+2028", "U+D800", "</script>", "↵"):
        assert visible in text
    assert "≠ label" in page.locator("#rows").inner_text()


def test_a_character_of_several_tokens_is_drawn_once(opened: Open) -> None:
    shared = side("🎬x end", ["a", "b", "c"])
    shared["tokens"], shared["offsets"] = (
        ["🎬", "🎬x", "end", "</s>"],
        [[0, 1], [0, 2], [3, 6], [6, 6]],
    )
    page = opened([{"row": 0, "prompt": "", "responses": {"completion": shared}}], head(rows=1))
    assert page.locator(".tokens").inner_text() == "🎬x end</s>"
    assert labels(page)[1].startswith("🎬x, ")
    page.keyboard.press("2")
    assert page.locator(".tokens").inner_text() == "🎬x end</s>"
    assert rewards(page) == pytest.approx([0.075, 0.025, 0.05, 0.05])


def test_the_card_says_what_the_record_says(opened: Open) -> None:
    pair = record(0, "a fine film", "a")
    chosen = pair["responses"]["chosen"]
    chosen["rewards"], chosen["logps"] = [0.1, -0.25, 0.0, 0.0], [-0.5, -4.0, -1.5, -1.5]
    chosen["divergences"] = [0.125, 0.25, 0.5, 1.0]
    page = opened([pair], head(rows=1))
    assert page.locator("#card").is_hidden()
    tokens(page).nth(1).hover()
    card = page.locator("#card").inner_text()
    for said in ("␣fine", "2 of 4", "−4.000", "1.8%", "−0.250", "−0.150", "KL", "0.250", "␣film"):
        assert said in card
    assert page.locator(".dot").get_attribute("visibility") == "visible"
    page.mouse.move(5, 5)
    assert page.locator("#card").is_hidden()


def test_words_and_sentences_sum_their_tokens(opened: Open) -> None:
    text = "Unwatchable, sadly. It's 3.5 hours 👩\u200d👩\u200d👧 long.\nSkip it."
    pieces = re.findall(r"\s?\w{1,4}|\s?[^\w\s]|\s", text)
    assert "".join(pieces) == text
    given = [round(0.1 * (-1) ** i * (i + 1), 3) for i in range(len(pieces) + 1)]
    response = side(text, pieces, given)
    page = opened([{"row": 0, "prompt": "", "responses": {"completion": response}}], head(rows=1))
    assert rewards(page) == pytest.approx(given)
    for level, units in (("words", word_units(text)), ("sentences", sentence_units(text))):
        page.get_by_text(level, exact=True).click()
        shares = Shares.of(response["offsets"], text, units)
        sums = shares.sums(torch.tensor(given))[shares.sizes() > 0].tolist()
        shown = list(zip(tokens(page).all_inner_texts(), rewards(page), strict=True))
        assert [part for part, _ in shown[:-1] if part.strip("↵\n")] == [
            text[start:end].strip() for start, end in units if text[start:end].strip()
        ]
        assert [total for _, total in shown] == pytest.approx([*sums, given[-1]], abs=6e-4)
        assert page.locator(".tokens").inner_text().replace("↵", "") == text + "</s>"


def test_the_margin_is_explained_by_its_segments(opened: Open) -> None:
    page = opened(ROWS, head(rows=3, ordered=3))
    lines = page.locator(".difference tbody tr")
    told = [re.sub(r"\s+", " ", line) for line in lines.all_inner_texts()]
    assert told == [
        "+0.90 ␣fine+0.40 ␣poor−0.50",
        "+0.20 the end of the answer+0.10 −0.10",
        "+0.00 the words that both share+0.10 +0.10",
    ]
    assert "add up to +1.100" in page.locator(".difference").inner_text()
    lines.first.hover()
    pointed = page.locator(".tok.pointed")
    assert [text.strip() for text in pointed.all_inner_texts()] == ["fine", "poor"]
    page.locator(".difference button").nth(1).focus()
    assert pointed.last.inner_text() == "</s>"


def test_spans_are_marked_listed_and_filtered(opened: Open) -> None:
    rows = [scored(i, "it opened in 1987 in Rome", [0.1] * 7, "b", [0.1, 0.0]) for i in range(3)]
    rows[1]["responses"]["chosen"]["spans"] = [
        {"start": 13, "end": 17, "p_value": 0.004, "reward": -0.7, "flagged": True},
        {"start": 21, "end": 25, "p_value": 0.4, "reward": -0.1, "flagged": False},
    ]
    rows[2]["responses"]["chosen"]["spans"] = [
        {"start": 0, "end": 2, "p_value": 0.0001, "reward": -0.9, "flagged": True}
    ]
    page = opened(rows, head(rows=3, ordered=3), anchor="#row=1")
    assert page.locator(".side .in-span").all_inner_texts() == [" 1987"]
    assert page.locator(".side .pvalue").all_inner_texts() == ["p = 0.004"]
    assert "in an error span, p = 0.004" in labels(page)[3]
    entries = page.locator(".spans li").all_inner_texts()
    assert entries[0].startswith("“1987”p = 0.004 · −0.700 · flagged")
    assert entries[1].endswith("not flagged")
    page.get_by_label("only rows with error spans").check()
    assert listed(page) == [1, 2]
    page.locator("#sort").select_option("p")
    assert listed(page) == [2, 1]
    assert page.locator(".side .pvalue").all_inner_texts() == ["p < 0.001"]


def test_another_estimator_colours_the_tokens(opened: Open) -> None:
    rows = [scored(0, "a fine film", [0.1, 0.4, 0.0, 0.1], "b", [0.1, 0.0])]
    rows[0]["responses"]["chosen"]["estimates"] = {"centred": [-0.2, 0.5, 0.25, 0.0]}
    page = opened([*rows, record(1, "a", "b")], head())
    assert rewards(page) == pytest.approx([0.1, 0.4, 0.0, 0.1])
    page.get_by_label("Estimator").select_option("centred")
    assert rewards(page) == pytest.approx([-0.2, 0.5, 0.25, 0.0])
    assert page.locator(".side .sum").first.inner_text() == "+0.550"
    assert "Running sum of centred" in page.locator(".curve").inner_text()
    tokens(page).first.hover()
    card = page.locator("#card").inner_text()
    assert re.search(r"implicit reward\s+\+0\.100", card)
    assert re.search(r"centred\s+−0\.200", card)
    page.keyboard.press("e")
    assert rewards(page)[0] == pytest.approx(0.1)


def test_numbers_of_whole_words_are_not_summed_again(opened: Open) -> None:
    pieces = ["Un", "watch", "able", " film"]
    response = side("Unwatchable film", pieces, [0.1, -0.3, -0.4, 0.2, 0.1])
    response["estimates"] = {
        "words": [-0.6, -0.6, -0.6, 0.2, 0.1],
        "standardised": [1.0, 2.0, -3.0, 0.5, 0.25],
    }
    page = opened([{"row": 0, "prompt": "", "responses": {"completion": response}}], head(rows=1))
    page.get_by_label("Estimator").select_option("words")
    assert (
        "sum of plain over the token’s word".replace("’", "'")
        in page.locator("#estimator-note").inner_text()
    )
    assert rewards(page) == pytest.approx([-0.6, -0.6, -0.6, 0.2, 0.1])
    assert "Prefix value" in page.locator(".curve").inner_text()
    page.get_by_text("words", exact=True).first.click()
    assert rewards(page) == pytest.approx([-0.6, 0.2, 0.1])
    page.get_by_label("Estimator").select_option("standardised")
    assert rewards(page) == pytest.approx([0.0, 0.5, 0.25])
    assert page.locator("#unit").inner_text() == "sd"


# ---- List, sorting, filters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("order", [0, 1, 2]),
        ("margin", [0, 2, 1]),
        ("disagreement", [1, 2, 0]),
        ("total", [2, 0, 1]),
        ("worst", [1, 0, 2]),
        ("length", [2, 0, 1]),
    ],
)
def test_rows_are_sorted(opened: Open, sort: str, order: list[int]) -> None:
    page = opened(ROWS, head(rows=3, ordered=3))
    page.locator("#sort").select_option(sort)
    assert listed(page) == order
    assert page.locator("main h2").inner_text() == f"Row {order[0]}"
    page.locator("#direction").click()
    assert listed(page) == order[::-1]


def test_rows_are_searched_and_filtered(opened: Open) -> None:
    page = opened(ROWS, head(rows=3, ordered=3))
    page.locator("#search").fill("FILM poor")
    expect(page.locator("#rows li")).to_have_count(1)
    assert listed(page) == [0]
    page.locator("#disagree").check()
    assert listed(page) == []
    assert page.locator("#nothing").is_visible()
    page.locator("#search").fill("")
    expect(page.locator("#rows li")).to_have_count(1)
    assert listed(page) == [1]


def test_a_long_list_has_pages(opened: Open) -> None:
    page = opened([record(i, f"text {i}", "b") for i in range(130)], head(rows=130))
    assert page.locator("#page").inner_text() == "130 rows · page 1 of 3"
    page.locator("#rows").focus()
    page.keyboard.press("End")
    assert page.locator("#page").inner_text() == "130 rows · page 3 of 3"
    assert page.locator("main h2").inner_text() == "Row 129"
    page.locator("#previous").click()
    assert listed(page) == list(range(60, 120))


def test_what_is_drawn_does_not_grow_with_the_rows(opened: Open) -> None:
    few = opened([record(i, f"text {i}", "b") for i in range(100)], head(rows=100))
    many = opened([record(i, f"text {i}", "b") for i in range(1500)], head(rows=1500))
    count = "document.querySelectorAll('*').length"
    assert many.evaluate(count) == few.evaluate(count)


# ---- Keys ----------------------------------------------------------------------------------------


def test_rows_are_walked_by_keys(opened: Open) -> None:
    page = opened(ROWS, head(rows=3, ordered=3))
    title = page.locator("main h2")
    for key, row in (("j", 1), ("j", 2), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        assert title.inner_text() == f"Row {row}"
        assert page.url.endswith(f"#row={row}")
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.locator("#search").input_value() == "jk"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "rows"
    expect(page.locator("#rows li")).to_have_count(0)
    page.locator("#search").fill("")
    expect(page.locator("#rows li")).to_have_count(3)
    page.locator("#rows").focus()
    page.keyboard.press("ArrowDown")
    assert title.inner_text() == "Row 1"
    assert page.locator("#rows").get_attribute("aria-activedescendant") == "row-1"
    assert page.locator("#announce").inner_text().startswith("Row 1: disagrees with the label")


def test_every_control_is_reached_by_tab(opened: Open) -> None:
    rows = [*ROWS, scored(3, "x", [0.1, 0.0], "y", [0.0, 0.0])]
    rows[0]["responses"]["chosen"]["estimates"] = {"centred": [0.0] * 4}
    page = opened(rows, head(rows=4, ordered=4))
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        what = page.evaluate(
            "document.activeElement.id || document.activeElement.className.split(' ')[0]"
            " || document.activeElement.tagName.toLowerCase()"
        )
        reached.append(what)
    for control in ("theme", "search", "sort", "disagree", "rows", "level-token", "estimator"):
        assert control in reached
    # The prompt, the lines of the difference, and one stop for each response's tokens.
    assert {"range", "summary", "plain"} <= set(reached)
    assert reached[: reached.index("body")].count("tok") == 2


def test_tokens_are_walked_by_keys(opened: Open) -> None:
    words = "the quick brown fox jumps over the lazy dog and sleeps " * 4
    pair = scored(0, words.strip(), [0.01] * 45, "a b", [0.1, -0.3, -0.2])
    page = opened([pair], head(rows=1, ordered=1))
    tokens(page).first.focus()
    for key, label in (
        ("ArrowRight", "␣quick"),
        ("ArrowRight", "␣brown"),
        ("ArrowLeft", "␣quick"),
        ("End", "</s>"),
        ("ArrowRight", "</s>"),
        ("Home", "the"),
        ("ArrowLeft", "the"),
    ):
        page.keyboard.press(key)
        assert focused(page).split(",")[0] == label
        assert page.locator("#card").is_visible()
    top = page.evaluate("document.activeElement.getBoundingClientRect().top")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > top
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") == top
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    for _ in range(2):  # the most blamed first, then the next, then round
        page.keyboard.press("b")
        assert focused(page) == "␣b, −0.300"
        page.keyboard.press("b")
        assert focused(page) == "</s>, −0.200"


def test_spans_levels_and_theme_have_keys(opened: Open) -> None:
    pair = scored(0, "one two. three four.", [0.1] * 5, "b", [0.1, 0.0])
    pair["responses"]["chosen"]["spans"] = [
        {"start": at, "end": at + 3, "p_value": 0.01, "reward": -0.1, "flagged": True}
        for at in (4, 9)
    ]
    page = opened([pair, ROWS[1]], head(), color_scheme="light")
    for label in ("␣two.", "␣three", "␣two."):
        page.keyboard.press("s")
        assert focused(page).split(",")[0] == label
    page.keyboard.press("2")
    assert tokens(page).count() == 7
    page.keyboard.press("3")
    assert tokens(page).all_inner_texts() == ["one two.", "three four.", "</s>"]
    assert page.locator("#level-sentence").is_checked()
    page.keyboard.press("j")
    assert focused(page).split(",")[0] == "dull"  # the focus stays in the text
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


# ---- Colours -------------------------------------------------------------------------------------


def strong(opened: Open, scheme: str) -> tuple[Any, list[dict[str, Any]]]:
    """A page with rewards from one end of the scale to the other, and its units' real colours."""
    steps = [round(-1 + i / 10, 1) for i in range(21)]
    text = " ".join(f"w{i}" for i in range(len(steps)))
    row = {"row": 0, "prompt": "", "responses": {"completion": side(text, rewards=[*steps, 0.0])}}
    page = opened([row], head(rows=1), color_scheme=scheme)
    found = page.evaluate(
        """() => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 1;
            const context = canvas.getContext("2d", { willReadFrequently: true });
            const pixel = (...layers) => {
                for (const layer of layers) {
                    context.fillStyle = layer;
                    context.fillRect(0, 0, 1, 1);
                }
                return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            };
            const paper = getComputedStyle(document.querySelector(".side")).backgroundColor;
            return [...document.querySelectorAll(".tok")].map((node) => {
                const style = getComputedStyle(node);
                return { back: pixel(paper, style.backgroundColor), ink: pixel(style.color),
                         under: style.boxShadow, text: node.textContent };
            });
        }"""
    )
    return page, [{**each, "reward": reward} for each, reward in zip(found, steps, strict=False)]


def contrast(one: list[int], two: list[int]) -> float:
    """Ratio of relative luminances, WCAG 2.2."""

    def luminance(colour: list[int]) -> float:
        linear = cspace_convert(np.array(colour) / 255, "sRGB1", "sRGB1-linear")
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dim = sorted((luminance(one), luminance(two)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_on_every_colour(opened: Open, scheme: str) -> None:
    _, units = strong(opened, scheme)
    assert min(contrast(unit["back"], unit["ink"]) for unit in units) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sight", ["all cones", "protanomaly", "deuteranomaly", "tritanomaly"])
def test_the_scale_is_told_apart_by_the_colour_blind(opened: Open, scheme: str, sight: str) -> None:
    """Both ends and the middle, and each half in order, with a whole kind of cones missing
    (Machado, Oliveira and Fernandes 2009; distances in CAM02-UCS, where 1 is just visible)."""
    _, units = strong(opened, scheme)
    seen = np.array([unit["back"] for unit in units]) / 255
    if sight != "all cones":
        blind = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
        seen = np.clip(cspace_convert(seen, blind, "sRGB1"), 0, 1)
    low, middle, high = seen[1], seen[10], seen[19]
    for one, two in combinations((low, middle, high), 2):
        assert deltaE(one, two, input_space="sRGB1") > 15
    for half in (seen[10:0:-1], seen[10:20]):
        away = [deltaE(middle, each, input_space="sRGB1") for each in half]
        assert all(later > earlier for earlier, later in pairwise(away))


def test_blame_is_told_without_colours_too(opened: Open) -> None:
    _, units = strong(opened, "light")
    for unit in units:
        underlined = "rgba(0, 0, 0, 0)" not in unit["under"] and unit["under"] != "none"
        assert underlined == (unit["reward"] < -0.25)


def test_dark_mode_follows_the_system_and_the_button(opened: Open) -> None:
    page, units = strong(opened, "dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert contrast(units[10]["back"], [0, 0, 0]) < 2
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.get_by_label("Switch between light and dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


# ---- Network, access -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attempt",
    [
        "fetch('https://example.org/x')",
        "new Promise((ok, no) => { const i = new Image(); i.onload = ok; i.onerror = no;"
        " i.src = 'https://example.org/x.png'; })",
        "new Promise((ok, no) => { const s = document.createElement('script'); s.onload = ok;"
        " s.onerror = no; s.src = 'https://example.org/x.js'; document.head.append(s); })",
    ],
    ids=["fetch", "image", "script"],
)
def test_the_page_may_not_ask_anybody(chromium: Any, tmp_path: Any, attempt: str) -> None:
    write_page(tmp_path / "page.html", ROWS, head(rows=3))
    context = chromium.new_context()
    sent: list[str] = []
    context.route("**/*", lambda route: (sent.append(route.request.url), route.continue_()))
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    assert page.evaluate(f"{attempt}.then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in text for text in refused)
    assert not [url for url in sent if not url.startswith("file:")]
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_is_found_by_axe(opened: Open, scheme: str) -> None:
    rows = [
        scored(i, "it opened in 1987. It closed.", [0.3, -0.4, 0.1, -1, 0, 0.2, 0.1], "b", [1.0, 0])
        for i in range(3)
    ]
    rows[0]["responses"]["chosen"]["spans"] = [
        {"start": 13, "end": 17, "p_value": 0.004, "reward": -0.7, "flagged": True}
    ]
    rows[0]["responses"]["chosen"]["estimates"] = {"centred": [0.0] * 7}
    shares = {"share_of_credit": 0.5, "share_of_tokens": 0.125}
    told = {**shares, "by_class": {"end": shares}, "warning": "Half of it."}
    page = opened(
        rows, head(rows=3, accuracy=0.5, mean_margin=0.1, format=told), color_scheme=scheme
    )
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
