"""The reference experiment: its worlds, one whole quick run, and that it goes on where it was."""

import json
from pathlib import Path

import pytest

from tokenq.cli.reproduce import main
from tokenq.reproduce import reference
from tokenq.reproduce.reference import ARMS, QUICK, World
from tokenq.reproduce.synthetic import clauses


def test_the_held_out_pairs_are_in_their_true_order() -> None:
    pairs = World(QUICK, 0).held_out
    assert len(pairs) > 0
    for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
        assert clauses.quality(prompt, chosen) > clauses.quality(prompt, rejected)


def test_references_differ_as_they_should() -> None:
    world = World(QUICK, 0)
    zeros, _ = world.reference("none").logps(range(len(world.pairs)))
    assert all(not row.any() for row in zeros)
    own, bare = (world.reference(arm).logps([0])[0][0] for arm in ("self", "marginal"))
    assert len(own) == len(bare) == len(world.pairs.chosen[0])
    assert not own.equal(bare)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "reference"
    assert main(["reference", "--quick", "--seeds", "1", "--out", str(folder)]) == 0
    return folder


def test_a_quick_run_leaves_results_figure_and_page(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())["results"]
    assert {run["arm"] for run in results["runs"]} == set(ARMS)
    assert len(results["runs"]) == 2 * len(ARMS)
    page = (folder / "README.md").read_text()
    assert all(finding["claim"] in page for finding in results["findings"])
    assert (folder / "figure.png").stat().st_size > 10_000


def test_a_second_run_trains_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("this part was there")

    before = json.loads((folder / "results.json").read_text())["results"]
    lost = folder / "runs" / "0-none-1.json"
    lost.unlink()
    arguments = ["reference", "--quick", "--seeds", "1", "--out", str(folder)]
    with monkeypatch.context() as patched:
        patched.setattr(reference, "fit_pairs", refuse)
        with pytest.raises(AssertionError, match="was there"):
            main(arguments)
    assert main(arguments) == 0
    with monkeypatch.context() as patched:
        patched.setattr(reference, "fit_pairs", refuse)
        assert main(arguments) == 0
    assert json.loads((folder / "results.json").read_text())["results"] == before
