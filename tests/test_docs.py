"""Equation, code and test of every objective are where the documentation says."""

import importlib.util
import re
from pathlib import Path

import pytest

from tokenq.monitor.findings.rules import RULES
from tokenq.monitor.measures import MEASURES
from tokenq.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
INDEX = (ROOT / "docs/methods/index.md").read_text(encoding="utf-8")
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def row_of(name: str) -> str:
    """The line of the table of methods that holds the objective."""
    (row,) = (line for line in INDEX.splitlines() if line.startswith("| [") and f"`{name}`" in line)
    return row


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_found_from_the_table_of_methods(name: str) -> None:
    page, _, files = row_of(name).split("|")[1:4]
    home = OBJECTIVES[name].__module__.rsplit(".", 1)[1]
    assert f"`{home}.py`" in files
    assert (ROOT / "tests" / "objectives" / f"test_{home}.py").is_file()
    (target,) = re.findall(r"\]\(([\w-]+\.md)\)", page)
    text = (ROOT / "docs" / "methods" / target).read_text(encoding="utf-8")
    assert name in text
    assert f"methods/{target}" in NAV
    assert "loss_type" in text or "objective" in text


@pytest.mark.parametrize("page", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda p: p.name)
def test_a_page_of_methods_is_in_the_navigation(page: Path) -> None:
    assert f"methods/{page.name}" in NAV


def test_the_page_of_measures_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("measures_page", ROOT / "docs/hooks/measures.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "python docs/hooks/measures.py"
    assert {each.group for each in MEASURES.values()} == set(made.GROUPS)


def test_the_guides_name_every_finding_and_no_unknown_measure() -> None:
    guides = [
        (ROOT / "docs/guide" / name).read_text(encoding="utf-8")
        for name in ("monitor.md", "what-your-curves-mean.md")
    ]
    for name in RULES:
        assert any(f"`{name}`" in text for text in guides), name
    named = {name for text in guides for name in re.findall(r"`(likelihood/[a-z_]+)`", text)}
    assert named <= set(MEASURES)
