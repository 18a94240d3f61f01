"""The page of a search in a real browser: what it shows, its keys, and that it asks nobody."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_records import HOSTILE
from search_records import BETA, record, response, summary, tree

from tokenq.report.search_page import SearchHead, write_search_page

ROWS = [
    record(0, "Review:", response("a fine film", -1.5, [0.1, 0.4, 0.0, 0.1]),
           response("a fine mess", -1.7, [0.1, 0.4, -0.6, 0.0])),
    record(4, [{"role": "user", "content": "Say " + HOSTILE}], response(HOSTILE[:-2], -2.0)),
]  # fmt: skip


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Function of rows: the page, opened; it must say nothing and ask for nothing but itself."""
    contexts, said, asked = [], [], []
    file = tmp_path / "index.html"

    def open_page(rows: list[dict[str, Any]], *, anchor: str = "", **settings: Any) -> Any:
        head = SearchHead(summary(prompts=len(rows)), beta=BETA)
        traced = {0: {"nodes": tree()}}
        write_search_page(file, rows, head, trace_of=traced.get)
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "offline": True, **settings}
        )
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url.split("#")[0]))
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri() + anchor)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) == {file.as_uri()}


def test_responses_stand_best_first_with_their_colours(opened: Callable[..., Any]) -> None:
    page = opened(ROWS)
    heads = page.locator(".found .told").all_inner_texts()
    assert heads[0].startswith("score −1.500 · log-ratio +6.00 · KL 0.25 · 4 tokens")
    assert page.locator(".found").count() == 2
    first = page.locator(".found").nth(1).locator(".tok")
    labels = [each.get_attribute("aria-label") for each in first.all()]
    assert labels == ["a, +0.100", "␣fine, +0.400", "␣mess, −0.600", "</s>, +0.000"]
    assert "var(--blamed)" in first.nth(2).get_attribute("style")
    assert page.locator(".found .tokens").nth(1).inner_text() == "a fine mess</s>"
    first.nth(2).hover()
    card = page.locator("#card").inner_text()
    for told in ("3 of 4", "60.7%", "−0.600", "−0.100"):
        assert told in card
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()


def test_hostile_text_is_drawn_and_not_run(opened: Callable[..., Any]) -> None:
    page = opened(ROWS, anchor="#row=4")
    assert page.locator("script").count() == 2
    assert page.locator("main u, main img, main script").count() == 0
    text = page.locator("main").inner_text()
    for visible in ("U+202E", "U+2028", "</script>"):
        assert visible in text
    assert page.locator("#rows li[aria-selected=true]").inner_text().startswith("Say")


def test_the_tree_is_drawn_and_walked_with_the_keys(opened: Callable[..., Any]) -> None:
    page = opened(ROWS)
    boxes = page.locator(".tree g.box")
    names = [each.get_attribute("aria-label").split(",")[0] for each in boxes.all()]
    assert names[:5] == ["a", "fine", "film", "mess", "dull"]
    assert page.locator(".tree g.chosen").count() == 2
    assert "10 tokens were looked at." in page.locator(".tree figcaption").inner_text()

    def here() -> str:
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        return str(label).split(",")[0]

    boxes.first.focus()
    for key, name in [
        ("ArrowRight", "fine"),
        ("ArrowRight", "film"),
        ("ArrowDown", "mess"),
        ("ArrowLeft", "fine"),
        ("ArrowLeft", "a"),
    ]:
        page.keyboard.press(key)
        assert here() == name
    assert page.locator("#card").is_visible()
    boxes.nth(4).focus()
    card = page.locator("#card").inner_text()
    assert "␣three" in card
    assert "also tried behind it" in card


def test_prompts_are_searched_and_stepped_through(opened: Callable[..., Any]) -> None:
    page = opened(ROWS)
    page.keyboard.press("j")
    assert page.locator("h2").inner_text() == "Prompt 4"
    assert page.locator(".tree").count() == 0
    page.keyboard.press("/")
    page.keyboard.type("mess")
    page.locator("#rows li").nth(1).wait_for(state="detached")
    assert page.locator("h2").inner_text() == "Prompt 0"
    page.locator("#search").fill("nothing like it")
    page.locator("#nothing").wait_for(state="visible")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible(opened: Callable[..., Any], theme: str) -> None:
    page = opened(ROWS, color_scheme=theme)
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:120]) for each in found] == []


def test_without_a_reference_there_are_no_colours(opened: Callable[..., Any]) -> None:
    page = opened([record(0, "Review:", response("a film", -1.0))])
    assert page.locator("#tools").is_hidden()
    assert page.locator("#list-pane").is_hidden()
    assert page.locator(".tok").first.get_attribute("aria-label") == "a"
