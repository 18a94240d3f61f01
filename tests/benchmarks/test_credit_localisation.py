"""The benchmark of token signals: its table on tiny models, and what it says of bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import save_model, tiny_llama, tiny_tokenizer
from wrong_words import LAYERS, training_pairs, wrong_and_right_texts

from benchmarks import credit_localisation as benchmark
from tokenq.credit.localisation import tokens_within
from tokenq.models import token_logps
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.localisation.arms import DPO
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.material import Task, TestText

TESTS = [each for each in wrong_and_right_texts() if each.errors]
BETA = 0.1


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    models = {"policy": tiny_llama(1), "reference": tiny_llama(2)}
    return [str(save_model(tmp_path / name, model)) for name, model in models.items()]


def fake_texts(task: str, count: int) -> tuple[Task, list[TestText]]:
    return Task(training_pairs, wrong_and_right_texts), TESTS[:count]


def test_the_table_shows_every_signal_with_its_cost(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_peer(pair: Any, texts: Any, beta: float) -> dict[str, benchmark.Peer]:
        read = lambda: [torch.zeros(1), None]  # noqa: E731
        fails = lambda: [][0]  # noqa: E731
        return {
            "peer": benchmark.Peer("tokenq", "position", 1, read),
            "gone": benchmark.Peer("no-such-package", benchmark.PLAIN, -1, read),
            "broken": benchmark.Peer("tokenq", benchmark.PLAIN, -1, fails),
        }

    monkeypatch.setattr(benchmark, "erroneous", fake_texts)
    monkeypatch.setattr(benchmark, "peers", one_peer)
    arguments = ["--policy", folders[0], "--reference", folders[1], "--texts", "2"]
    arguments += ["--timed", "2", "--rounds", "2", "--out", str(tmp_path / "out")]
    assert benchmark.main(arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    page = (tmp_path / "out" / "README.md").read_text()
    signals = results["quality"]
    assert {"implicit reward", "implicit reward, centred", "surprisal (policy)"} <= set(signals)
    assert {"entropy (reference)", "position", "length", *benchmark.SLOW} <= set(signals)
    for name, metrics in signals.items():
        assert 0 <= metrics["AUROC within"]["value"] <= 1
        assert results["cost"][name]["cpu_seconds"] >= 0
        assert f"| {name} | {metrics['AUROC within']['value']:.2f} [" in page
    assert results["wrong_tokens"] > 0
    assert results["peers"]["peer"]["same_tokens"] == 1
    assert results["peers"]["peer"]["largest_difference"] == 0
    assert "`no-such-package` is not in this run" in page
    assert "`broken` is not in this run (IndexError" in page


def test_estimators_read_at_once_are_those_of_their_sources(folders: list[str]) -> None:
    pair = benchmark.loaded_pair(*folders)
    material = benchmark.Material.of(TESTS, pair.tokenizer)
    found = benchmark.read_all(pair, material, BETA)
    for source in benchmark.estimated(pair, BETA):
        alone = source.score(material.prompts, material.responses)
        for ours, scores in zip(found[source.name].blame, alone, strict=True):
            torch.testing.assert_close(ours, scores.blame)


def test_a_perfect_signal_is_perfect_and_its_opposite_the_worst(folders: list[str]) -> None:
    pair = benchmark.loaded_pair(*folders)
    read = benchmark.read_all(pair, benchmark.Material.of(TESTS, pair.tokenizer), BETA)["position"]
    marked = [
        torch.from_numpy(tokens_within(test.text, offsets, test.errors or ())).float()
        for offsets, test in zip(read.offsets, TESTS, strict=True)
    ]
    perfect = benchmark.Read(read.offsets, marked)
    opposite = benchmark.Read(read.offsets, [-each for each in marked])
    found = benchmark.quality({"perfect": perfect, "opposite": opposite}, TESTS, resamples=20)
    for metric in benchmark.METRICS:
        assert found["perfect"][metric.name]["value"] == 1
    assert found["opposite"]["AUROC within"]["value"] == 0
    assert found["opposite"]["top-1"]["value"] == 0


def test_an_ordinary_model_takes_over_what_an_adapter_learnt(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny", tiny_llama(layers=LAYERS))
    bench = Bench(str(folder), 2)
    prompts, responses = [[5, 6, 7], [8, 9]], [[10, 11, 12], [13, 14]]
    plain = tiny_llama(layers=LAYERS)
    recipe = Recipe(batch_size=4, learning_rate=0.02, lora_r=4)
    with bench.trained(DPO, training_pairs(0, ""), recipe, 0) as policy:
        before = token_logps(plain, prompts, responses)
        benchmark.take_weights(plain, bench.model, policy)
        taught = token_logps(policy, prompts, responses)
    for ours, theirs, start in zip(
        token_logps(plain, prompts, responses), taught, before, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, start, atol=1e-2)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("reward_lens", "reward-lens: per_token_rewards"),
        ("inseq", "inseq: probability"),
        ("inseq", "inseq: input_x_gradient"),
    ],
)
def test_other_packages_say_what_we_say(package: str, name: str, folders: list[str]) -> None:
    pytest.importorskip(package)
    pair = benchmark.loaded_pair(*folders)
    for model in (pair.policy, pair.reference):
        model.config.bos_token_id = 1  # inseq reads no model without one
    asked = ("Say: the film", "Think: a long scene")
    tests = [TestText(each, each, "bad", each, " is dull", ((4, 8),)) for each in asked]
    # The blank is one token with the word behind it, so that the joined text is cut otherwise.
    tests.append(TestText("c", "c", "bad", "Say: the film ", "is dull", ((3, 7),)))
    material = benchmark.Material.of(tests, pair.tokenizer)
    peer = benchmark.peers(pair, material.texts(pair.tokenizer), BETA)[name]
    ours = benchmark.read_all(pair, material, BETA)[peer.ours]
    found = benchmark.agreement(peer, peer.read(), ours)
    assert (found["same_tokens"], found["texts"]) == (2, 3)
    assert found["largest_difference"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--texts", "0"], "--texts is 0"),
        (["--timed", "9", "--texts", "5"], "--timed is 9"),
        (["--beta", "-1"], "--beta is -1"),
        (["--beta", "nan"], "--beta is nan"),
        (["--reference", "somewhere"], "--reference without --policy"),
        (["--policy", "no/such/folder"], "no/such/folder"),
        (["--policy", "FULL"], "has no reference"),
        (["--task", "qa"], "TOKENQ_DATA"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    arguments: list[str],
    said: str,
    folders: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loads(*arguments: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(benchmark, "loaded_pair", loads)
    monkeypatch.setattr(benchmark, "trained_pair", loads)
    monkeypatch.delenv("TOKENQ_DATA", raising=False)
    arguments = [folders[0] if each == "FULL" else each for each in arguments]
    assert benchmark.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_model_without_chat_template_reads_texts() -> None:
    tokenizer = tiny_tokenizer()
    asked = TestText("a", "a", "bad", [{"role": "user", "content": "Say."}], "is dull", ((3, 7),))
    material = benchmark.Material.of([asked], tokenizer)
    assert material.prompts == ["Say.\n"]
    assert material.responses == ["is dull"]
