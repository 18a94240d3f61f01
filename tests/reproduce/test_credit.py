"""`tokenq reproduce credit`: which tasks run, and a run without a language model."""

import json
from pathlib import Path

import pytest

from tokenq.cli.main import main
from tokenq.data import debian
from tokenq.errors import UserError
from tokenq.reproduce.credit import QUICK, TASKS, _tasks
from tokenq.reproduce.localisation.arms import ARMS, SIZE_ARMS, chosen_arms
from tokenq.reproduce.localisation.settings import Settings


def test_tasks_without_data_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nothing() -> None:
        raise UserError("no package archive here")

    monkeypatch.setattr(debian, "read", nothing)
    monkeypatch.delenv("TOKENQ_DATA", raising=False)
    tasks, missing = _tasks(None)
    assert set(missing) == {"planted", "summedits", "qa"}
    assert missing["planted"] == "no package archive here"
    assert set(tasks) == set(TASKS) - set(missing)
    for folder in ("summedits", "finegrained_qa"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("TOKENQ_DATA", str(tmp_path))
    assert set(_tasks(None)[1]) == {"planted"}


def test_a_task_that_is_named_must_have_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENQ_DATA", raising=False)
    with pytest.raises(UserError, match=r"--tasks: qa: .* TOKENQ_DATA"):
        _tasks(["film", "qa"])


def test_unknown_names_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["reproduce", "credit", "--tasks", "poems", *out]) == 2
    assert "--tasks: 'poems' is unknown; accepted: film, planted" in capsys.readouterr().err
    assert main(["reproduce", "credit", "--tasks", "film", "--arms", "dop", *out]) == 2
    assert "--arms: 'dop' is unknown" in capsys.readouterr().err


def test_every_task_has_settings_and_arms_of_its_own() -> None:
    for settings in (Settings(), QUICK):
        for task in ARMS:
            assert settings.of_task(task)[task]["gradients"] >= 0
    for task in ARMS:
        names = [arm.name for arm in chosen_arms(task, None)]
        assert names[0] == "dpo"
        assert len(names) == len(set(names))
    # The sizes are shares of the same pairs.
    assert sorted(arm.share for arm in SIZE_ARMS) == [0.125, 0.25, 1.0]


def test_solved_mdps_alone_need_no_model(tmp_path: Path) -> None:
    command = ["reproduce", "credit", "--quick", "--tasks", "tabular", "--out", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    tabular = results["tasks"]["tabular"]
    assert tabular["worlds"] == 2
    # What the expected loss determines is the advantage itself.
    assert tabular["arms"]["dpo"]["exact"]["plain"]["advantage"]["mean"] > 0.9
    page = (tmp_path / "README.md").read_text()
    assert "## Token MDPs whose exact advantage is known" in page
    assert "dpo, expected loss: plain" in page
    assert (tmp_path / "figure.png").stat().st_size > 0
