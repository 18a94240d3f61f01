"""Equation, code and test of every objective are where the documentation says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
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


def hook(name: str) -> ModuleType:
    """A script of the documentation, as a module."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / f"docs/hooks/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(axes: Any) -> dict[str, np.ndarray]:
    """The curves of a picture by their labels."""
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_the_page_of_measures_is_what_the_code_says() -> None:
    made = hook("measures")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "python docs/hooks/measures.py"
    assert {each.group for each in MEASURES.values()} == set(made.GROUPS)


def test_the_picture_of_an_expected_decline_shows_what_is_said_of_it() -> None:
    tuned, untuned = map(lines, hook("curves").expected().axes)
    for found in (tuned, untuned):
        np.testing.assert_allclose(found["reference's own answers"], found["−β·KL(ref ‖ π)"])
    np.testing.assert_allclose(tuned["chosen"], tuned["−β·KL(ref ‖ π)"])
    assert (np.diff(tuned["chosen"]) < 0).all()
    assert untuned["chosen"].argmax() > 0
    assert (untuned["chosen"][1:] > untuned["−β·KL(ref ‖ π)"][1:]).all()


def test_the_picture_of_displacement_shows_what_is_said_of_it() -> None:
    chances, rewards, margins = map(lines, hook("curves").displacement().axes)
    assert chances["No"][0] == pytest.approx(0.45)
    assert chances["No"][-1] < 0.05
    assert max(chances, key=lambda name: chances[name][-1]) == "Yes"
    assert (np.diff(margins["DPO"]) > 0).all()
    for way in ("DPO + SFT", "DPOP, λ = 5", "DPOP, λ = 50"):
        assert abs(rewards[way][-1]) < 0.02
        assert margins[way][-1] < margins["DPO"][-1] / 5
    assert (np.diff(margins["DPOP, λ = 50"]) < -0.005).any()


def test_the_picture_of_length_shows_what_is_said_of_it() -> None:
    means, ends = map(lines, hook("curves").length().axes)
    even, most, more = (means[f"chosen is the longer one in {share} %"] for share in (50, 80, 65))
    np.testing.assert_allclose(even, 10)
    assert most[-1] > more[-1] > 14
    assert all(course[-1] <= course[0] + 1e-9 for name, course in ends.items() if name[0] != "_")


def test_the_guides_name_every_finding_and_no_unknown_measure() -> None:
    guides = [
        (ROOT / "docs/guide" / name).read_text(encoding="utf-8")
        for name in ("monitor.md", "what-your-curves-mean.md")
    ]
    for name in RULES:
        assert any(f"`{name}`" in text for text in guides), name
    named = {name for text in guides for name in re.findall(r"`(likelihood/[a-z_]+)`", text)}
    assert named <= set(MEASURES)
