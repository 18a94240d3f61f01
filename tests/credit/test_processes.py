"""`tokenq credit` in two processes over gloo, started by accelerate: the file of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_pairs import save_model, small_pair

from tokenq.credit.processes import ALONE, Processes
from tokenq.errors import UserError

ROWS = [
    {"prompt": f"Review {i // 2}:", "chosen": " A warm film." + " A lead." * (i % 5),
     "rejected": " A dull mess."}
    for i in range(13)
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    save_model(path / "policy", seed=1)
    save_model(path / "reference", seed=2)
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def score(
    folder: Path, out: str, processes: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    python = [sys.executable, "-m"]
    if processes > 1:
        python += [
            "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", str(free_port()), "-m",
        ]  # fmt: skip
    command = [
        *python, "tokenq", "credit", "--policy", str(folder / "policy"), "--reference",
        str(folder / "reference"), "--data", str(folder / "rows.jsonl"), "--device", "cpu",
        "--token_budget", "40", "--out", str(folder / out), *arguments,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "TOKENQ_HOME": str(folder / f"home-{out}"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def assert_same_numbers(ours: object, theirs: object) -> None:
    """Equal but for rounding: other neighbours in a forward, other last digits."""
    if isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=3e-5)
    elif isinstance(ours, dict) and isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in ours:
            assert_same_numbers(ours[name], theirs[name])
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same_numbers(mine, other)
    else:
        assert ours == theirs


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch.distributed without gloo",
)
def test_two_processes_equal_one_and_continue_a_run_of_one(folder: Path) -> None:
    alone = score(folder, "alone", 1, "--alternatives", "2", "--parquet")
    assert alone.returncode == 0, alone.stderr[-3000:]
    together = score(folder, "together", 2, "--alternatives", "2", "--parquet")
    assert together.returncode == 0, together.stderr[-3000:]
    assert "13 rows" in together.stdout
    assert together.stdout.count("13 rows") == 1
    expected = lines(folder / "alone" / "credit.jsonl")
    assert [record["row"] for record in expected] == list(range(13))
    assert_same_numbers(lines(folder / "together" / "credit.jsonl"), expected)
    assert {path.name for path in (folder / "together").iterdir()} == {
        "credit.jsonl", "credit.parquet", "index.html", "settings.json", "summary.json",
    }  # fmt: skip

    # A run that one process began and that was cut off, with a line that was being written.
    begun = folder / "begun"
    begun.mkdir()
    whole = (folder / "alone" / "credit.jsonl").read_bytes().splitlines(keepends=True)
    marked = [line.replace(b'"prompt": "Review 1:"', b'"prompt": "kept"') for line in whole[:5]]
    (begun / "credit.jsonl.0.part").write_bytes(b"".join(marked) + whole[5][:30])
    (begun / "settings.json").write_bytes((folder / "alone" / "settings.json").read_bytes())
    continued = score(folder, "begun", 2, "--alternatives", "2")
    assert continued.returncode == 0, continued.stderr[-3000:]
    found = lines(begun / "credit.jsonl")
    assert [record["prompt"] for record in found[2:4]] == ["kept", "kept"]
    for record in found[2:4]:
        record["prompt"] = "Review 1:"
    assert_same_numbers(found, expected)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch.distributed without gloo",
)
def test_a_row_that_stops_one_process_stops_all(folder: Path) -> None:
    with (folder / "rows.jsonl").open() as file:
        rows = file.readlines()
    bad = folder / "bad"
    bad.mkdir()
    for name in ("policy", "reference"):
        (bad / name).symlink_to(folder / name)
    (bad / "rows.jsonl").write_text("".join([*rows, '{"prompt": "x", "chosen": 3}\n']))
    stopped = score(bad, "out", 2)
    assert stopped.returncode != 0
    assert "line 14" in stopped.stderr
    assert not (bad / "out" / "credit.jsonl").exists()


def test_one_process_waits_for_nobody() -> None:
    ALONE.wait()
    with ALONE.main_first():
        pass
    ALONE.leave()
    assert ALONE.is_main


def test_sharded_weights_are_refused_where_processes_score_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = small_pair().policy
    Processes(0, 2).check_whole(policy)
    monkeypatch.setattr("tokenq.credit.processes.DTensor", torch.nn.Parameter)
    ALONE.check_whole(policy)
    with pytest.raises(UserError, match="sharded over 2 processes"):
        Processes(0, 2).check_whole(policy)
