"""A real browser to open pages in: the system's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from tokenq.report.html import PageHead, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser that is started once."""
    if CHROMIUM is None:
        pytest.skip("no Chromium to open the page in")
    expect.set_options(timeout=60_000)  # milliseconds; a busy machine is no failure
    with sync_playwright() as driver:
        # A browser run by root has no sandbox; the pages it opens here are our own.
        arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Function of records, a head and settings of the browser context: the page, opened.

    The page must say nothing in the console, fail nowhere and ask for nothing but itself.
    """
    contexts, said, asked = [], [], []

    def open_page(
        rows: list[dict[str, Any]], about: PageHead, *, anchor: str = "", **settings: Any
    ) -> Any:
        file = tmp_path / f"page-{len(contexts)}.html"
        write_page(file, rows, about)
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
    assert asked == [(tmp_path / f"page-{i}.html").as_uri() for i in range(len(contexts))]
