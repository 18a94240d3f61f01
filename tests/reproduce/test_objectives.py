"""`tokenq reproduce objectives` on a tiny random model: what is measured, and that it goes on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import save_model, tiny_llama

from tokenq.cli.main import main
from tokenq.data.encoding import EncodedResponse
from tokenq.data.film_snippets import SnippetTable
from tokenq.data.lexicon import LexiconEntry
from tokenq.errors import UserError
from tokenq.objectives import OBJECTIVES
from tokenq.reproduce.film_pairs import FilmPairs
from tokenq.reproduce.objective_arms import ARMS, DPO, chosen_arms
from tokenq.reproduce.objective_page import page
from tokenq.reproduce.objective_runs import Bench, Settings, held_out_measures, sample
from tokenq.reproduce.objectives import QUICK
from tokenq.reproduce.statistics import estimate, paired_difference


@pytest.fixture
def tiny(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    film_snippets: SnippetTable,
    word_valence: dict[str, LexiconEntry],
) -> Path:
    return save_model(tmp_path / "tiny", tiny_llama(layers=3))


def settings(model: Path, **changes: Any) -> Settings:
    return Settings(**{**QUICK.to_dict(), "model": str(model), **changes})


def reproduce(model: Path, out: Path, *names: str) -> dict[str, Any]:
    arguments = ["--quick", "--seeds", "1", "--model", str(model), "--out", str(out)]
    assert main(["reproduce", "objectives", *arguments, "--objectives", *names]) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text())["results"]
    return results


def test_a_run_from_end_to_end_and_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["dpo", "plackett_luce", "dpo, labels by coin"]
    results = reproduce(tiny, tmp_path / "out", *names)
    arms = results["arms"]
    assert list(arms) == names
    for arm in arms.values():
        assert [len(arm["runs"]), arm["measures"]["kl"]["n"]] == [1, 1]
        for run in arm["runs"]:
            assert all(math.isfinite(value) for value in run.values())
            assert 0 <= run["reward accuracy"] <= 1
            assert run["kl"] > 0
    # Plackett-Luce on two answers is DPO: equal to the last bit only where rows, order, first
    # weights and random numbers are the same for all.
    for ours, theirs in zip(arms["dpo"]["runs"], arms["plackett_luce"]["runs"], strict=True):
        for name, value in ours.items():
            if not name.startswith("cpu_seconds"):
                assert value == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    coin, straight = (arms[name]["runs"] for name in ("dpo, labels by coin", "dpo"))
    assert [run["chosen"] for run in coin] != [run["chosen"] for run in straight]
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.index("[start:measured] -->") < text.index("| dpo |")
    assert text.index("| plackett_luce |") < text.index("[end:measured] -->")
    monkeypatch.setattr(Bench, "trained", None)
    monkeypatch.setattr(Bench, "start", None)
    assert reproduce(tiny, tmp_path / "out", *names)["arms"] == arms


def test_token_rewards_come_from_the_dpo_run_of_the_same_seed(tiny: Path, tmp_path: Path) -> None:
    results = reproduce(tiny, tmp_path / "out", "sepo")
    assert "less dpo" not in results["arms"]["sepo"]
    saved = json.loads((tmp_path / "out" / "runs" / "oracle-0.json").read_text())
    bench = Bench(settings(tiny))
    answers = bench.training(0).flat()[1]
    assert [len(row) for row in saved["result"]["rewards"]] == [len(row) for row in answers]


def test_the_divergence_is_that_of_whole_distributions(tiny: Path) -> None:
    bench = Bench(settings(tiny, samples=3, sample_tokens=6, learning_rate=0.05))
    start = tiny_llama(layers=3).eval()
    with bench.trained(DPO, 0, None) as policy, torch.no_grad():
        found = bench._divergence(policy)
        prompt, total = bench.held_out.prompt_ids, 0.0
        for response in bench._start_samples:
            ids = torch.tensor([prompt + response])
            first, second = (
                model(ids).logits[0].double().log_softmax(-1) for model in (start, policy)
            )
            each = (first.exp() * (first - second)).sum(-1)
            total += float(each[len(prompt) - 1 : -1].sum())
    assert found > 0.01
    assert found == pytest.approx(total / 3, rel=1e-3)


def test_samples_from_a_shared_prompt_are_those_of_plain_generation() -> None:
    model = tiny_llama().eval()
    prompt = [7, 8, 9, 10]
    torch.manual_seed(3)
    ours = sample(model, prompt, count=5, tokens=40, end=1)
    torch.manual_seed(3)
    ids = torch.tensor([prompt] * 5)
    with torch.no_grad():
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=True,
            top_k=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
    for row, response in zip(theirs[:, 4:].tolist(), ours, strict=True):
        assert row[: len(response)] == response
        assert response[-1] == 1 or len(response) == 40
        assert 1 not in response[:-1]


def encoded(text: str, offsets: list[tuple[int, int]]) -> EncodedResponse:
    return EncodedResponse([1], list(range(len(offsets))), False, offsets)


def test_what_is_measured_on_numbers_worked_out_by_hand(
    word_valence: dict[str, LexiconEntry],
) -> None:
    assert word_valence["good"].mean > word_valence["bad"].mean
    ends = [(0, 4), (4, 4)], [(0, 3), (3, 3)]
    pairs = FilmPairs(
        [("good", "bad"), ("good", "bad")],
        [(encoded("good", ends[0]), encoded("bad", ends[1]))] * 2,
    )
    before = [torch.tensor(row) for row in ([-2.0, -1.0], [-1.0, -1.0])] * 2
    after = [torch.tensor(row) for row in ([-1.0, -1.5], [-3.0, -1.0], [-2.5, -1.0], [-1.0, -2.0])]
    found = held_out_measures(pairs, after, before)
    # Changes: +0.5 and -2.0; -0.5 and -1.0. Sums: -2.5 and -4.0; -3.5 and -3.0.
    assert found["reward accuracy"] == 1.0
    assert found["likelihood accuracy"] == 0.5
    assert found["chosen"] == pytest.approx(0.0)
    assert found["rejected"] == pytest.approx(-1.5)
    assert found["end"] == pytest.approx((-0.5 + 0 + 0 - 1.0) / 4)
    # Log-ratios of the words: good +1.0 and -0.5, bad -2.0 and 0.0.
    assert found["valence"] == pytest.approx(1.0)


def test_flipped_pairs_change_sides() -> None:
    sides = [(encoded("a", [(0, 1)]), encoded("b", [(0, 1), (1, 1)]))] * 2
    pairs = FilmPairs([("a", "b"), ("c", "d")], sides).flipped([False, True])
    assert pairs.texts == [("a", "b"), ("d", "c")]
    rows = pairs.rows(rewards=[[0.1], [0.2, 0.3], [0.4, 0.5], [0.6]])
    assert rows[0]["chosen_ids"] == rows[1]["rejected_ids"] == [0]
    assert rows[1]["chosen_ids"] == [0, 1]
    assert rows[1]["chosen_rewards"] == pytest.approx([0.4, 0.5])
    assert rows[0]["rejected_edits"] == [False, True]


def test_every_arm_names_an_objective_and_its_hyper_parameters() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        objective = OBJECTIVES[arm.loss_type](**arm.arguments)
        assert ("rewards" in objective.needs) == arm.oracle
        assert ("kl" in objective.needs) == arm.live
    assert [arm.name for arm in chosen_arms(["ipo", "dpo"])] == ["ipo", "dpo"]
    with pytest.raises(UserError, match="--objectives: 'dpoo' is unknown"):
        chosen_arms(["dpoo"])


def made_up(accuracies: dict[str, list[float]]) -> dict[str, Any]:
    """Results whose other measures are all 1.0."""
    others = ("likelihood accuracy", "likelihood accuracy a token", "valence", "chosen",
              "rejected", "end", "kl", "length", "ended", "valence of log-probs",
              "cpu_seconds_training", "cpu_seconds_measuring")  # fmt: skip
    arms: dict[str, Any] = {}
    for name, values in accuracies.items():
        runs = [dict.fromkeys(others, 1.0) | {"reward accuracy": v, "kl": v} for v in values]
        arms[name] = {
            "objective": name,
            "runs": runs,
            "measures": {m: estimate([run[m] for run in runs]) for m in runs[0]},
            "less dpo": {"reward accuracy": paired_difference(values, accuracies["dpo"])},
        }
    del arms["dpo"]["less dpo"]
    return {
        "settings": Settings().to_dict(),
        "seeds": [0, 1, 2],
        "start": dict.fromkeys(others, 0.5),
        "controls": {"words": estimate([0.7, 0.7, 0.7])},
        "arms": arms,
    }


def test_the_page_says_which_differ_from_dpo() -> None:
    text = page(
        made_up(
            {
                "dpo": [0.70, 0.72, 0.71],
                "better": [0.80, 0.82, 0.81],
                "worse": [0.60, 0.63, 0.62],
                "alike": [0.75, 0.70, 0.69],
                "dpo, labels by coin": [0.50, 0.52, 0.48],
            }
        )
    )
    assert "above 0 for better and below 0 for worse" in text
    assert "Of 3 objectives" in text
    assert "by a coin DPO orders 0.500 [0.450, 0.550]" in text
    assert "falls for 0 of 4: none" in text
    assert "between KL and reward accuracy is +1.00" in text
    body = text[text.index("start:measured") : text.index("end:measured")]
    assert body.index("| dpo |") < body.index("| better |") < body.index("| worse |")
    assert "0.100 [0.100, 0.100]" in body
