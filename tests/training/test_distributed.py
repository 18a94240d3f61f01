"""Two processes over gloo follow one process's trajectory: DDP and FSDP2, started by accelerate."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import pairs, save_model, tiny_llama, write_jsonl
from transformers import AutoModelForCausalLM

from tokenq.models.reference_shards import ShardFolder
from tokenq.monitor import MonitorFolder

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch.distributed without gloo",
    ),
]

FSDP2 = [
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
    "--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer",
    "--fsdp_state_dict_type", "FULL_STATE_DICT",
]  # fmt: skip
CLOCK = ("runtime", "per_second", "total_flos")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def train(
    folder: Path, name: str, launcher: list[str], *arguments: str
) -> tuple[list[dict[str, Any]], Path]:
    """Run `tokenq train`; returns the log and the reference cache that it filled."""
    out, home = folder / name, folder / f"home-{name}"
    python = [sys.executable, "-m"]
    if launcher:
        python += [
            "accelerate.commands.launch", *launcher, "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", str(free_port()), "-m",
        ]  # fmt: skip
    command = [*python, "tokenq", "train", "--config", str(folder / "c.yaml"), *arguments]
    environment = {**os.environ, "TOKENQ_HOME": str(home), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, "--output_dir", str(out)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    state = json.loads((out / "trainer_state.json").read_text())
    return state["log_history"], home / "reference"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed")
    save_model(path / "base", tiny_llama())
    # A reference of its own: against itself the first accuracies would be a toss of roundings.
    save_model(path / "reference", tiny_llama(seed=1))
    # 21 rows in global batches of 8: the last batch has 5, so that processes get 3 and 2 of them.
    write_jsonl(path / "train.jsonl", pairs(21))
    write_jsonl(path / "eval.jsonl", pairs(5, seed=1))
    settings = {
        "model_name_or_path": str(path / "base"),
        "reference": str(path / "reference"),
        "dataset_name": str(path / "train.jsonl"),
        "eval_dataset_name": str(path / "eval.jsonl"),
        "eval_strategy": "steps",
        "eval_steps": 4,
        "per_device_eval_batch_size": 2,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.2],
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": "1e-2",
        "logging_steps": 1,
        "save_steps": 4,
        # Small enough for several micro-batches, whose number differs between the processes.
        "token_budget": 70,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
    (path / "c.yaml").write_text(text)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[list[dict[str, Any]], Path]:
    return train(folder, "alone", [], "--per_device_train_batch_size", "4")


def shards(cache: Path) -> ShardFolder:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    opened = ShardFolder(folder)
    opened.refresh()
    return opened


@pytest.mark.parametrize("launcher", [["--multi_gpu"], FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one(
    folder: Path, alone: tuple[list[dict[str, Any]], Path], launcher: list[str]
) -> None:
    name = "fsdp2" if launcher is FSDP2 else "ddp"
    log, cache = train(folder, name, launcher, "--per_device_train_batch_size", "2")
    expected, expected_cache = alone
    assert len(log) == len(expected) > 6
    for line, expected_line in zip(log, expected, strict=True):
        assert line.keys() == expected_line.keys()
        for key, value in expected_line.items():
            if not any(word in key for word in CLOCK):
                # Log-probs of a response are sums of tens of nats: relative to their size.
                assert line[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (key, line["step"])
    sharded = (folder / name / "checkpoint-6" / "pytorch_model_fsdp.bin").exists()
    assert sharded == (launcher is FSDP2)
    # Every row of the reference cache was computed by one process only.
    assert shards(cache).rows == shards(expected_cache).rows
    ours = AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(folder / "alone").state_dict()
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, rtol=0, atol=2e-4, msg=key)


@pytest.mark.parametrize("launcher", [["--multi_gpu"], FSDP2], ids=["ddp", "fsdp2"])
def test_the_monitor_reads_in_one_process_while_the_other_waits(
    folder: Path, alone: tuple[list[dict[str, Any]], Path], launcher: list[str]
) -> None:
    name = "watched-fsdp2" if launcher is FSDP2 else "watched-ddp"
    size = ["--per_device_train_batch_size", "2"]
    log, _ = train(folder, name, launcher, *size, "--monitor_steps", "2", "--monitor_samples", "2")
    lines = [line for line in log if "likelihood/margin" not in line]
    losses, expected = (
        [line["loss"] for line in each if "loss" in line] for each in (lines, alone[0])
    )
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)
    monitor = folder / name / "monitor"
    if launcher is FSDP2:
        assert not monitor.exists()  # sharded weights are not read
        return
    history = MonitorFolder(monitor).history()
    assert [reading.step for reading in history.readings] == [0, 2, 4, 6]
    assert json.loads((monitor / "summary.json").read_text())["ended"] is True


def test_coupled_rows_of_two_processes_equal_two_parts_of_one(folder: Path) -> None:
    """The rows that one process sees together are those of an accumulation part where there is one.

    Process 0 of two takes rows 0, 2, 4, 6 of every eight, so the single process reads them in that
    order. The last row leaves process 1 without any.
    """
    rows: list[Any] = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for i, row in enumerate(pairs(17, seed=2))
        for side in [("chosen", "rejected")[i // 2 % 2]]
    ]
    parts = [rows[i:16:2][4 * j : 4 * j + 4] for j in (0, 1) for i in (0, 1)]
    write_jsonl(folder / "shared.jsonl", rows)
    write_jsonl(folder / "parts.jsonl", [*(row for part in parts for row in part), rows[16]])
    common = [
        "--loss_type", "bco", "--loss_weights", "1.0", "--eval_strategy", "no",
        "--train_sampling_strategy", "sequential", "--per_device_train_batch_size", "4",
        "--num_train_epochs", "1", "--token_budget", "45", "--save_strategy", "no",
    ]  # fmt: skip
    expected, _ = train(
        folder, "parts", [], *common, "--dataset_name", str(folder / "parts.jsonl"),
        "--gradient_accumulation_steps", "2",
    )  # fmt: skip
    for name, launcher in (("ddp", ["--multi_gpu"]), ("fsdp2", FSDP2)):
        log, _ = train(
            folder, f"coupled-{name}", launcher, *common,
            "--dataset_name", str(folder / "shared.jsonl"), "--gradient_accumulation_steps", "1",
        )  # fmt: skip
        assert len(log) == len(expected) == 4
        for line, expected_line in zip(log, expected, strict=True):
            assert line.keys() == expected_line.keys()
            for key, value in expected_line.items():
                if not any(word in key for word in CLOCK):
                    assert line[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (name, key)


def test_a_sharded_run_resumes(folder: Path, alone: tuple[list[dict[str, Any]], Path]) -> None:
    arguments = ["--per_device_train_batch_size", "2", "--max_steps", "6"]
    checkpoint = folder / "fsdp2" / "checkpoint-4"
    if not checkpoint.exists():
        train(folder, "fsdp2", FSDP2, "--per_device_train_batch_size", "2")
    log, _ = train(
        folder, "resumed", FSDP2, *arguments, "--resume_from_checkpoint", str(checkpoint)
    )
    losses = [line["loss"] for line in log if "loss" in line]
    expected = [line["loss"] for line in alone[0] if "loss" in line]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_a_moving_reference_moves_alike_where_weights_are_sharded(folder: Path) -> None:
    arguments = ["--max_steps", "3", "--eval_strategy", "no", "--save_steps", "3"]
    arguments += ["--sync_ref_model", "true", "--ref_model_sync_steps", "1"]
    logs = [
        train(folder, name, launcher, *arguments, "--per_device_train_batch_size", rows)[0]
        for name, launcher, rows in (("moving", [], "4"), ("moving-sharded", FSDP2, "2"))
    ]
    ours, theirs = ([line["loss"] for line in log if "loss" in line] for log in logs)
    assert ours == pytest.approx(theirs, abs=1e-5)
    expected, found = (
        load_file(folder / name / "checkpoint-3" / "reference.safetensors")
        for name in ("moving", "moving-sharded")
    )
    start = load_file(folder / "reference" / "model.safetensors")
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=2e-4, msg=key)
        assert not torch.allclose(weight, start[key], atol=1e-2), key
