"""`tokenq monitor` from the command line to its files."""

import csv
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trl
from histories import cut, made_history, made_logs
from peft import LoraConfig
from tiny_training import pairs, save_model, tiny_llama, tiny_tokenizer, write_jsonl

from tokenq.cli.main import main
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.measures import measured
from tokenq.monitor.readings import History
from tokenq.monitor.summary import write_summary

STEPS = (0, 40, 80)
PROBE = ["--held_out", "3", "--trained", "3", "--responses", "3", "--samples", "2",
         "--new_tokens", "4", "--device", "cpu"]  # fmt: skip


def written(root: Path, history: History, since: int = -1) -> None:
    """Write what a monitor would have written, of the steps after `since`."""
    with MonitorFolder(root) as folder:
        assert history.setup is not None
        folder.write_setup(history.setup)
        for reading in history.readings:
            if reading.step > since:
                folder.append_reading(reading)
        for line in history.logs:
            if line["step"] > since:
                folder.append_log(line)


@pytest.fixture(scope="module")
def history() -> History:
    return made_history("displacement", steps=STEPS, pairs=24)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    return line


def test_a_watched_run_becomes_page_summary_and_table(
    history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run" / "monitor"
    written(root, history)
    assert main(["monitor", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "negative chosen reward: expected or harmful?" in printed
    assert str(root / "report.html") in printed
    summary = json.loads((root / "summary.json").read_text())
    assert summary["ended"] is False  # the monitor itself says when its run has ended
    assert [each["name"] for each in summary["findings"]] == [x.name for x in findings(history)]
    assert "expected or harmful?" in (root / "report.html").read_text()
    with (root / "measures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert history.setup is not None
    for row in rows:
        if row["measure"] == "likelihood/chosen_reward":
            reading = next(each for each in history.readings if each.step == int(row["step"]))
            expected = measured(history.setup, reading)[row["measure"]]
            assert (float(row["mean"]), float(row["low"])) == (expected.mean, expected.low)
    # Its logs alone do not take the place of what was measured.
    state = tmp_path / "run" / "trainer_state.json"
    state.write_text(json.dumps({"log_history": list(history.logs)}))
    assert main(["monitor", str(state)]) == 2
    assert "holds what a monitor read of this run" in error_of(capsys)
    # The monitor's own folder may be named too.
    assert main(["monitor", str(root)]) == 0
    assert not (root / "monitor").exists()


def test_a_severity_can_fail_the_command(history: History, tmp_path: Path) -> None:
    worst = {each.severity for each in findings(history)}
    assert "alarm" in worst
    written(tmp_path / "run" / "monitor", history)
    assert main(["monitor", str(tmp_path / "run"), "--fail_on", "alarm"]) == 1
    logs = tmp_path / "logs.jsonl"
    logs.write_text("".join(json.dumps(line) + "\n" for line in made_logs("healthy").logs))
    command = ["monitor", str(logs), "--out", str(tmp_path / "out"), "--fail_on", "warning"]
    assert main(command) == 0


def test_logs_alone_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "checkpoint-200" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"log_history": list(made_logs("displacement").logs)}))
    assert main(["monitor", str(tmp_path), "--figures"]) == 0
    printed = capsys.readouterr().out
    assert "step 200 · log lines 20" in printed
    out = tmp_path / "monitor"
    assert json.loads((out / "summary.json").read_text())["ended"] is True
    assert "tokenq monitor RUN_DIR --data" in (out / "report.html").read_text()
    assert {path.name for path in (out / "figures").iterdir()} >= {"log_rewards.png"}
    # What was written beside the run does not hide its logs.
    assert main(["monitor", str(tmp_path)]) == 0


def test_a_run_that_goes_on_is_followed_to_its_end(
    history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    root = run / "monitor"

    def train() -> None:
        before = -1
        for step in STEPS:
            time.sleep(0.3)
            written(root, cut(history, step), since=before)
            before = step
        write_summary(root, history, ended=True)

    training = threading.Thread(target=train)
    training.start()
    assert main(["monitor", str(run), "--follow", "--interval", "0.05"]) == 0
    training.join()
    printed = capsys.readouterr().out
    steps = [line.split()[1] for line in printed.splitlines() if line.startswith("step ")]
    assert steps == ["0", "40", "80"]
    for each in findings(history):
        assert each.title.split()[0] in printed
    assert json.loads((root / "summary.json").read_text())["ended"] is True


def test_interrupting_ends_following_and_leaves_the_report(
    history: History, tmp_path: Path
) -> None:
    root = tmp_path / "run" / "monitor"
    written(root, history)
    code = "import sys; from tokenq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-u", "-c", code, "monitor", str(tmp_path / "run"), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step     80"):
                break
        process.send_signal(2)
        rest = process.stdout.read()
        assert process.wait(timeout=300) == 0
    assert "no longer following" in rest
    assert (root / "report.html").is_file()
    assert json.loads((root / "summary.json").read_text())["ended"] is False


def test_our_run_is_measured_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    base = save_model(tmp_path / "base", tiny_llama())
    train = write_jsonl(tmp_path / "train.jsonl", pairs(8))
    held_out = write_jsonl(tmp_path / "held.jsonl", pairs(6, seed=1))
    run = tmp_path / "run"
    settings = {
        "model_name_or_path": base, "dataset_name": train, "output_dir": run,
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-3,
        "logging_steps": 1, "save_steps": 2, "disable_tqdm": "true", "use_cpu": "true",
        "monitor": "false", "beta": 0.3,
    }  # fmt: skip
    assert main(["train", *(f"--{name}={value}" for name, value in settings.items())]) == 0
    command = ["monitor", str(run), "--data", str(held_out), "--train_data", str(train), *PROBE]
    assert main(command) == 0
    history = MonitorFolder.of(run).history()
    assert [reading.step for reading in history.readings] == [0, 2, 4]
    assert history.setup is not None
    assert (history.setup.beta, history.setup.reference) == (0.3, str(base))
    last = measured(history.setup, history.readings[-1])
    assert last["likelihood/train_margin"].mean > 0
    summary = json.loads((run / "monitor" / "summary.json").read_text())
    assert summary["ended"] is True
    assert summary["log_lines"] >= 4
    # The texts of samples are words, not ids.
    page = (run / "monitor" / "report.html").read_text()
    assert "Say what you think" in page
    before = (run / "monitor" / "readings.jsonl").read_text()
    assert main(command) == 0
    assert (run / "monitor" / "readings.jsonl").read_text() == before
    capsys.readouterr()
    assert main([*command, "--beta", "0.1"]) == 2
    assert "holds readings with other beta (0.3, now 0.1)" in error_of(capsys)


def test_a_run_of_trl_is_measured_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    base = save_model(tmp_path / "base", tiny_llama())
    run = tmp_path / "run"
    trainer = trl.DPOTrainer(
        str(base),
        args=trl.DPOConfig(
            output_dir=str(run), per_device_train_batch_size=4, max_steps=2, save_steps=1,
            logging_steps=1, learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True,
            bf16=False, gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(pairs(8)),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    held_out = write_jsonl(tmp_path / "held.jsonl", pairs(6, seed=1))
    out = tmp_path / "out"
    command = ["monitor", str(run), "--data", str(held_out), "--out", str(out), *PROBE]
    assert main(command) == 2
    assert "does not tell its beta; accepted: --beta" in error_of(capsys)
    assert main([*command, "--beta", "0.1"]) == 0
    history = MonitorFolder(out).history()
    assert [reading.step for reading in history.readings] == [0, 1, 2]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["log_lines"] >= 2
    assert "loss" in summary["measures"]
    assert not (run / "monitor").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-run"], "no-such-run does not exist; accepted: a run's folder"),
        ([".", "--interval", "0"], "--interval is 0.0; accepted: seconds above 0"),
        ([".", "--beta", "0.1"], "--beta is of use where checkpoints are measured"),
        ([".", "--held_out", "8"], "--held_out is of use where checkpoints are measured"),
        ([".", "--data", "x", "--beta", "-1"], "--beta is -1.0; accepted: a number above 0"),
        ([".", "--data", "x", "--follow"], "--follow looks at a run that goes on"),
        ([".", "--data", "x", "--max_length", "1"], "--max_length is 1; accepted: 2 or more"),
        ([".", "--fail_on", "note"], "--fail_on"),
        ([".", "--data", "x"], "has no checkpoints to measure; accepted"),
        (["."], "holds no logs of a run; accepted"),
        (["file.txt"], "file.txt is a .txt; accepted"),
        (["file.txt", "--follow"], "file.txt is a file; accepted: a run's folder"),
        ([".", "--out", "file.txt"], "--out: file.txt is a file; accepted: a folder"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("")
    assert main(["monitor", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_wrong_data_is_told_before_any_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "run" / "checkpoint-1", tiny_llama())
    (tmp_path / "sft.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    command = ["monitor", str(tmp_path / "run"), "--data", str(tmp_path / "sft.jsonl")]
    assert main(command) == 2
    assert "does not tell its reference; accepted: --reference" in error_of(capsys)
    command += ["--reference", str(tmp_path / "run" / "checkpoint-1"), "--beta", "0.1"]
    assert main(command) == 2
    assert "its rows are of kind 'sft'; accepted: preference pairs" in error_of(capsys)
    assert not (tmp_path / "run" / "monitor").exists()
    assert main([*command, "--responses", "-1"]) == 2
    assert "responses is -1; accepted: a whole number from 0" in error_of(capsys)


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, tokenq.cli.monitor as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print('loaded', *sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    shown, loaded = process.stdout.rsplit("loaded", 1)
    assert "--follow" in shown
    assert not {"torch", "numpy", "transformers", "matplotlib", "scipy"} & set(loaded.split())
