"""`tokenq compare` from the command line to its files."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_pairs import small_tokenizer

import tokenq
from tokenq.cli.compare import SOURCES
from tokenq.cli.main import main
from tokenq.credit.sources import ImplicitReward
from tokenq.models.pair import load_pair

ROWS = [
    {"prompt": f"Review {i}:", "chosen": " A warm, funny film.", "rejected": " A dull mess."}
    for i in range(5)
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sources_side_by_side(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    names = [*SOURCES, "centred"]
    command = ["compare", *models, "--data", str(data), "--out", str(out), "--beta", "0.3"]
    assert main([*command, "--sources", *names, "--batch", "2"]) == 0
    assert "10 responses" in capsys.readouterr().out
    records = lines(out / "sources.jsonl")
    assert [record["row"] for record in records] == list(range(5))
    pair = load_pair(models[1], models[3])
    credit = tokenq.credit(pair, ROWS[3]["prompt"], ROWS[3]["rejected"], beta=0.3)
    side = records[3]["responses"]["rejected"]
    assert side["offsets"] == [list(offset) for offset in credit.offsets]
    assert list(side["scores"]) == names
    for name, expected in (
        ("implicit_reward", credit.rewards),
        ("surprisal", -credit.ref_logps),
        ("policy_surprisal", -credit.logps),
        ("centred", credit.estimate("centred")),
    ):
        assert side["scores"][name] == pytest.approx(expected.tolist(), abs=2e-5)
    summary = json.loads((out / "summary.json").read_text())
    table = summary["correlations"]
    assert table["surprisal"]["surprisal"] == pytest.approx(1)
    assert table["surprisal"]["position"] == pytest.approx(table["position"]["surprisal"])
    assert summary["responses"] == 10


def test_a_run_is_continued_not_repeated(
    models: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["compare", *models, "--data", str(data), "--out", str(out), "--batch", "2"]
    score = ImplicitReward.score
    rows: list[int] = []

    def stopped(self: ImplicitReward, prompts: list[str], responses: list[str]) -> Any:
        if len(rows) >= 4:
            raise KeyboardInterrupt
        rows.extend([0] * len(prompts))
        return score(self, prompts, responses)

    monkeypatch.setattr(ImplicitReward, "score", stopped)
    assert main(command) == 130
    assert not (out / "sources.jsonl").exists()

    def counted(self: ImplicitReward, prompts: list[str], responses: list[str]) -> Any:
        rows.extend([0] * len(prompts))
        return score(self, prompts, responses)

    monkeypatch.setattr(ImplicitReward, "score", counted)
    assert main(command) == 0
    assert len(rows) == 10
    assert [record["row"] for record in lines(out / "sources.jsonl")] == list(range(5))
    assert main(command) == 0
    assert len(rows) == 10
    assert main([*command, "--words"]) == 2  # the records there are of tokens


def test_words(models: list[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["compare", *models, "--data", str(data), "--out", str(out), "--words"]
    assert main([*command, "--sources", "length", "surprisal"]) == 0
    side = lines(out / "sources.jsonl")[0]["responses"]["chosen"]
    words = [side["response"][start:end] for start, end in side["offsets"]]
    assert words == ["A", "warm", "funny", "film"]
    assert side["scores"]["length"] == [1, 4, 5, 4]


def test_rows_that_cannot_be_scored(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    long_row = {**ROWS[0], "rejected": " A dull mess." * 90}
    tools = {**ROWS[0], "tools": [{"name": "x"}]}
    rows = [ROWS[0], long_row, tools, ROWS[1]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["compare", *models, "--data", str(data), "--out", str(out)]
    assert main(command) == 2
    assert "row 2: has 'tools'" in capsys.readouterr().err
    assert main([*command, "--skip_bad_rows"]) == 0
    records = lines(out / "sources.jsonl")
    assert [sorted(record)[-1] for record in records] == ["row", "skipped", "skipped", "row"]
    assert "tokens; accepted: 128" in records[1]["skipped"]
    assert json.loads((out / "summary.json").read_text())["skipped"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sources", "surprisal", "magic"], "'magic' is unknown; accepted: implicit_reward"),
        (["--sources", "surprisal", "surprisal"], "'surprisal' is named twice"),
        (["--sources"], "--sources: expected at least one argument"),
        (["--beta", "0"], "--beta is 0.0"),
        (["--batch", "0"], "--batch is 0"),
        (["--outcome_model", "POLICY"], "its classification head would be random"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    options: list[str],
    message: str,
    models: list[str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenq.cli.compare.load_models", None)
    given = [models[1] if option == "POLICY" else option for option in options]
    command = ["compare", *models, "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*command, *given]) == 2
    assert message in capsys.readouterr().err


def test_a_reward_model_beside_them(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from small_pairs import config
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    settings = config("llama", len(small_tokenizer()))
    settings.num_labels = 1
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(tmp_path / "rm")
    small_tokenizer().save_pretrained(tmp_path / "rm")
    out = tmp_path / "out"
    command = ["compare", *models, "--data", str(data), "--out", str(out)]
    assert main([*command, "--outcome_model", str(tmp_path / "rm"), "--limit", "2"]) == 0
    side = lines(out / "sources.jsonl")[1]["responses"]["chosen"]
    [name] = [name for name in side["scores"] if name.startswith("outcome model")]
    assert len(side["scores"][name]) == len(side["offsets"])

    # Trained further in the same folder, it is another model: its scores are not mixed in.
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(tmp_path / "rm")
    capsys.readouterr()
    assert main([*command, "--outcome_model", str(tmp_path / "rm"), "--limit", "2"]) == 2
    assert "its outcome_hash is" in capsys.readouterr().err
