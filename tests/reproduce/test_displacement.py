"""The displacement experiment: its pairs, readings at equal margin, one whole quick run."""

import json
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny_training import save_model, tiny_llama

from tokenq.cli.main import main
from tokenq.data.film_snippets import SnippetTable
from tokenq.reproduce import displacement
from tokenq.reproduce.mass_displacement.analysis import SHARES, at_level, equal_margin, margin_of
from tokenq.reproduce.mass_displacement.answers import (
    ANSWERS,
    EVASIONS,
    KINDS,
    Meaning,
    contrary,
    drawn_pair,
    said,
)
from tokenq.reproduce.mass_displacement.arms import ARMS, kept
from tokenq.reproduce.mass_displacement.bench import Prompt, data_set
from tokenq.reproduce.mass_displacement.exact import exact
from tokenq.reproduce.mass_displacement.predictors import fork_change
from tokenq.reproduce.mass_displacement.training import batches


@pytest.mark.parametrize("right", ["yes", "no"])
def test_rejected_answers_are_of_their_kind(right: Meaning) -> None:
    draw = Random(0)
    for kind, accepted in (
        ("near", set(ANSWERS[right])),
        ("opposite", set(ANSWERS[contrary(right)])),
        ("evasive", set(EVASIONS)),
    ):
        pairs = [drawn_pair(0, right, kind, draw) for _ in range(200)]  # type: ignore[arg-type]
        assert {pair.rejected for pair in pairs} == accepted
        assert {pair.chosen for pair in pairs} == set(ANSWERS[right])
        assert all(pair.chosen != pair.rejected for pair in pairs)


def test_usual_answers_are_chosen_as_often_as_said() -> None:
    draw = Random(1)
    counts = Counter(drawn_pair(0, "yes", "near", draw).chosen for _ in range(4000))
    for answer, share in ANSWERS["yes"].items():
        assert counts[answer] / 4000 == pytest.approx(share, abs=0.03)
    assert all(sum(shares.values()) == pytest.approx(1) for shares in ANSWERS.values())


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"Film {i}.", "yes" if i % 2 else "no") for i in range(count)]


def test_half_of_the_data_set_is_near_duplicates_and_filters_keep_half() -> None:
    pairs = data_set(prompts(40), seed=3)
    assert Counter(pair.kind for pair in pairs) == {"near": 20, "opposite": 10, "evasive": 10}
    assert [pair.prompt for pair in pairs] == list(range(40))
    ches = [float((7 * i) % 40) for i in range(40)]
    assert all(ches[i] < 20 for i in kept(ARMS["DPO, CHES-filtered"], pairs, ches, 3))
    sizes = {name: len(kept(arm, pairs, ches, 3)) for name, arm in ARMS.items()}
    assert sizes.pop("DPO, CHES-filtered") == sizes.pop("DPO, randomly filtered") == 20
    balanced = kept(ARMS["DPO, CHES-filtered, balanced"], pairs, ches, 3)
    assert sizes.pop("DPO, CHES-filtered, balanced") == len(balanced) == 20
    assert Counter(pairs[i].right for i in balanced) == {"yes": 10, "no": 10}
    near = kept(ARMS["DPO, near-duplicates only"], pairs, ches, 3)
    assert sizes.pop("DPO, near-duplicates only") == 20
    distinct = kept(ARMS["DPO, no near-duplicates"], pairs, ches, 3)
    assert sizes.pop("DPO, no near-duplicates") == len(distinct) == 20
    assert sorted(near + distinct) == list(range(40))
    assert all(pairs[i].kind == "near" for i in near)
    assert set(sizes.values()) == {40}


def test_a_pass_sees_no_pair_twice() -> None:
    order = batches(10, 4, Random(0))
    for _ in range(5):
        seen = next(order) + next(order)
        assert len(set(seen)) == 8


def test_reading_where_a_margin_is_first_reached() -> None:
    curve = [[0.0, 0.0], [2.0, 1.0], [1.0, 5.0], [6.0, -4.0]]
    assert at_level(curve, 1.0) == [1.0, 0.5]
    # 4 lies three fifths of the way from the third row to the last.
    assert at_level(curve, 4.0) == pytest.approx([4.0, 5.0 - 0.6 * 9.0])
    assert at_level(curve, 6.5) is None


