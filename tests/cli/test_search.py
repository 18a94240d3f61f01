"""`tokenq search` from the command line to its files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenq.cli.main import main
from tokenq.data.encoding import encode_prompt
from tokenq.judges.responses import read_responses
from tokenq.models.pair import load_pair
from tokenq.search import beam_search, sample
from tokenq.search.methods import METHODS

ROWS: list[dict[str, Any]] = [
    {"prompt": "A warm film", "answer": "yes"},
    {"prompt": "The plot is", "completion": "dull"},
    {"prompt": "The plot is"},
    {"prompt": [{"role": "user", "content": "Write one sentence."}]},
]
SHORT = ["--max_new_tokens", "6"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    return line


def test_prompts_become_responses_a_page_a_picture_and_a_summary(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["search", *models, "--prompts", str(data), "--out", str(out), "--num_beams", "3"]
    assert main([*command, *SHORT, "--trace", "--show", "1", "--batch_size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "row 0" in printed
    assert "row 1" not in printed
    assert "4 prompts, 12 responses, 72 tokens" in printed

    pair = load_pair(models[1], models[3])
    expected = beam_search(pair, [row["prompt"] for row in ROWS], 3, 6)
    records = lines(out / "search.jsonl")
    assert [record["row"] for record in records] == [0, 1, 2, 3]
    for record, row in zip(records, expected, strict=True):
        assert [each["token_ids"] for each in record["responses"]] == [r.token_ids for r in row]
        for found, result in zip(record["responses"], row, strict=True):
            assert found["score"] == pytest.approx(result.score, abs=1e-4)
            assert found["rewards"] == pytest.approx(result.rewards(0.1).tolist(), abs=1e-4)
            assert found["log_ratio"] == pytest.approx(sum(found["rewards"]) / 0.1, abs=1e-3)
            assert len(found["offsets"]) == len(found["tokens"]) == len(found["token_ids"])
            assert found["offsets"][-1][1] == len(found["text"])
        trace = json.loads((out / record["trace"]).read_text())
        assert sum(node["fate"] == "chosen" for node in trace["nodes"]) == 3
        assert (out / f"trace_{record['row']}.png").read_bytes()[:4] == b"\x89PNG"
    assert records[0]["answer"] == "yes"
    assert records[1]["given"] == {"completion": "dull"}

    summary = json.loads((out / "summary.json").read_text())
    assert summary["method"] == "beam"
    assert summary["num_beams"] == 3
    assert summary["prompts"] == 4
    assert summary["search/length"] == 6
    assert summary["search/finish_length"] == 1
    best = [row[0].log_ratio or 0.0 for row in expected]
    assert summary["search/log_ratio"] == pytest.approx(sum(best) / 4, abs=1e-3)
    assert "search/tokens_per_second" in summary
    assert "<svg" not in (out / "index.html").read_text()  # drawn by the page's own script
    # What is written is what the judges' command reads.
    assert len(next(iter(read_responses(out / "search.jsonl").texts.values()))) == 3


def test_an_interrupted_run_goes_on_and_other_settings_are_refused(
    models: list[str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sampled = ["--method", "sample", "--num_return_sequences", "2", *SHORT, "--seed", "3"]
    command = ["search", *models, "--data", str(data), *sampled, "--show", "0"]
    assert main([*command, "--out", str(whole)]) == 0

    real = METHODS["sample"].function
    calls: list[Any] = []

    def stops(*given: Any, **options: Any) -> Any:
        if given[1]:  # without prompts, options are checked
            calls.append(given[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **options)

    one_by_one = [*command, "--out", str(broken), "--batch_size", "1"]
    with monkeypatch.context() as patched:
        patched.setitem(METHODS["sample"].__dict__, "function", stops)
        assert main(one_by_one) == 130
    assert not (broken / "search.jsonl").exists()
    assert len(lines(broken / "search.jsonl.0.part")) == 2
    assert main([*command, "--out", str(broken), "--batch_size", "3"]) == 0

    def answers(folder: Path) -> list[list[list[int]]]:
        records = lines(folder / "search.jsonl")
        return [[each["token_ids"] for each in record["responses"]] for record in records]

    assert answers(broken) == answers(whole)
    # The first of equal prompts is answered as by the function itself, the second otherwise.
    pair = load_pair(models[1], models[3])
    [direct] = sample(pair, ["The plot is"], 2, 6, seed=3)
    assert answers(whole)[1] == [each.token_ids for each in direct]
    assert answers(whole)[1] != answers(whole)[2]

    capsys.readouterr()
    assert main([*command, "--out", str(whole), "--temperature", "0.5"]) == 2
    assert "its temperature is 1.0, now it is 0.5" in error_of(capsys)


def test_a_single_prompt_is_answered_in_the_terminal(
    models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    single = ["search", *models, "--prompt", "The plot is", *SHORT]
    assert main([*single, "--num-beams", "2", "--stream"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:6]] == list("123456")
    assert "log-ratio" in printed
    assert main([*single, "--method", "reward_guided", "--reward", "length"]) == 0
    assert main([*single, "--method", "best_of_n", "--n", "3", "--judge", "length"]) == 0
    assert main([*single, "--method", "best_of_n", "--n", "3", "--judge", "likelihood"]) == 0
    guided = ["--method", "alignment_aware", "--search", "beam", "--num_beams", "2"]
    assert main([*single, *guided]) == 0
    assert "KL" in capsys.readouterr().out
    assert main([*single, "--method", "proxy_tuning", "--base", models[3]]) == 0


def test_long_and_malformed_rows_are_named_or_left_out(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "The plot is " * 60}, {"question": "?"}, ROWS[0]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = ["search", *models, "--prompts", str(data), "--out", str(out), *SHORT]
    assert main([*command, "--limit", "1"]) == 2
    assert f"{data}, line 1: its prompt has" in error_of(capsys)
    assert main(command) == 2
    assert f"{data}, line 2: has the fields question; accepted: prompt" in error_of(capsys)
    assert not out.exists()
    assert main([*command, "--skip_bad_rows"]) == 0
    first, second = lines(out / "search.jsonl")
    assert "more than the 128 that the models read" in first["skipped"]
    assert second["row"] == 2
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["prompts"], summary["rejected"]) == (1, 1)
    assert len(lines(out / "rejects.jsonl")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "beem"], "method is 'beem'; did you mean beam?"),
        (["--method", "tarot"], "method is 'tarot'; accepted: greedy, sample, beam"),
        (["--method", "greedy", "--num_beams", "3"], "--num_beams belongs to beam"),
        (["--num_beamz", "3"], "unknown option --num_beamz; did you mean --num_beams?"),
        (["--num_beams", "0"], "num_beams is 0; accepted: 1 or more"),
        (["--num_beams", "five"], "num_beams is 'five'; accepted: a whole number"),
        (["--num_beams", "9999"], "num_beams is 9999; accepted: up to 397, the size of the voc"),
        (["--repetition_penalty", "-1"], "repetition_penalty is -1.0; accepted: above 0"),
        (["--early_stopping", "soon"], "early_stopping is 'soon'; accepted: true, false, never"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0; accepted: 1 or more"),
        (["--max_new_tokens", "126"], "line 1: its prompt has"),
        (["--score", "log_ratio"], "needs a reference; accepted: --reference"),
        (["--score", "beauty"], "score is 'beauty'; accepted: likelihood, log_ratio"),
        (["--method", "alignment_aware"], "needs a reference; accepted: --reference"),
        (["--method", "value_guided"], "method value_guided needs --value; accepted: MODULE:FUN"),
        (["--method", "value_guided", "--value", "no:f"], "function 'no:f': No module named 'no'"),
        (["--method", "reward_guided", "--reward", "luck"], "judge 'luck' is of no known kind"),
        (["--method", "alignment_aware", "--search", "mcts"], "search is 'mcts'; accepted: gr"),
        (["--reference", "OTHER"], "do not share a vocabulary"),
        (["--method", "proxy_tuning", "--base", "OTHER"], "do not share a vocabulary"),
        (["--method", "best_of_n", "--judge", "beauty"], "judge 'beauty' is of no known kind"),
        (["--method", "best_of_n"], "needs a reference; accepted: --reference"),
        (["--prompts", "no-such.jsonl"], "no-such.jsonl: no such file"),
        (["--prompt", "x"], "--prompt and --prompts are both given"),
        (["--stream"], "--stream shows one response"),
        (["--beta", "0"], "--beta is 0.0; accepted: a number above 0"),
        (["--limit", "0"], "limit is 0; accepted"),
        (["--show", "-1"], "--show is -1; accepted: 0 or more"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_input_to_mend_is_one_line_before_weights_are_read(
    options: list[str],
    message: str,
    models: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from small_pairs import random_model, small_tokenizer

    other = tmp_path / "other"
    tokenizer = small_tokenizer(300)
    random_model("llama", len(tokenizer), 3).save_pretrained(other)
    tokenizer.save_pretrained(other)
    for folder in (models[1], other):
        (Path(folder) / "model.safetensors").write_bytes(b"no weights")
    given = [str(other) if option == "OTHER" else option for option in options]
    command = ["search", "--policy", models[1], "--prompts", str(data), "--out"]
    assert main([*command, str(tmp_path / "o"), *given]) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "o" / "search.jsonl").exists()


def test_nothing_to_answer_and_nowhere_to_write_are_said(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *models]) == 2
    assert "nothing to answer; accepted: --prompts with rows, or --prompt" in error_of(capsys)
    assert main(["search", *models, "--prompts", str(data)]) == 2
    assert "--prompts needs --out" in error_of(capsys)
    assert main(["search", *models, "--prompts", str(data), "--out", str(data)]) == 2
    assert "is a file; accepted: a folder" in error_of(capsys)


def test_help_names_every_method_and_all_options_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name}: " in told for name in METHODS)
    assert "--num_beams 5" in " ".join(told.split())
    assert main(["search", "--method", "beam", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--early_stopping {true,false,never}" in told
    assert "(default: 5)" in told
    assert "--temperature" not in told


def test_a_prompt_through_the_chat_template(models: list[str], data: Path, tmp_path: Path) -> None:
    data.write_text(json.dumps({"prompt": "Hello"}) + "\n")
    out = tmp_path / "out"
    command = ["search", *models, "--prompts", str(data), "--out", str(out), "--chat", *SHORT]
    assert main([*command, "--method", "greedy"]) == 0
    [record] = lines(out / "search.jsonl")
    assert record["prompt"] == [{"role": "user", "content": "Hello"}]
    pair = load_pair(models[1], models[3])
    ids = encode_prompt(pair.tokenizer, record["prompt"])
    [[direct]] = beam_search(pair, [ids], 1, 6)
    assert record["responses"][0]["token_ids"] == direct.token_ids


def test_another_judge_under_the_same_name_is_another_search(
    models: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    judge = "def score(prompts, responses):\n    return [float(len(each)) for each in responses]\n"
    (tmp_path / "own_judge.py").write_text(judge)
    command = ["search", *models, "--prompts", str(data), "--out", "out", *SHORT]
    command += ["--method", "best_of_n", "--n", "2", "--judge", "python:own_judge:score"]
    assert main(command) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["judge"] == "python:own_judge:score"
    assert len(settings["judge_identity"]["source"]) == 64
    assert main(command) == 0

    (tmp_path / "own_judge.py").write_text(judge.replace("float(len", "-float(len"))
    monkeypatch.delitem(sys.modules, "own_judge")
    capsys.readouterr()
    assert main(command) == 2
    assert "judge_identity" in error_of(capsys)
