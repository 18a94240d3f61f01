"""The benchmark of searches: its tables on a tiny model, and what it says of bad input."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import search as benchmark


@pytest.fixture
def folder(tmp_path: Path) -> str:
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=640,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.processes
def test_the_page_tells_time_memory_and_agreement(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--rounds", "2", "--threads", "1", "--new_tokens", "5", "--model", folder]
    arguments += ["--workloads", "beam-64", "log-ratio-512", "mcts-64", "--out", str(out)]
    assert benchmark.main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    beam, log_ratio, tree = results["workloads"]
    assert beam["agreement"]["same_sequences"] == benchmark.BEAMS
    assert beam["agreement"]["score_difference"] < 1e-4
    seconds = beam["seconds"]
    expected = [a / b for a, b in zip(seconds["transformers"], seconds["tokenq"], strict=True)]
    assert beam["ratio"]["low"] == min(expected)
    seconds = log_ratio["seconds"]
    expected = [a / b for a, b in zip(seconds["tokenq"], seconds["likelihood"], strict=True)]
    assert log_ratio["ratio"]["high"] == max(expected)
    assert tree["statistics"]["expansions"] > benchmark.SIMULATIONS
    assert set(results["memory"]) == {"beam-64"}
    page = (out / "README.md").read_text()
    assert f"{benchmark.BEAMS} of {benchmark.BEAMS} sequences are those of transformers" in page
    assert "| log-ratio-512 |" in page
    assert (out / "figure.png").stat().st_size > 1000


def test_sequences_that_differ_are_counted() -> None:
    class Expected:
        sequences = torch.tensor([[9, 1, 2], [9, 1, 3]])
        sequences_scores = torch.tensor([-1.0, -2.0])

    class Found:
        def __init__(self, token_ids: list[int], score: float) -> None:
            self.token_ids, self.score = token_ids, score

    found = [[Found([1, 2], -1.0), Found([1, 4], -2.5)]]
    told = benchmark.same_beams(found, Expected(), 1)
    assert told == {"same_sequences": 1, "sequences": 2, "score_difference": 0.5}


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "--rounds is 0; accepted: at least 1\n"
