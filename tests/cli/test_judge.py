"""`tokenq judge` from the command line to its files."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import always_first, judge_server
from small_pairs import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenq.cli.main import main
from tokenq.judges import endpoint, length_controlled, win_rate

OURS = [
    {"prompt": f"Sum {i}?", "response": "It is " + "so " * (i % 4) + str(i), "answer": i}
    for i in range(12)
]
THEIRS = [{"instruction": f"Sum {i}?", "output": f"Maybe {i + i % 3}"} for i in range(12)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that name both files and the folder."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ours, theirs = write(tmp_path / "ours.jsonl", OURS), write(tmp_path / "theirs.jsonl", THEIRS)
    return ["--responses", ours, "--baseline", theirs, "--out", str(tmp_path / "out")]


def read(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()
    return json.loads((tmp_path / "out" / "summary.json").read_text()), list(map(json.loads, lines))


def test_several_judges_become_a_table_verdicts_and_a_summary(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", *files, "--judge", "number", "--judge", "length?tie=1"]) == 0
    summary, lines = read(tmp_path)
    assert (summary["prompts"], summary["comparisons"], summary["identical"]) == (12, 12, 0)
    assert list(summary["judges"]) == ["number", "length?tie=1"]
    number = [line for line in lines if line["judge"] == "number"]
    # Ours is always right, theirs in every third row: those are ties.
    assert [line["preference"] for line in number] == [0.5, 1, 1] * 4
    assert [line["prompt"] for line in number] == [row["prompt"] for row in OURS]
    found = summary["judges"]["number"]
    assert found["win_rate"]["value"] == pytest.approx(10 / 12)
    preferences = [line["preference"] for line in number]
    differences = [len(line["ours"]) - len(line["theirs"]) for line in number]
    assert found["win_rate"]["low"] == win_rate(preferences).low
    controlled = length_controlled(preferences, differences)
    assert controlled is not None
    assert found["length_controlled"]["value"] == pytest.approx(controlled.value)
    longer = [0.5 if abs(each) <= 1 else float(each > 0) for each in differences]
    [agreement] = summary["agreement"]
    same = sum(a == b for a, b in zip(preferences, longer, strict=True)) / 12
    assert agreement["judges"] == ["number", "length?tie=1"]
    assert agreement["same"] == pytest.approx(same)
    printed = capsys.readouterr().out
    assert "at equal length" in printed
    assert "number and length?tie=1 agree on" in printed


def test_an_endpoint_is_asked_and_its_taste_for_the_first_is_shown(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(always_first) as server:
        judge = f"endpoint:m?base_url={server.url}"
        assert main(["judge", *files, "--both_orders", "--judge", judge]) == 0
    assert len(server.bodies) == 24
    summary, lines = read(tmp_path)
    found = summary["judges"][judge]
    assert found["win_rate"]["value"] == 0.5
    assert found["position"]["first"]["value"] == found["position"]["inconsistent"] == 1
    assert [each["ours_first"] for each in lines[0]["asked"]] in ([True, False], [False, True])
    assert lines[0]["asked"][0]["answer"] == "[[A]]"
    assert "100.0 % of comparisons were decided by the order" in capsys.readouterr().out


def test_answers_had_before_a_failure_are_not_asked_for_again(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(failures=[None, None, None, 403]) as server:
        judge = f"endpoint:m?base_url={server.url}&concurrency=1"
        command = ["judge", *files, "--judge", judge]
        assert main(command) == 2
        assert "HTTP 403" in capsys.readouterr().err
        assert not (tmp_path / "out" / "verdicts.jsonl").exists()
        assert main(command) == 0
        assert len(server.bodies) == 12 + 1
        summary, _ = read(tmp_path)
        assert main(command) == 0
        assert len(server.bodies) == 12 + 1
        assert read(tmp_path)[0] == summary


def test_a_killed_run_goes_on_where_it_was(files: list[str], tmp_path: Path) -> None:
    with judge_server(seconds=0.1) as server:
        judge = f"endpoint:m?base_url={server.url}&concurrency=1"
        command = [sys.executable, "-m", "tokenq", "judge", *files, "--judge", judge]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        part = tmp_path / "out" / "verdicts.jsonl.part"
        deadline = time.monotonic() + 60
        while not (part.exists() and part.read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = part.read_bytes().count(b"\n")
        asked = len(server.bodies)
        assert main(["judge", *files, "--judge", judge]) == 0
        assert len(server.bodies) - asked == 12 - kept
    assert len(read(tmp_path)[1]) == 12


def test_models_judge_from_the_command_line(files: list[str], tmp_path: Path) -> None:
    policy, reference = (save_model(tmp_path / name, seed=n) for n, name in enumerate("pq"))
    judge = f"implicit:{policy}?reference={reference}"
    assert main(["judge", *files, "--judge", judge, "--chat"]) == 0
    summary, lines = read(tmp_path)
    assert lines[0]["prompt"] == [{"role": "user", "content": "Sum 0?"}]
    scores = summary["judges"][judge]["scores"]
    assert scores["difference"] == pytest.approx(scores["ours"] - scores["theirs"])
    assert len(summary["judges"][judge]["identity"]["policy"]) == 32


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--judge", "gpt"], "judge 'gpt' is of no known kind; accepted: lexicon"),
        ([], "required: --judge"),
        (["--judge", "length", "--judge", "length"], "--judge names length twice"),
        (["--judge", "length", "--token_budget", "0"], "--token_budget is 0; accepted"),
        (["--judge", "length", "--seed", "-1"], "--seed is -1; accepted"),
        (["--judge", "number:gold"], "12 comparisons have no field 'gold'"),
        (["--judge", "reward:/no/such"], "reward model '/no/such'"),
        (["--judge", "length", "--responses", "/no/such.jsonl"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    assert main(["judge", *files, *extra]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_prompts_of_one_side_only_are_named(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "theirs.jsonl", THEIRS[:-2])
    command = ["judge", *files, "--judge", "length"]
    assert main(command) == 2
    assert "no response to 2 of the 12 prompts" in capsys.readouterr().err
    assert main([*command, "--matched_only"]) == 0
    assert read(tmp_path)[0]["comparisons"] == 10
    assert main([*command, "--matched_only", "--seed", "3"]) == 2
    assert "its seed is 0, now it is 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_model_behind_the_endpoint(
    files: list[str], tmp_path: Path, bundled_model: Path
) -> None:
    """The bundled model answers with the likelier letter; a small judge is mostly its order."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    model = AutoModelForCausalLM.from_pretrained(bundled_model).eval()
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]

    def reply(question: str) -> str:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text + "[[", return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(**ids).logits[0, -1, letters]
        return f"[[{'AB'[int(logits.argmax())]}]]"

    with judge_server(reply=reply) as server:
        judge = f"endpoint:smollm2?base_url={server.url}&concurrency=2"
        assert main(["judge", *files, "--both_orders", "--judge", judge]) == 0
    summary, _ = read(tmp_path)
    [found] = summary["judges"].values()
    assert found["unreadable"] == 0
    assert found["position"]["first"]["count"] == 24
    consistent = 1 - found["position"]["inconsistent"]
    assert found["win_rate"]["wins"] + found["win_rate"]["losses"] == round(12 * consistent)
