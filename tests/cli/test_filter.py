"""`tokenq filter` from the command line to its files."""

import json
from pathlib import Path

import pytest
from small_pairs import save_model

from tokenq.cli.main import main

ANSWERS = [" A warm, funny film.", " A dull mess.", " An uneven debut!", " Jokes land with a thud."]
ROWS = [
    {
        "prompt": f"Review {i}:",
        "chosen": ANSWERS[i % 4],
        "rejected": ANSWERS[(i + 1) % 4],
        "source": f"number {i}",
    }
    for i in range(7)
] + [
    # Nearly equal answers: what the score is for.
    {"prompt": "Review 7:", "chosen": " A dull mess.", "rejected": " A dull mess!", "source": "7"}
]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "model", seed=1))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["ches", "ches_sum", "gradient"])
def test_pairs_are_parted_by_their_measure(
    by: str, model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["filter", "--model", model, "--data", str(data), "--out", str(out), "--by", by]
    assert main([*command, "--keep", "0.75"]) == 0
    scores = lines(out / "scores.jsonl")
    kept, left = lines(out / "kept.jsonl"), lines(out / "left.jsonl")
    assert [line["row"] for line in scores] == list(range(8))
    threshold = json.loads((out / "summary.json").read_text())["threshold"]
    values = {line["row"]: line["value"] for line in scores}
    assert [line["row"] for line in left] == [row for row in values if values[row] > threshold]
    assert len(kept) == 6
    for line in kept:
        assert line == {"row": line["row"], **ROWS[line["row"]]}
    for line in left:
        assert line["displacement"]["value"] == values[line["row"]]
        assert line["source"] == ROWS[line["row"]]["source"]
    printed = capsys.readouterr().out
    assert f"row {max(values, key=values.__getitem__)}" in printed


def test_nearly_equal_answers_leave_first_by_normalised_similarity(
    model: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["filter", "--model", model, "--data", str(data), "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["by"] == "ches"
    assert summary["left"]["pairs"] + summary["kept"]["pairs"] == 8
    edited = {line["row"]: line["edited"] for line in lines(out / "scores.jsonl")}
    assert min(edited, key=edited.__getitem__) == 7


def test_a_threshold_instead_of_a_share(model: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["filter", "--model", model, "--data", str(data), "--out", str(out)]
    assert main([*command, "--threshold", "1e9"]) == 0
    assert lines(out / "left.jsonl") == []
    assert json.loads((out / "summary.json").read_text())["left"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "1.5"], "keep is 1.5; accepted: above 0, below 1"),
        (["--keep", "0.5", "--threshold", "1"], "accepted: one of keep"),
        (["--threshold", "nan"], "threshold is nan; accepted: a number"),
        (["--max_length", "1"], "--max_length is 1; accepted: 2 or more"),
    ],
)
def test_bad_options_are_one_line_before_any_model(
    options: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["filter", "--model", "no-such-model", "--data", str(data), "--out"]
    assert main([*command, str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_other_rows_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    command = ["filter", "--model", model, "--data", str(path), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "accepted: preference pairs" in capsys.readouterr().err
