"""`tokenq rank` from the command line to its files."""

import json
from pathlib import Path

import pytest

from tokenq.cli.main import main

ROWS = [
    {"prompt": f"Review {i}:", "responses": [" A warm, funny film.", " A dull mess.", " A debut."]}
    for i in range(4)
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_become_rankings_and_scores_of_credit_are_used_again(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["rank", *models, "--data", str(data), "--out", str(out), "--beta", "0.3"]
    assert main([*command, "--keep", "2", "--show", "1"]) == 0
    printed = capsys.readouterr().out
    assert "row 0" in printed
    assert "row 1" not in printed
    assert "4 prompts, 12 responses, by implicit_reward" in printed
    assert "as in the data" not in printed
    ranked = lines(out / "ranked.jsonl")
    assert [line["row"] for line in ranked] == [0, 1, 2, 3]
    assert len(lines(out / "best.jsonl")) == 8
    assert len(lines(out / "pairs.jsonl")) == 4
    summary = json.loads((out / "summary.json").read_text())
    assert summary["beta"] == 0.3
    assert summary["keep"] == 2
    assert summary["agreement"] is None
    assert summary["policy"] == models[1]
    assert not list(out.glob("*.part"))

    # `tokenq credit` over the same rows gives the same sums, and need not be run again.
    credit = tmp_path / "credit"
    scored = ["credit", *models, "--data", str(data), "--out", str(credit), "--beta", "0.3"]
    assert main([*scored, "--show", "0"]) == 0
    again = tmp_path / "again"
    reuse = ["rank", "--credit", str(credit), "--data", str(data), "--out", str(again)]
    assert main(reuse) == 0
    for one, two in zip(ranked, lines(again / "ranked.jsonl"), strict=True):
        assert one["places"] == two["places"]
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-4)
    assert not (again / "credit.jsonl").exists()
    assert json.loads((again / "summary.json").read_text())["policy"] == models[1]
    by_length = tmp_path / "by_length"
    assert main([*reuse[:-1], str(by_length), "--by", "shorter"]) == 0
    assert all(
        line["tokens"] == sorted(line["tokens"]) for line in lines(by_length / "ranked.jsonl")
    )


def test_an_order_that_came_with_the_data_is_compared(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_text("".join(json.dumps({**row, "scores": [1, 0, 2]}) + "\n" for row in ROWS))
    out = tmp_path / "out"
    assert main(["rank", *models, "--data", str(data), "--out", str(out), "--show", "0"]) == 0
    assert "as in the data" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["agreement"]["implicit_reward"]["pairs"] == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "beauty"], "ranked by 'beauty'; accepted: implicit_reward"),
        (["--keep", "0"], "--keep is 0; accepted: 1 or more"),
        (["--min_margin", "-1"], "--min_margin is -1.0; accepted: 0 or more"),
        (["--show", "-1"], "--show is -1"),
        (["--beta", "0"], "beta is 0.0; accepted"),
        (["--data", "ANSWERS"], "its rows are of kind 'sft'; accepted: prompt+responses"),
        (["--data", "no-such.jsonl"], "no-such.jsonl"),
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
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "Review:", "completion": " A film."}\n')
    given = [str(answers) if option == "ANSWERS" else option for option in options]
    # No model is there: whatever is wrong is said before one is looked for.
    command = ["rank", "--policy", "no-policy", "--data", str(data), "--out", "o", *given]
    assert main(command) == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "o").exists()


def test_nothing_to_score_with_and_scores_of_other_rows_are_refused(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert main(["rank", *out]) == 2
    assert "nothing scores the rows; accepted: --policy" in capsys.readouterr().err
    assert main(["rank", "--credit", str(tmp_path), *out]) == 2
    assert "no credit.jsonl" in capsys.readouterr().err
    credit = tmp_path / "credit"
    assert main(["credit", *models, "--data", str(data), "--out", str(credit), "--limit", "2"]) == 0
    assert main(["rank", "--credit", str(credit), *out]) == 2
    assert "was scored over other rows" in capsys.readouterr().err
    over = ["--data", str(data), "--out", str(credit), "--limit", "2"]
    assert main(["rank", "--credit", str(credit), *over]) == 2
    assert "would be overwritten; accepted: another folder" in capsys.readouterr().err
    assert main(["rank", "--credit", str(credit), *out, "--limit", "2", "--show", "0"]) == 0
