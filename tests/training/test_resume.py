"""A run that is killed and started again ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_training import pairs, save_model, tiny_llama, tiny_tokenizer, tokenised, write_jsonl

from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.training import PreferenceConfig, PreferenceTrainer, checkpoints

DRIVER = Path(__file__).parents[1] / "support" / "killed_training.py"
CLOCK = ("runtime", "per_second")


def history(state: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log lines without what a clock tells."""
    return [
        {key: value for key, value in line.items() if not any(word in key for word in CLOCK)}
        for line in state
    ]


def run(moment: str, folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DRIVER), moment, *arguments, "--output_dir", str(folder)]
    environment = {**os.environ, "TOKENQ_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def arguments(folder: Path) -> list[str]:
    save_model(folder / "base", tiny_llama())
    write_jsonl(folder / "train.jsonl", pairs(22))
    write_jsonl(folder / "eval.jsonl", pairs(5, seed=1))
    settings = {
        "model_name_or_path": str(folder / "base"),
        "dataset_name": str(folder / "train.jsonl"),
        "eval_dataset_name": str(folder / "eval.jsonl"),
        "eval_strategy": "steps",
        "eval_steps": 4,
        "loss_type": ["sigmoid", "sft"],
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": "1e-2",
        "max_steps": 8,
        # Log lines fall between checkpoints: a resumed run must know half a window.
        "logging_steps": 3,
        "save_steps": 2,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    config = folder / "config.yaml"
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    return ["--config", str(config)]


@pytest.mark.processes
@pytest.mark.slow
def test_killed_at_five_moments_the_run_ends_as_if_unbroken(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finished = run("never", unbroken, tmp_path / "home", *args)
    assert finished.returncode == 0, finished.stderr
    for moment in ("optimizer:2", "publish:4", "rotate:4", "step:6", "final"):
        killed = run(moment, broken, tmp_path / "home", *args)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        for checkpoint in broken.glob("checkpoint-*"):
            assert checkpoints.incomplete(checkpoint) is None
        assert not (broken / "model.safetensors").exists()
    finished = run("never", broken, tmp_path / "home", *args)
    assert finished.returncode == 0, finished.stderr
    states = [json.loads((d / "trainer_state.json").read_text()) for d in (unbroken, broken)]
    assert history(states[0]["log_history"]) == history(states[1]["log_history"])
    ours, theirs = (load_file(d / "model.safetensors") for d in (unbroken, broken))
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    references = [json.loads((d / "reference.json").read_text()) for d in (unbroken, broken)]
    assert references[0]["weight_hash"] == references[1]["weight_hash"] == weight_hash(tiny_llama())
    assert not list(broken.glob(".*.part"))


@pytest.mark.processes
@pytest.mark.slow
def test_killed_from_outside_at_any_time(tmp_path: Path) -> None:
    args = [*arguments(tmp_path), "--max_steps", "400", "--save_steps", "1", "--eval_steps", "500"]
    folder = tmp_path / "out"
    environment = {**os.environ, "TOKENQ_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    reached = 0
    for session in range(2):
        command = [sys.executable, str(DRIVER), "never", *args, "--output_dir", str(folder)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                # Anywhere within a step or a save: the moment is not chosen.
                steps = [int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")]
                if max(steps, default=0) >= reached + 5 + session:
                    break
            assert process.poll() is None
            process.kill()
        last = checkpoints.last_complete(folder)
        assert last is not None
        step = json.loads((last / "trainer_state.json").read_text())["global_step"]
        assert step > reached
        reached = step


def resumable(folder: Path, model: Any = None, **options: Any) -> PreferenceTrainer:
    return PreferenceTrainer(
        tiny_llama() if model is None else model,
        options.pop("ref_model", None),
        args=PreferenceConfig(
            output_dir=str(folder),
            max_steps=6,
            save_steps=3,
            logging_steps=2,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            disable_tqdm=True,
            use_cpu=True,
            **options.pop("settings", {}),
        ),
        train_dataset=tokenised(14),
        processing_class=tiny_tokenizer(),
        **options,
    )


@pytest.mark.parametrize("live", [False, True], ids=["cache", "live"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_resumed_run_keeps_trajectory_reference_and_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool, adapter: bool
) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    options: dict[str, Any] = {"settings": {"precompute_ref_log_probs": not live}}
    if adapter:
        # Dropout makes the trajectory depend on the state of the random numbers.
        options["peft_config"] = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_dropout=0.3, target_modules="all-linear"
        )
    whole = resumable(tmp_path / "whole", **options)
    whole.train()
    again = resumable(tmp_path / "whole", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert history(again.state.log_history) == history(whole.state.log_history)
    for (name, ours), theirs in zip(
        again.model.named_parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert again.reference_identity == whole.reference_identity


def test_a_moved_reference_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    first = resumable(tmp_path / "out")
    first.train()
    # The classic mistake: the half-trained weights become policy and reference at once.
    moved = resumable(tmp_path / "out", model=first.model)
    with pytest.raises(UserError, match="the reference has changed"):
        moved.train(resume_from_checkpoint=True)


def test_incomplete_checkpoints_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def checkpoint(step: int, **files: str) -> None:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("_dot_", ".")).write_text(text)

    whole = {
        "trainer_state_dot_json": "{}",
        "model_dot_safetensors": "",
        "optimizer_dot_pt": "",
    }
    checkpoint(2, **whole)
    checkpoint(10, **{**whole, "trainer_state_dot_json": '{"global'})
    checkpoint(12, model_dot_safetensors="")
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-10: its trainer_state.json is cut off" in caplog.text
    assert "checkpoint-12: it has no trainer_state.json" in caplog.text
    with pytest.raises(UserError, match="cut off"):
        checkpoints.resolve_resume(str(tmp_path / "checkpoint-10"), tmp_path)
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoints.resolve_resume(True, tmp_path / "empty")