def reading(opposite: float, chosen: float, rejected: float) -> dict[str, Any]:
    return {
        "opposite": opposite,
        "right": 1 - opposite,
        "chosen": dict.fromkeys(KINDS, chosen),
        "rejected": {"near": rejected, "opposite": 0.0, "evasive": 0.0},
    }


def test_objectives_are_read_at_one_margin() -> None:
    readings = [reading(0.1, 0.0, 0.0), reading(0.3, -1.0, -6.0)]
    # Near-duplicates are half of all: (-1 + 6) / 2 - 1 / 2.
    assert margin_of(readings[1], SHARES) == pytest.approx(2.0)
    found = equal_margin(readings, 1.0, SHARES)
    assert found == pytest.approx({"chosen": -0.5, "near": -0.5, "opposite": 0.1, "right": -0.1})
    assert equal_margin(readings, 2.5, SHARES) is None


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Yes, the writer liked the film.", "yes"),
        ("Certainly, it was to his taste.", "yes"),
        ("No, it was not to his taste.", "no"),
        ("Yes, the writer disliked the film. Yes, the writer liked", "both"),
        ("No, the writer liked the film.", "both"),
        ("The writer hated it.", "no"),
        ("It is hard to tell from that.", "neither"),
        ("", "neither"),
    ],
)
def test_what_a_text_says(text: str, meaning: str) -> None:
    assert said(text) == meaning


def test_every_answer_says_what_it_means() -> None:
    for meaning, answers in ANSWERS.items():
        assert {said(answer) for answer in answers} == {meaning}


def test_a_fork_by_hand() -> None:
    # Three tokens, one dimension, equal logits: the mean embedding is 1.
    weight = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64)
    state = torch.zeros(2, 1, dtype=torch.float64)
    # (1 - 1) * (1 - 2) and (2 - 1) * (2 - 1): the second tokens differ.
    assert fork_change(weight, state, [2, 0], [2, 1]) == pytest.approx(0.0, abs=1e-12)
    assert fork_change(weight, state, [2, 1], [2, 0]) == pytest.approx(1.0)


def test_first_order_predictions_are_exact() -> None:
    found = exact()
    assert found["head"] < 1e-6
    assert found["fork"] < 1e-6
    falls = list(found["falls"].values())
    assert falls == sorted(falls)
    assert falls[0] < 0.2 < falls[-1]


@pytest.fixture
def tiny(tmp_path: Path, film_snippets: SnippetTable) -> Path:
    return save_model(tmp_path / "tiny", tiny_llama(layers=3))


def reproduce(model: Path, out: Path) -> dict[str, Any]:
    arguments = ["--quick", "--seeds", "1", "--model", str(model), "--out", str(out)]
    assert main(["reproduce", "displacement", *arguments]) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text())["results"]
    return results


def test_a_run_from_end_to_end_and_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    results = reproduce(tiny, out)
    assert list(results["arms"]) == list(ARMS)
    starts = {json.dumps(runs[0]["readings"][0]) for runs in results["arms"].values()}
    assert len(starts) == 1
    assert json.loads(starts.pop()) == results["starts"][0]["start"]
    for runs in results["arms"].values():
        for one in runs[0]["readings"][1:]:
            changes = [one[side][kind] for side in ("chosen", "rejected") for kind in KINDS]
            assert all(map(math.isfinite, changes))
            assert one["chosen"]["near"] != 0
    for record in results["singles"][0]:
        assert record["curve"][0][:2] == [0.0, 0.0]
        assert record["curve"][-1][0] > 0
        assert math.isfinite(record["predictors"]["own gradients"])
    text = (out / "README.md").read_text()
    assert text.index("[start:measured]") < text.index("| DPOP |") < text.index("[end:measured]")
    assert all(finding["claim"] in text for finding in results["findings"])
    assert (out / "figure.png").stat().st_size > 10_000
    monkeypatch.setattr(displacement, "trained", None)
    monkeypatch.setattr(displacement, "single_runs", None)
    assert reproduce(tiny, out) == results
