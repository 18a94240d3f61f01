"""`tokenq clean` from the command line to its files."""

import json
from pathlib import Path

import pytest

from tokenq.cli.main import main

ANSWERS = [" A warm, funny film.", " A dull mess.", " An uneven debut!", " Jokes land with a thud."]
ROWS = [
    {"prompt": f"Review {i}:", "chosen": ANSWERS[i % 4], "rejected": ANSWERS[(i + 1) % 4]}
    for i in range(8)
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_parted_with_reasons_a_page_and_a_summary(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["clean", *models, "--data", str(data), "--out", str(out), "--beta", "0.3"]
    assert main([*command, "--show", "1", "--flip", "0.3"]) == 0
    margins = {line["row"]: line["margin"] for line in lines(out / "credit.jsonl")}
    disputed = lines(out / "disputed.jsonl")
    assert {line["row"] for line in disputed} == {row for row, each in margins.items() if each < 0}
    assert 0 < len(disputed) < 8
    assert len(lines(out / "kept.jsonl")) == 8 - len(disputed)
    wrong = [line["row"] for line in disputed if line["dispute"]["probability_wrong"] >= 0.3]
    flipped = lines(out / "flipped.jsonl")
    assert [line["row"] for line in flipped] == wrong
    for line in flipped:
        assert line["chosen"] == ROWS[line["row"]]["rejected"]
        assert line["rejected"] == ROWS[line["row"]]["chosen"]

    summary = json.loads((out / "summary.json").read_text())
    assert summary["pairs"] == 8
    assert summary["disputed"] == len(disputed)
    assert summary["rewards/accuracies"] == sum(each > 0 for each in margins.values()) / 8
    assert 0 < summary["wrong_labels"]["rate"] < 0.5
    assert summary["memorised"] is None
    assert summary["beta"] == 0.3
    assert 0 < summary["format"]["share_of_tokens"] < 1
    page = (out / "index.html").read_text()
    assert "pairs whose label is disputed" in page

    printed = capsys.readouterr().out
    worst = min(margins, key=margins.__getitem__)
    assert f"row {worst}" in printed
    assert printed.count("label wrong with probability") == 1
    assert f"{len(disputed)} of 8 pairs disputed" in printed

    # Another threshold over the same scores, no model needed.
    again = tmp_path / "again"
    reuse = ["clean", "--credit", str(out), "--data", str(data), "--out", str(again)]
    assert main([*reuse, "--threshold", "-100"]) == 0
    assert lines(again / "disputed.jsonl") == []
    assert len(lines(again / "kept.jsonl")) == 8
    assert not (again / "flipped.jsonl").exists()

    # Exchanged pairs of an earlier run do not stay beside what is kept without exchanging any.
    assert main([*reuse, "--threshold", "100", "--flip", "0.001"]) == 0
    assert len(lines(again / "flipped.jsonl")) > 0
    assert main(reuse) == 0
    assert not (again / "flipped.jsonl").exists()


def test_a_policy_that_was_trained_on_the_pairs_is_told(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"settings": {"dataset_name": str(data)}, "command": [], "data": {}}
    (tmp_path / "policy/run.json").write_text(json.dumps(record))
    command = ["clean", *models, "--data", str(data), "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: The policy was trained on these pairs." in printed
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert "trained on these pairs" in summary["memorised"]

    record["settings"]["dataset_name"] = "org/other"
    (tmp_path / "policy/run.json").write_text(json.dumps(record))
    assert main([*command, str(tmp_path / "other")]) == 0
    assert "trained on these pairs" not in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "nan"], "--threshold is nan; accepted: a number"),
        (["--flip", "0"], "--flip is 0.0; accepted: above 0, up to 1"),
        (["--show", "-1"], "--show is -1; accepted: 0 or more"),
        (["--page_rows", "-1"], "--page_rows is -1"),
        (["--max_length", "1"], "max_length is 1; accepted"),
        (["--data", "RANKED"], "its rows are of kind 'ranked'; accepted: preference pairs"),
        (["--credit", "c"], "--policy decides scores, which --credit has already"),
    ],
)
def test_input_to_mend_is_one_line_and_exit_code_2(
    options: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ranked = tmp_path / "ranked.jsonl"
    ranked.write_text('{"prompt": "Review:", "responses": [" A film.", " A debut."]}\n')
    given = [str(ranked) if option == "RANKED" else option for option in options]
    # No model is there: whatever is wrong is said before one is looked for.
    command = ["clean", "--policy", "no-policy", "--data", str(data), "--out", "o", *given]
    assert main(command) == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "o").exists()
