"""The BMC experiment: its pairs, reading at matched KL, one whole quick run."""

import json
from pathlib import Path

import pytest

from tokenq.cli.reproduce import main
from tokenq.reproduce.bmc import ARMS, DIGITS, QUICK, World, at_kl
from tokenq.reproduce.synthetic import digits


def test_the_pairs_are_what_they_say() -> None:
    world = World(QUICK, 0)
    independent, bridged, shuffled = world.independent, world.bridged, world.shuffled
    assert len(independent) == len(bridged) == len(shuffled) > 0
    for number, prompt in enumerate(independent.prompts):
        rejected = independent.rejected[number]
        assert not digits.is_right(prompt, rejected)
        assert digits.is_right(prompt, independent.chosen[number])
        assert digits.is_right(prompt, bridged.chosen[number])
        assert digits.style_of(independent.chosen[number]) != digits.style_of(rejected)
    for side in ("chosen_edits", "rejected_edits"):
        marks, moved = getattr(bridged, side), getattr(shuffled, side)
        assert [sum(row) for row in marks] == [sum(row) for row in moved]
        assert marks != moved


def test_marks_stand_on_the_edited_tokens() -> None:
    bridged = World(QUICK, 0).bridged
    assert bridged.chosen_edits is not None
    assert bridged.rejected_edits is not None
    for chosen, rejected, edited, original in zip(
        bridged.chosen, bridged.rejected, bridged.chosen_edits, bridged.rejected_edits, strict=True
    ):
        kept = [token for token, mark in zip(chosen, edited, strict=True) if not mark]
        assert kept == [token for token, mark in zip(rejected, original, strict=True) if not mark]
        assert len(kept) < len(chosen) <= 2 * DIGITS


@pytest.mark.parametrize(
    ("kl", "accuracy"),
    # 1.4 lies half way between 0.8 and 2.0, the points around the first crossing
    [(0.0, 0.5), (0.5, 0.55), (1.0, 0.6), (1.4, 0.85), (2.0, 0.8)],
)
def test_reading_at_a_kl(kl: float, accuracy: float) -> None:
    points = [(0.0, 0.5), (1.0, 0.6), (0.8, 0.9), (2.0, 0.8)]
    curve = [{"kl": x, "accuracy": y} for x, y in points]
    assert at_kl(curve, kl) == pytest.approx(accuracy)


def test_a_kl_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not reach a KL of 2\.0"):
        at_kl([{"kl": 0.0, "accuracy": 0.5}, {"kl": 1.0, "accuracy": 0.6}], 2.0)


def test_a_quick_run_leaves_results_figure_and_page(tmp_path: Path) -> None:
    out = tmp_path / "bmc"
    assert main(["bmc", "--quick", "--seeds", "1", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert [run["arm"] for run in results["runs"]] == list(ARMS)
    assert all(0 <= run["share_wrong"] <= 1 for run in results["runs"])
    page = (out / "README.md").read_text()
    (findings,) = results["findings"].values()
    assert all(finding["claim"] in page for finding in findings)
    assert (out / "figure.png").stat().st_size > 10_000
    assert len(list((out / "runs").iterdir())) == len(ARMS) + 1
