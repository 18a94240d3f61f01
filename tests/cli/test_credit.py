"""`tokenq credit` from the command line to its files."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from small_pairs import random_model, save_model, small_tokenizer, with_adapter

from tokenq.cli.main import main

ROWS = [
    {"prompt": f"Review {i}:", "chosen": " A warm, funny film.", "rejected": " A dull mess."}
    for i in range(4)
]


def test_a_data_set_becomes_lines_a_page_and_a_summary(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["credit", *models, "--data", str(data), "--out", str(out), "--beta", "0.3"]
    assert main([*command, "--show", "1"]) == 0
    records = [json.loads(line) for line in (out / "credit.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == [0, 1, 2, 3]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["beta"] == 0.3
    assert summary["rows"] == 4
    assert summary["policy"] == models[1]
    margins = [record["margin"] for record in records]
    assert summary["rewards/margins"] == pytest.approx(sum(margins) / 4)
    assert summary["rewards/accuracies"] == sum(margin > 0 for margin in margins) / 4
    page = (out / "index.html").read_text()
    assert "measured against" in page
    assert models[1] in page
    printed = capsys.readouterr().out
    assert "row 0" in printed
    assert "row 1" not in printed
    assert "4 rows" in printed
    assert not list(out.glob("*.part"))

    # The same command finds all rows done; another beta is another run.
    before = (out / "credit.jsonl").read_text()
    assert main(command) == 0
    assert (out / "credit.jsonl").read_text() == before
    assert main([*command, "--beta", "0.1"]) == 2
    assert "its beta is 0.3, now it is 0.1" in capsys.readouterr().err


def test_an_adapter_alone_is_read_against_its_base(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_model(tmp_path / "base", seed=1)
    adapted = with_adapter(random_model("llama", len(small_tokenizer()), 1))
    for configuration in adapted.peft_config.values():
        configuration.base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    command = ["credit", "--policy", str(tmp_path / "adapter"), "--data", str(data)]
    assert main([*command, "--out", str(out), "--limit", "2", "--show", "0"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == 2
    assert summary["reference"] == str(base)
    assert summary["reference_hash"] != summary["policy_hash"]
    assert summary["rewards/chosen"] != 0


def test_a_single_response_in_the_terminal(
    models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    single = ["--prompt", "Review:", "--response", " A dull mess."]
    assert main(["credit", *models, *single]) == 0
    plain = capsys.readouterr().out
    assert "prefix value" in plain
    assert "</s>" in plain
    assert main(["credit", *models, *single, "--chat", "--alternatives", "0"]) == 0
    assert "user: Review:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to read"),
        (["--prompt", "x"], "--prompt is given without --response"),
        (["--prompt", "x", "--response", "y", "--out", "o"], "--data and --out belong to"),
        (["--data", "no-such.jsonl", "--out", "o"], "no-such.jsonl"),
        (["--data", "DATA", "--out", "o", "--beta", "-1"], "beta is -1.0; accepted"),
        (["--data", "DATA", "--out", "o", "--page_rows", "-1"], "--page_rows is -1; accepted"),
        (["--data", "DATA", "--out", "o", "--chat"], "belong to --prompt"),
        (["--data", "DATA", "--out", "o", "--estimator", "no"], "estimator is 'no'; accepted: pl"),
        (["--prompt", "x", "--response", "y", "--estimator", "no"], "estimator is 'no'; accepted"),
        (["--data", "DATA", "--out", "DATA"], "--out: "),
        (["--data", "DATA", "--out", "DATA", "--skip_bad_rows"], "cannot be written"),
        (["--data", "DATA", "--out", "o", "--device", "cuda:99"], "device 'cuda:99'"),
    ],
)
def test_input_to_mend_is_one_line_and_exit_code_2(
    options: list[str],
    message: str,
    models: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(data) if option == "DATA" else option for option in options]
    assert main(["credit", *models, *given]) == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "o/credit.jsonl").exists()


def test_a_policy_without_reference_is_refused(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["credit", *models[:2], "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "has no reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_malformed_rows_stop_the_run_or_are_set_aside(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a") as file:
        file.write('{"prompt": "Review:", "chosen": 3, "rejected": " A film."}\n')
    out = tmp_path / "out"
    command = ["credit", *models, "--data", str(data), "--out", str(out), "--show", "0"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "line 5" in error
    assert "chosen" in error
    assert main([*command, "--skip-bad-rows"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["rejected"]) == (4, 1)
    assert len((out / "rejects.jsonl").read_text().splitlines()) == 1


def test_what_is_kept_beside_the_rewards(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["credit", *models, "--data", str(data), "--out", str(out), "--streaming"]
    command += ["--facts", "--estimator", "centred", "words", "--parquet", "--show", "1"]
    assert main(command) == 0
    records = [json.loads(line) for line in (out / "credit.jsonl").read_text().splitlines()]
    for record in records:
        assert record["segments"]
        for side in record["responses"].values():
            assert list(side["estimates"]) == ["centred", "words"]
            assert len(side["entropies"]) == len(side["divergences"]) == len(side["tokens"])
    responses = parquet.read_table(out / "credit.parquet").to_pylist()
    assert len(responses) == 8
    assert dict(responses[0]["estimates"])["words"] == pytest.approx(
        records[0]["responses"]["chosen"]["estimates"]["words"], abs=1e-6
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["estimators"] == ["centred", "words"]
    assert 0 < summary["format"]["share_of_credit"] < 1
    capsys.readouterr()

    single = ["--prompt", "Review:", "--response", " A dull mess.", "--estimator", "centred"]
    assert main(["credit", *models, *single]) == 0
    assert "centred" in capsys.readouterr().out


def test_columns_for_training_hold_the_credit_of_an_estimator(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["credit", *models, "--data", str(data), "--out", str(out), "--show", "0"]
    assert main([*command, "--columns", "centred"]) == 0
    assert "columns.parquet: 4 rows" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "credit.jsonl").read_text().splitlines()]
    for row, record in zip(
        parquet.read_table(out / "columns.parquet").to_pylist(), records, strict=True
    ):
        for name, side in record["responses"].items():
            assert row[f"{name}_ids"] == side["token_ids"]
            expected = side["estimates"]["centred"]
            assert row[f"{name}_rewards"] == pytest.approx(expected, abs=1e-6)
