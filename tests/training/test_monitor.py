"""The monitor as a setting of `PreferenceTrainer` and of `tokenq train`."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from tiny_training import pairs, save_model, tiny_llama, tiny_tokenizer, tokenised, write_jsonl
from transformers.trainer_callback import TrainerCallback

from tokenq.cli.main import main
from tokenq.errors import UserError
from tokenq.models.reference import AdapterOff
from tokenq.monitor import Monitor, MonitorFolder
from tokenq.monitor.readings import Setup
from tokenq.training import PreferenceConfig, PreferenceTrainer
from tokenq.training.record import settings_of

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))


def trainer_with(
    folder: Path, rows: Any = None, ref_model: Any = None, peft_config: Any = None, **changes: Any
) -> PreferenceTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 2,
        "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "monitor_steps": 1, "monitor_samples": 0, "report_to": "none",
    }  # fmt: skip
    return PreferenceTrainer(
        tiny_llama(),
        ref_model,
        args=PreferenceConfig(**{**settings, **changes}),
        train_dataset=tokenised(10) if rows is None else rows,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def setup_of(folder: Path) -> Setup:
    setup = MonitorFolder.of(folder).history().setup
    assert setup is not None
    return setup


def monitors(trainer: PreferenceTrainer) -> list[TrainerCallback]:
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, Monitor)]


def test_it_is_on_unless_switched_off(tmp_path: Path) -> None:
    assert len(monitors(trainer_with(tmp_path / "on"))) == 1
    assert not monitors(trainer_with(tmp_path / "off", monitor=False))


@pytest.mark.parametrize(
    ("name", "options", "reference", "beta"),
    [
        ("its start", {}, "the policy after 0 steps", 0.1),
        ("its base", {"peft_config": LORA, "beta": 0.3}, "a model without a name", 0.3),
        ("a model", {"ref_model": "other", "beta": 0.3}, "a model without a name", 0.3),
        ("live", {"precompute_ref_log_probs": False}, "a model without a name", 0.1),
        ("a constant", {"ref_model": "uniform"}, "the policy after 0 steps", 0.1),
        ("none", {"loss_type": ["simpo"]}, "the policy after 0 steps", 1.0),
        (
            "moving",
            {"sync_ref_model": True, "ref_model_sync_steps": 1, "precompute_ref_log_probs": False},
            "the policy after 0 steps",
            0.1,
        ),
        ("two objectives", {"loss_type": ["sft", "ipo"], "beta": 0.2}, None, 0.2),
    ],
)
def test_what_it_reads_against(
    tmp_path: Path, name: str, options: dict[str, Any], reference: str | None, beta: float
) -> None:
    if options.get("ref_model") == "other":
        options = {**options, "ref_model": tiny_llama(seed=1)}
    trainer = trainer_with(tmp_path, **options)
    described = trainer.watched()

    trainer.train()

    setup = setup_of(tmp_path)
    assert setup.beta == beta
    assert reference is None or setup.reference == reference
    assert isinstance(described.reference, AdapterOff) == (name == "its base")
    first = MonitorFolder.of(tmp_path).history().readings[0]
    gap = abs((first.pairs.logps - setup.baseline.ref_logps).sum(1)).max()
    assert (gap > 1) == (name == "a model")


def test_answers_without_pairs_are_not_watched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(10)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    trainer = trainer_with(tmp_path / "run", source, loss_type=["sft"])

    with caplog.at_level(logging.INFO, "tokenq.monitor"):
        trainer.train()

    assert "off: sft learns from no pairs" in caplog.text
    assert not (tmp_path / "run" / "monitor").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"monitor_budget": 0.0}, "monitor_budget: must lie in"),
        ({"monitor_budget": 2.0}, "monitor_budget: must lie in"),
        ({"monitor_steps": 0}, "monitor_steps: must be positive"),
        ({"monitor_samples": -1}, "monitor_samples: must be 0 or more"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        PreferenceConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_a_run_may_go_on_with_other_settings_of_it(tmp_path: Path) -> None:
    one = PreferenceConfig(output_dir=str(tmp_path), use_cpu=True)
    other = PreferenceConfig(
        output_dir=str(tmp_path), use_cpu=True, monitor=False, monitor_steps=3, monitor_budget=0.1
    )

    assert settings_of(one) == settings_of(other)


def test_tokenq_train_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "base", tiny_llama())
    train = write_jsonl(tmp_path / "train.jsonl", pairs(12))
    held_out = write_jsonl(tmp_path / "eval.jsonl", pairs(5, seed=1))

    code = main(
        [
            "train", "--model_name_or_path", str(tmp_path / "base"), "--dataset_name", str(train),
            "--eval_dataset_name", str(held_out), "--eval_strategy", "steps", "--eval_steps", "4",
            "--output_dir", str(tmp_path / "out"), "--max_steps", "4", "--use_cpu", "true",
            "--per_device_train_batch_size", "4", "--monitor_steps", "2", "--report_to", "none",
        ]
    )  # fmt: skip

    assert code == 0
    folder = tmp_path / "out" / "monitor"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ended"] is True
    assert summary["readings"] == 3
    assert (folder / "report.html").is_file()
    assert "3 readings in" in capsys.readouterr().out
    assert {pair.source for pair in setup_of(tmp_path / "out").probe.pairs} == {"held_out", "train"}


def test_starting_over_removes_what_the_earlier_run_read(tmp_path: Path) -> None:
    save_model(tmp_path / "base", tiny_llama())
    train = write_jsonl(tmp_path / "train.jsonl", pairs(12))
    arguments = [
        "train", "--model_name_or_path", str(tmp_path / "base"), "--dataset_name", str(train),
        "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "true",
        "--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--report_to", "none",
    ]  # fmt: skip
    assert main([*arguments, "--monitor_steps", "1"]) == 0
    assert (tmp_path / "out" / "monitor" / "setup.json").exists()

    assert main([*arguments, "--monitor", "false", "--overwrite_output_dir"]) == 0

    assert not (tmp_path / "out" / "monitor").exists()
