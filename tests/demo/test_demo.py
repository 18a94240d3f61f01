"""The whole demonstration, in small, on the real model: its numbers come from its files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from tokenq.cli.main import main
from tokenq.data.film_snippets import SnippetTable
from tokenq.data.lexicon import LexiconEntry
from tokenq.demo.material import answers, gather
from tokenq.demo.settings import QUICK, DemoSettings, claim
from tokenq.demo.words import REWARD, words_of
from tokenq.errors import UserError
from tokenq.judges import lexicon_valence


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def out(
    bundled_model: Path,
    film_snippets: SnippetTable,
    word_valence: dict[str, LexiconEntry],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--quick", "--seed", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def records(out: Path) -> list[dict]:
    return lines(out / "credit" / "credit.jsonl")


@pytest.mark.slow
def test_the_summary_says_what_was_run(summary: dict, out: Path) -> None:
    assert summary["settings"]["seed"] == 3
    assert summary["data"]["train_pairs"] == QUICK.pairs == len(lines(out / "train.jsonl"))
    assert summary["pairs"]["pairs"] == QUICK.held_out == len(lines(out / "held_out.jsonl"))
    assert summary["policy_hash"] != summary["reference_hash"]
    assert summary["training"]["train_loss"] > 0
    stages = summary["timings"]["stages"].values()
    assert summary["timings"]["total"]["cpu_seconds"] == pytest.approx(
        sum(each["cpu_seconds"] for each in stages), abs=0.1
    )
    assert summary["versions"]["torch"]


@pytest.mark.slow
def test_no_training_text_is_held_out(out: Path) -> None:
    trained = {text for row in lines(out / "train.jsonl") for text in answers(row)}
    held_out = [text for row in lines(out / "held_out.jsonl") for text in answers(row)]
    assert len(set(held_out)) == 2 * QUICK.held_out
    assert not trained & set(held_out)


@pytest.mark.slow
def test_accuracies_follow_from_the_tokens(summary: dict, records: list[dict], out: Path) -> None:
    pairs = summary["pairs"]
    texts = [answers(row) for row in lines(out / "held_out.jsonl")]
    for record, (chosen, rejected) in zip(records, texts, strict=True):
        assert record["responses"]["chosen"]["response"] == chosen
        assert record["responses"]["rejected"]["response"] == rejected
    sums = [
        {
            side: (sum(each["logps"]), sum(each["ref_logps"]), len(each["token_ids"]))
            for side, each in record["responses"].items()
        }
        for record in records
    ]

    def accuracy(rule) -> float:
        differences = [rule(*each["chosen"]) - rule(*each["rejected"]) for each in sums]
        return sum((each > 0) + 0.5 * (each == 0) for each in differences) / len(differences)

    found = {name: each["value"] for name, each in pairs["accuracy"].items()}
    assert found["implicit reward"] == accuracy(lambda logp, ref, n: logp - ref)
    assert found["policy log-prob"] == accuracy(lambda logp, ref, n: logp)
    assert found["reference log-prob per token"] == accuracy(lambda logp, ref, n: ref / n)
    assert found["longer in tokens"] == accuracy(lambda logp, ref, n: n)
    mean = sum(record["margin"] for record in records) / len(records)
    assert pairs["rewards/margins"] == pytest.approx(mean, abs=1e-4)
    assert pairs["rewards/accuracies"] == sum(r["margin"] > 0 for r in records) / len(records)
    assert any(abs(record["margin"]) > 1e-3 for record in records)


@pytest.mark.slow
def test_correlations_follow_from_the_words(
    summary: dict, out: Path, word_valence: dict[str, LexiconEntry]
) -> None:
    words = lines(out / "words.jsonl")
    trained = {
        word
        for row in lines(out / "train.jsonl")
        for text in answers(row)
        for word in words_of(text)
    }
    for each in words:
        assert each["valence"] == word_valence[each["word"]].mean
        assert each["in_training"] == (each["word"] in trained)
    unseen = [each for each in words if not each["in_training"]]
    for key, some in (("words", words), ("words_not_in_training", unseen)):
        found = summary[key]
        assert found["words"] == len(some)
        assert found["occurrences"] == sum(each["count"] for each in some)
        for name, correlation in found["spearman"].items():
            if correlation["rho"] is None:
                assert len({each["signals"][name] for each in some}) == 1
                continue
            expected = spearmanr([w["signals"][name] for w in some], [w["valence"] for w in some])
            assert correlation["rho"] == pytest.approx(expected.statistic, abs=1e-9)
            low, high = correlation["over_words"]
            assert -1 <= low <= high <= 1
        own = abs(found["spearman"][REWARD]["rho"])
        assert found["not_beaten"] == [
            name
            for name, each in found["spearman"].items()
            if name != REWARD and each["rho"] is not None and abs(each["rho"]) >= own
        ]


@pytest.mark.slow
def test_the_page_holds_every_pair(records: list[dict], out: Path) -> None:
    page = (out / "index.html").read_text(encoding="utf-8")
    [text] = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    assert len(data["rows"]) == QUICK.held_out
    for row, record in zip(data["rows"], records, strict=True):
        for side in row["sides"]:
            expected = record["responses"][side["name"]]
            assert side["text"] == expected["response"]
            assert side["length"] == len(expected["tokens"])
            assert side["total"] == expected["reward"]
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.processes
def test_the_adapter_gives_the_same_log_probs_without_tokenq(
    records: list[dict], out: Path
) -> None:
    record = records[0]
    side = record["responses"]["chosen"]
    code = """
