"""The monitor's folder: what is written is there, whatever happens to the writer."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tabular_probe import moved, table, tabular_reading, tabular_setup

from tokenq.errors import UserError
from tokenq.mdp import PrefixTree
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.readings import Reading, Setup

TREE = PrefixTree(vocabulary=3, horizon=2, eos=2)
PAIRS = [("held_out", 0, 1, 2), ("train", 0, 3, 0)]
RESPONSES = [(0, 1), (0, 3)]


def made(step: int = 1) -> tuple[Setup, Reading]:
    rng = np.random.default_rng(0)
    reference = table(TREE, rng)
    policy = moved(reference, rng)
    return (
        tabular_setup(TREE, reference, PAIRS, RESPONSES),
        tabular_reading(TREE, reference, policy, PAIRS, RESPONSES, [(0, 2)], step),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    setup, reading = made(step=3)
    with MonitorFolder.of(tmp_path) as folder:
        assert not folder.exists()
        folder.write_setup(setup)
        folder.append_reading(reading)
        folder.append_log({"step": 3, "loss": np.float32(0.5), "rewards/chosen": math.nan})
        history = folder.history()
    assert MonitorFolder(tmp_path / "monitor").exists()
    assert history.setup is not None
    assert history.setup.to_dict() == setup.to_dict()
    assert [each.to_dict() for each in history.readings] == [reading.to_dict()]
    np.testing.assert_array_equal(history.readings[0].pairs.logps, reading.pairs.logps)
    [line] = history.logs
    assert (line["step"], line["loss"]) == (3, 0.5)
    assert math.isnan(line["rewards/chosen"])


def test_an_empty_folder_is_an_empty_history(tmp_path: Path) -> None:
    history = MonitorFolder(tmp_path).history()
    assert (history.setup, list(history.readings), list(history.logs)) == (None, [], [])
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_voids_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    _, reading = made()
    with MonitorFolder(tmp_path) as folder:
        for step in (0, 10, 20, 30):
            folder.append_reading(replace(reading, step=step, seconds=1.0))
            folder.append_log({"step": step, "part": 1})
    with MonitorFolder(tmp_path) as folder:
        folder.resume(10)
        folder.append_reading(replace(reading, step=20, seconds=2.0))
        folder.append_log({"step": 20, "part": 2})
        history = folder.history()
    assert [(r.step, r.seconds) for r in history.readings] == [(0, 1.0), (10, 1.0), (20, 2.0)]
    assert [(e["step"], e["part"]) for e in history.logs] == [(0, 1), (10, 1), (20, 2)]
    assert len((tmp_path / "readings.jsonl").read_text().splitlines()) == 6
    with MonitorFolder(tmp_path) as folder:
        folder.resume(-1)
        assert not folder.history().readings
        assert not folder.history().logs


def test_the_last_reading_of_a_step_counts_and_all_its_log_lines(tmp_path: Path) -> None:
    _, reading = made()
    with MonitorFolder(tmp_path) as folder:
        for seconds in (1.0, 2.0):
            folder.append_reading(replace(reading, step=5, seconds=seconds))
            folder.append_log({"step": 5, "seconds": seconds})
        history = folder.history()
    assert [each.seconds for each in history.readings] == [2.0]
    assert [each["seconds"] for each in history.logs] == [1.0, 2.0]


@pytest.mark.parametrize("torn", ['{"step": 7, "pai', '{"step": 7}'])
def test_a_torn_last_line_is_ignored_and_cut_before_the_next(tmp_path: Path, torn: str) -> None:
    _, reading = made(step=1)
    with MonitorFolder(tmp_path) as folder:
        folder.append_reading(reading)
    path = tmp_path / "readings.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [each.step for each in MonitorFolder(tmp_path).history().readings] == [1]
    with MonitorFolder(tmp_path) as folder:
        folder.append_reading(replace(reading, step=2))
        assert [each.step for each in folder.history().readings] == [1, 2]
    assert all(json.loads(line)["step"] in (1, 2) for line in path.read_text().splitlines())


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    with MonitorFolder(tmp_path) as folder:
        folder.append_log({"step": 1})
        with (tmp_path / "logs.jsonl").open("a", encoding="utf-8") as file:
            file.write("x" * 200_000)
        folder.append_log({"step": 2})
        assert [line["step"] for line in folder.history().logs] == [1, 2]


@pytest.mark.parametrize(
    "line", ["not json", "[]", '{"loss": 1}', '{"step": "one"}', '{"step": 2}']
)
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    _, reading = made()
    (tmp_path / "readings.jsonl").write_text(f"{reading.to_line()}\n{line}\n{reading.to_line()}\n")
    with pytest.raises(UserError, match=r"readings\.jsonl: line 2 is no"):
        MonitorFolder(tmp_path).history()


def test_a_broken_setup_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / "setup.json").write_text(text)
        with pytest.raises(UserError, match=r"setup\.json"):
            MonitorFolder(tmp_path).history()


def test_another_probe_or_beta_is_refused(tmp_path: Path) -> None:
    setup, _ = made()
    with MonitorFolder(tmp_path) as folder:
        folder.write_setup(setup)
        folder.write_setup(replace(setup, policy="out/checkpoint-100", facts={"lr": 1e-6}))
        with pytest.raises(UserError, match=r"beta differs \(0.5, now 0.1\); accepted: another"):
            folder.write_setup(replace(setup, beta=0.1))
        other = replace(setup.probe, new_tokens=5)
        with pytest.raises(UserError, match="its probe differs; accepted"):
            folder.write_setup(replace(setup, probe=other))
        history = folder.history()
    assert history.setup is not None
    assert (history.setup.beta, history.setup.policy) == (0.5, "tabular")


def test_log_lines_need_a_step(tmp_path: Path) -> None:
    with MonitorFolder(tmp_path) as folder, pytest.raises(ValueError, match="needs a step"):
        folder.append_log({"loss": 1.0})


def test_one_writer_and_any_readers(tmp_path: Path) -> None:
    _, reading = made()
    with MonitorFolder(tmp_path) as first, MonitorFolder(tmp_path) as second:
        first.append_reading(reading)
        assert len(second.history().readings) == 1
        with pytest.raises(UserError, match="being written by another process"):
            second.append_reading(reading)
        first.close()
        second.append_reading(replace(reading, step=2))
    assert len(MonitorFolder(tmp_path).history().readings) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["readings.jsonl"]


WRITER = """
import sys
from pathlib import Path
from tokenq.monitor.journal import MonitorFolder
folder = MonitorFolder(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    folder.append_log({"step": step, "text": "x" * 5000})
    print(step, flush=True)
"""


@pytest.mark.processes
def test_kill_9_loses_at_most_the_line_that_was_being_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    for _ in range(2):
        reported = 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            reported = int(line)
            if reported == 20:
                os.kill(process.pid, signal.SIGKILL)
                break
        reported = max([reported, *map(int, process.stdout)])
        process.wait()
        steps = [line["step"] for line in MonitorFolder(tmp_path).history().logs]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) in (reported, reported + 1)
        with MonitorFolder(tmp_path) as folder:
            folder.resume(-1)
