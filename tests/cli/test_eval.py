"""`tokenq eval` from the command line to its files."""

import json
from pathlib import Path

import pytest
from small_pairs import random_model, save_model, small_tokenizer, with_adapter

from tokenq.cli.main import main

PAIRS = [
    {"prompt": f"Review {i}:", "chosen": " A warm, funny film.", "rejected": " A dull mess."}
    for i in range(5)
]
OTHERS = [{"prompt": "Review:", "chosen": " A thud.", "rejected": " The plot is a charming lead."}]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    policy = save_model(tmp_path / "policy", seed=1)
    reference = save_model(tmp_path / "reference", seed=2)
    return ["--policy", str(policy), "--reference", str(reference)]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_two_data_sets_become_tables_lines_a_figure_and_a_summary(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [write(tmp_path / "a.jsonl", PAIRS), write(tmp_path / "b.jsonl", OTHERS)]
    out = tmp_path / "out"
    command = ["eval", *models, "--out", str(out), "--beta", "0.3", "--data", *sources]
    assert main(command) == 0
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [line["data"] for line in lines] == [sources[0]] * 5 + [sources[1]]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4, 0]
    assert list(summary["data"]) == sources
    for source, count in zip(sources, (5, 1), strict=True):
        own = [line for line in lines if line["data"] == source]
        found = summary["data"][source]
        assert found["pairs"] == count
        margins = [line["margin"] for line in own]
        assert found["rewards/margins"] == pytest.approx(sum(margins) / count)
        assert found["rewards/accuracies"] == sum(margin > 0 for margin in margins) / count
        for line in own:
            ratios = [
                line[side]["logp"] - line[side]["ref_logp"] for side in ("chosen", "rejected")
            ]
            assert line["margin"] == pytest.approx(0.3 * (ratios[0] - ratios[1]))
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "implicit reward" in printed
    assert "longer in tokens" in printed
    assert "5 pairs; margin (beta 0.3)" in printed


def test_eval_and_credit_agree(models: list[str], tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", PAIRS + OTHERS)
    common = [*models, "--data", source]
    assert main(["eval", *common, "--out", str(tmp_path / "eval")]) == 0
    assert main(["credit", *common, "--out", str(tmp_path / "credit")]) == 0
    judged = json.loads((tmp_path / "eval" / "summary.json").read_text())["data"][source]
    read = json.loads((tmp_path / "credit" / "summary.json").read_text())
    assert judged["rewards/accuracies"] == read["rewards/accuracies"]
    assert judged["rewards/margins"] == pytest.approx(read["rewards/margins"], abs=1e-4)


def test_an_adapter_needs_no_named_reference(tmp_path: Path, models: list[str]) -> None:
    adapter = tmp_path / "adapter"
    base = random_model("llama", len(small_tokenizer()), seed=1)
    base.name_or_path = str(tmp_path / "policy")
    adapted = with_adapter(base)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "policy")
    adapted.save_pretrained(adapter)
    source = write(tmp_path / "pairs.jsonl", PAIRS)
    out = str(tmp_path / "out")
    assert main(["eval", "--policy", str(adapter), "--data", source, "--out", out]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["policy_hash"] != summary["reference_hash"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--beta", "0"], "--beta is 0.0; accepted: a number above 0"),
        (["--bins", "0"], "--bins is 0; accepted: a number above 0"),
        (["--limit", "0"], "limit is 0; accepted"),
        (["--max_length", "1"], "--max_length is 1; accepted"),
    ],
)
def test_values_out_of_range_are_refused(
    models: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    source = write(tmp_path / "pairs.jsonl", PAIRS)
    command = ["eval", *models, "--data", source, "--out", str(tmp_path / "out"), *extra]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_without_a_preference_and_policies_without_reference_are_refused(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    source = write(tmp_path / "sft.jsonl", [{"prompt": "a", "completion": " b"}])
    assert main(["eval", *models, "--data", source, *out]) == 2
    assert "kind 'sft'; accepted: preference" in capsys.readouterr().err
    source = write(tmp_path / "pairs.jsonl", PAIRS)
    assert main(["eval", *models[:2], "--data", source, *out]) == 2
    assert "has no reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["eval", *models, "--data", source, "--out", source]) == 2
    assert "--out: " in capsys.readouterr().err
    assert main(["eval", *models, "--data", source, source, *out]) == 2
    assert "twice" in capsys.readouterr().err
