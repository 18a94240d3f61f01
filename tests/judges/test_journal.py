"""Verdicts on disk: nothing twice, nothing torn, nothing of another run."""

import json
from pathlib import Path

import pytest

from tokenq.errors import UserError
from tokenq.judges.journal import VerdictJournal

SETTINGS = {"responses": "abc", "seed": 0}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_there_again_and_in_order_once_finished(tmp_path: Path) -> None:
    with VerdictJournal(tmp_path, SETTINGS) as journal:
        assert journal.known("j", {"a": 1}) == {}
        for number in (2, 0):
            journal.append("j", number, {"preference": 1.0})
    assert not journal.path.exists()
    with VerdictJournal(tmp_path, SETTINGS) as journal:
        assert sorted(journal.known("j", {"a": 1})) == [0, 2]
        journal.append("j", 1, {"preference": 0.0})
        journal.finish()
    assert [line["comparison"] for line in lines(journal.path)] == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "verdicts.jsonl"]


def test_a_judge_is_added_to_a_finished_folder(tmp_path: Path) -> None:
    for judge in ("one", "two"):
        with VerdictJournal(tmp_path, SETTINGS) as journal:
            journal.known(judge, {})
            journal.append(judge, 0, {"preference": None})
            journal.finish()
    assert [line["judge"] for line in lines(journal.path)] == ["one", "two"]


def test_a_torn_line_is_forgotten(tmp_path: Path) -> None:
    with VerdictJournal(tmp_path, SETTINGS) as journal:
        journal.known("j", {})
        journal.append("j", 0, {"preference": 1.0})
        journal.append("j", 1, {"preference": 1.0})
    part = tmp_path / "verdicts.jsonl.part"
    part.write_bytes(part.read_bytes()[:-9])
    with VerdictJournal(tmp_path, SETTINGS) as journal:
        assert list(journal.known("j", {})) == [0]
        journal.append("j", 1, {"preference": 0.0})
        journal.finish()
    assert [line["preference"] for line in lines(journal.path)] == [1.0, 0.0]


def test_other_comparisons_and_other_judges_are_refused(tmp_path: Path) -> None:
    with VerdictJournal(tmp_path, SETTINGS) as journal:
        journal.known("j", {"weights": "x"})
        journal.append("j", 0, {"preference": 1.0})
        journal.finish()
    with (
        pytest.raises(UserError, match="its seed is 0, now it is 1; accepted: a new folder"),
        VerdictJournal(tmp_path, {**SETTINGS, "seed": 1}),
    ):
        pass
    with (
        VerdictJournal(tmp_path, SETTINGS) as journal,
        pytest.raises(UserError, match="its weights is 'x', now it is 'y'"),
    ):
        journal.known("j", {"weights": "y"})
    (tmp_path / "settings.json").unlink()
    with (
        pytest.raises(UserError, match=r"settings\.json is gone"),
        VerdictJournal(tmp_path, SETTINGS),
    ):
        pass


def test_a_folder_has_one_writer_and_no_foreign_lines(tmp_path: Path) -> None:
    with (
        VerdictJournal(tmp_path, SETTINGS) as journal,
        pytest.raises(UserError, match="being written by another process"),
        VerdictJournal(tmp_path, SETTINGS),
    ):
        pass
    with VerdictJournal(tmp_path, SETTINGS) as journal:
        journal.known("j", {})
        journal.finish()
    (tmp_path / "verdicts.jsonl").write_text("{}\n")
    with (
        pytest.raises(UserError, match="a line that is no verdict"),
        VerdictJournal(tmp_path, SETTINGS),
    ):
        pass