import json, sys
sys.modules["tokenq"] = None
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder, prompt, response = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
with torch.no_grad():
    logits = model(input_ids=torch.tensor([start + response])).logits[0]
logps = logits.log_softmax(-1)[len(start) - 1 : -1]
print(json.dumps(logps.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()))
"""
    arguments = [str(out / "model"), json.dumps(record["prompt"]), json.dumps(side["token_ids"])]
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    logps = json.loads(process.stdout.splitlines()[-1])
    assert logps == pytest.approx(side["logps"], abs=1e-3)


@pytest.mark.slow
def test_a_second_run_finds_all_done_and_other_settings_are_refused(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [out / "summary.json", out / "credit" / "credit.jsonl", out / "words.jsonl"]
    before = [path.read_bytes() for path in kept]
    adapter = out / "model" / "adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns
    command = ["demo", "--quick", "--out", str(out)]
    assert main([*command, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "held-out pairs" in printed
    assert str(out / "index.html") in printed
    assert adapter.stat().st_mtime_ns == written
    assert [path.read_bytes() for path in kept] == before
    assert main([*command, "--seed", "4"]) == 2
    assert "holds a demo with seed 3, now it is 4" in capsys.readouterr().err


def test_settings_claim_a_folder(tmp_path: Path) -> None:
    claim(tmp_path, QUICK)
    claim(tmp_path, QUICK)
    with pytest.raises(UserError, match="holds a demo with pairs 48, now it is"):
        claim(tmp_path, DemoSettings())
    with pytest.raises(UserError, match="pairs is 0; accepted: a number above 0"):
        DemoSettings(pairs=0)


def test_more_pairs_than_there_are_is_refused(film_snippets: SnippetTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairs is 99999; accepted: at most [0-9]+"):
        gather(tmp_path, DemoSettings(pairs=99999))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_was_written_is_judged_as_it_lies_there(summary: dict, out: Path) -> None:
    rows = lines(out / "written.jsonl")
    assert len(rows) == QUICK.beginnings
    held_out = [text for row in lines(out / "held_out.jsonl") for text in answers(row)]

    baseline, *others = summary["search"]
    assert others == ["greedy", "beam of 5", "best of 5, implicit reward"]
    told = {}
    for name, found in summary["search"].items():
        texts = [row[name] for row in rows]
        for row, text in zip(rows, texts, strict=True):
            assert text.startswith(row["beginning"])
            assert any(whole.startswith(row["beginning"]) for whole in held_out)
        added = [text[len(row["beginning"]) :] for row, text in zip(rows, texts, strict=True)]
        told[name] = lexicon_valence(added, added)
        assert found["valence"] == pytest.approx(sum(told[name]) / len(rows), abs=1e-9)
    assert summary["search"][baseline]["wins"] is None
    for name in others:
        wins = [a > b for a, b in zip(told[name], told[baseline], strict=True)]
        assert summary["search"][name]["wins"]["wins"] == sum(wins)
        assert summary["search"][name]["log_ratio"] is not None
    best = summary["search"]["best of 5, implicit reward"]["log_ratio"]
    assert best > summary["search"]["beam of 5"]["log_ratio"]
