"""Logs of finished runs: real ones of TRL and of this package, and other trainers' words."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_training import pairs, tiny_llama, tiny_tokenizer, write_jsonl

from tokenq.errors import UserError
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.log_names import trl_line, trl_name
from tokenq.monitor.logs import run_history
from tokenq.training import PreferenceConfig, PreferenceTrainer

REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
LOGPS = ["logps/chosen", "logps/rejected"]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 2,
    "use_cpu": True,
    "gradient_checkpointing": False,
}


def checked(folder: Path) -> None:
    """Whether a run of `SETTINGS` is read as it logged itself."""
    history = run_history(folder)
    assert history.setup is None
    assert not history.readings
    training = [line for line in history.logs if "rewards/chosen" in line]
    assert [line["step"] for line in training] == [2, 4]
    for line in training:
        assert all(math.isfinite(line[name]) for name in [*REWARDS, *LOGPS, "loss"])
        gap = line["rewards/chosen"] - line["rewards/rejected"]
        assert line["rewards/margins"] == pytest.approx(gap, abs=1e-5)
    [evaluation] = [line for line in history.logs if "eval_rewards/chosen" in line]
    assert evaluation["step"] == 4
    assert math.isfinite(evaluation["eval_logps/rejected"])
    newest = folder / "checkpoint-4"
    assert run_history(newest).logs == history.logs
    assert run_history(newest / "trainer_state.json").logs == history.logs


def test_a_run_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    rows = datasets.Dataset.from_list(pairs(12))
    trainer = trl.DPOTrainer(
        tiny_llama(),
        tiny_llama(),
        args=trl.DPOConfig(
            output_dir=str(tmp_path), bf16=False, report_to="tensorboard", **SETTINGS
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    checked(tmp_path)
    states = {line["step"]: line for line in run_history(tmp_path).logs if "loss" in line}
    for state in tmp_path.rglob("trainer_state.json"):
        state.unlink()
    events = {line["step"]: line for line in run_history(tmp_path).logs if "loss" in line}
    assert list(events) == list(states) == [2, 4]
    for step, line in states.items():
        for name in (*REWARDS, *LOGPS, "loss"):
            assert events[step][name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    assert "eval_rewards/chosen" in events[4]


def test_a_run_of_ours(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = PreferenceTrainer(
        tiny_llama(),
        None,
        args=PreferenceConfig(output_dir=str(out), report_to="none", **SETTINGS),
        train_dataset=write_jsonl(tmp_path / "train.jsonl", pairs(12)),
        eval_dataset=write_jsonl(tmp_path / "eval.jsonl", pairs(2, seed=1)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    checked(out)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("rewards/chosen", "rewards/chosen"),
        ("eval_rewards/chosen", "eval_rewards/chosen"),
        ("train/rewards/chosen", "rewards/chosen"),
        ("eval/rewards/margins", "eval_rewards/margins"),
        ("log_probs/rejected", "logps/rejected"),
        ("eval_log_probs/chosen", "eval_logps/chosen"),
        ("rewards_train/accuracies", "rewards/accuracies"),
        ("rewards_eval/chosen", "eval_rewards/chosen"),
        ("logps_test/chosen", "eval_logps/chosen"),
        ("loss/train", "loss"),
        ("loss/eval", "eval_loss"),
        ("train/reject_reward", "rewards/rejected"),
        ("acc", "rewards/accuracies"),
        ("rewards/accuracy", "rewards/accuracies"),
        ("rewards/margin", "rewards/margins"),
        ("rewards/average", "rewards/average"),
        ("run 3 - train/logps/chosen", "logps/chosen"),
        ("likelihood/chosen_reward", "likelihood/chosen_reward"),
        ("grad_norm", "grad_norm"),
        ("constructor", "constructor"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert trl_name(theirs) == ours


def test_lines_get_the_margin_and_keep_the_rest() -> None:
    line = trl_line({"step": 1, "chosen_reward": -1.0, "reject_reward": -3.0, "mine": "text"})
    assert line == {
        "step": 1,
        "rewards/chosen": -1.0,
        "rewards/rejected": -3.0,
        "rewards/margins": 2.0,
        "mine": "text",
    }
    assert trl_line({"rewards/chosen": 5.0, "chosen_reward": 1.0}) == {"rewards/chosen": 5.0}
    assert trl_line({"train_loss": 0.5}) == {"loss": 0.5}
    last = {"train_loss": 0.5, "train_runtime": 9.0}
    assert trl_line(last) == last


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_wandb(tmp_path: Path) -> None:
    path = write(
        tmp_path / "wandb.csv",
        '"train/global_step","a - train/rewards/chosen","a - train/rewards/chosen__MIN","_step"\n'
        "10,-0.5,-0.6,0\n"
        "20,,,1\n"
        "30,nan,,2\n",
    )
    logs = run_history(path).logs
    assert [line["step"] for line in logs] == [10, 20, 30]
    assert logs[0]["rewards/chosen"] == -0.5
    assert "rewards/chosen" not in logs[1]
    assert math.isnan(logs[2]["rewards/chosen"])
    assert not any("MIN" in name for line in logs for name in line)


def test_a_resumed_log_counts_once(tmp_path: Path) -> None:
    steps = [1, 2, 2, 3, 4, 3, 4, 5]
    lines = [json.dumps({"step": step, "number": at}) for at, step in enumerate(steps)]
    path = write(tmp_path / "log.jsonl", "\n".join(lines) + '\n{"step": 6, "nu')
    logs = run_history(path).logs
    assert [(line["step"], line["number"]) for line in logs] == [
        (1, 0), (2, 1), (2, 2), (3, 3), (3, 5), (4, 6), (5, 7),
    ]  # fmt: skip


def test_the_furthest_state_of_a_folder_counts(tmp_path: Path) -> None:
    for folder, step in (("checkpoint-9", 9), ("checkpoint-10", 10), (".", 8)):
        (tmp_path / folder).mkdir(exist_ok=True)
        history = {"log_history": [{"step": step, "loss": 1.0}]}
        write(tmp_path / folder / "trainer_state.json", json.dumps(history))
    assert [line["step"] for line in run_history(tmp_path).logs] == [10]


def test_the_monitor_s_folder_comes_first(tmp_path: Path) -> None:
    state = {"log_history": [{"step": 1, "loss": 1.0}]}
    write(tmp_path / "trainer_state.json", json.dumps(state))
    with MonitorFolder.of(tmp_path) as folder:
        folder.resume(0)
        assert run_history(tmp_path).logs == [{"step": 1, "loss": 1.0}]
        folder.append_log({"step": 2, "log_probs/chosen": -5.0})
    assert run_history(tmp_path).logs == [{"step": 2, "logps/chosen": -5.0}]
    assert run_history(tmp_path / "monitor").logs == [{"step": 2, "logps/chosen": -5.0}]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("trainer_state.json", "{", "is no JSON"),
        ("trainer_state.json", '{"best": 1}', "has no `log_history`"),
        ("log.jsonl", '{"step": 1}\nnothing\n', "line 2 is no JSON"),
        ("log.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("log.jsonl", '{"step": 1}\n{"loss": 2}\n', r"line 2 has no step \(loss\)"),
        ("log.csv", "step,loss\n1.5,2\n", r"line 2 has step 1\.5; accepted"),
        ("log.csv", "step,loss\nten,2\n", r"line 2 has no step \(step, loss\)"),
        ("log.csv", "step,loss\nnan,2\n", "line 2 has step nan; accepted"),
        ("log.csv", "step,loss\n1e300,2\n", r"line 2 has step 1e\+300; accepted"),
        ("log.jsonl", '{"step": NaN}\n', "line 1 has step nan; accepted"),
        ("log.jsonl", '{"step": -Infinity}\n', "line 1 has step -inf; accepted"),
        ("log.jsonl", '{"step": 99999999999999999999}\n', "line 1 has step 9+; accepted"),
        ("trainer_state.json", '{"log_history": [{"step": 1e999}]}', "line 1 has step inf"),
        ("log.csv", "loss\n2\n", r"line 2 has no step \(loss\)"),
        ("log.txt", "", "is a .txt; accepted"),
    ],
)
def test_files_that_are_no_logs(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(UserError, match=says) as raised:
        run_history(path)
    assert str(path) in str(raised.value)
    assert "accepted" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["trainer_state.json", "log.jsonl", "log.csv"])
def test_files_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes('step,loss\n{"note": "größer"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte \d+\); accepted") as raised:
        run_history(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_line_that_is_torn_within_a_character_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes('{"step": 1}\n{"note": "ü'.encode()[:-1])
    assert run_history(path).logs == [{"step": 1}]


def test_events_are_looked_for_where_trainers_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no deeper: not through everything below a home folder."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    write(deep / "events.out.tfevents.1.host", "")
    with pytest.raises(UserError, match="holds no logs of a run"):
        run_history(tmp_path)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run_history(tmp_path / "a" / "b")


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no logs of a run; accepted: a run's folder"):
        run_history(tmp_path)
    with pytest.raises(UserError, match="does not exist; accepted"):
        run_history(tmp_path / "nowhere")


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "events.out.tfevents.1.host", "")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run_history(tmp_path)
