"""Rules and margins by hand; scores of tiny models against the plain forward."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_pairs import small_pair
from torch import Tensor, nn

from tokenq.data.loading import Rows, load_rows
from tokenq.data.preparation import Prepared, prepare
from tokenq.errors import UserError
from tokenq.judges import PairScore, ResponseScore, judge_pairs, reliability_figure, score_pairs
from tokenq.models.pair import Pair

SCORES = [
    # implicit reward +4, policy -12 v -15, a token -3 v -2.5, reference -12 v -11
    PairScore(0, ResponseScore(-12.0, -12.0, 4), ResponseScore(-15.0, -11.0, 6)),
    # implicit reward -1, policy -10 v -9, a token -2 v -3, reference -8 v -8 (a tie)
    PairScore(3, ResponseScore(-10.0, -8.0, 5), ResponseScore(-9.0, -8.0, 3)),
]


def test_rules_by_hand() -> None:
    found = {name: each.value for name, each in judge_pairs(SCORES, beta=0.5).accuracy.items()}
    assert found == {
        "implicit reward": 0.5,
        "policy log-prob": 0.5,  # right, wrong
        "policy log-prob per token": 0.5,  # wrong, right
        "reference log-prob": 0.25,  # wrong, tie
        "reference log-prob per token": 0.5,  # -3 v -11/6 wrong, -1.6 v -8/3 right
        "longer in tokens": 0.5,  # wrong, right
    }


def test_margins_by_hand() -> None:
    report = judge_pairs(SCORES, beta=0.5)
    margins = report.margins
    assert margins.mean == pytest.approx(0.75)  # +2 and -0.5
    assert margins.sd == pytest.approx(2.5 / math.sqrt(2))
    assert margins.quantiles["0.5"] == pytest.approx(0.75)
    assert margins.quantiles["0.25"] == pytest.approx(0.125)
    assert margins.low is not None
    assert margins.high is not None
    assert -0.5 <= margins.low <= margins.mean <= margins.high <= 2
    assert report.calibration.log_loss == pytest.approx(
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(0.5))) / 2
    )
    assert (report.chosen_tokens, report.rejected_tokens) == (4.5, 4.5)
    assert SCORES[0].record(0.5)["probability"] == pytest.approx(1 / (1 + math.exp(-2)))


def test_a_tie_is_half_right_here_and_wrong_under_the_training_name() -> None:
    tied = replace(SCORES[0], rejected=SCORES[0].chosen)
    report = judge_pairs([tied], beta=0.1)
    assert report.accuracy["implicit reward"].value == 0.5
    plain = report.to_dict()
    assert plain["rewards/accuracies"] == 0
    assert plain["margins"]["sd"] is None


def test_beta_scales_margins_and_leaves_accuracy() -> None:
    one, ten = judge_pairs(SCORES, beta=0.1), judge_pairs(SCORES, beta=1.0)
    assert ten.margins.mean == pytest.approx(10 * one.margins.mean)
    assert one.accuracy == ten.accuracy
    assert one.calibration != ten.calibration


@pytest.fixture
def pair() -> Pair:
    return small_pair()


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    texts = ["A warm, funny film.", "A dull mess.", "An uneven but charming debut.", "A thud."]
    lines = (
        f'{{"prompt": "Review {i % 2}: ", "chosen": "{texts[i % 4]}", '
        f'"rejected": "{texts[(i + 1) % 4]}"}}\n'
        for i in range(11)
    )
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    return load_rows(tmp_path / "pairs.jsonl")


def plain_logp(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(response)[:, None]).sum()


def test_scores_are_those_of_the_plain_forward(tmp_path: Path, pair: Pair, rows: Rows) -> None:
    prepared = prepare(rows, pair.tokenizer, max_length=128)
    counts: list[int] = []
    scores = score_pairs(
        pair, prepared, token_budget=32, cache_root=tmp_path / "cache", on_progress=counts.append
    )
    assert sum(counts) == len(scores) == 11
    assert len(counts) > 1
    for score, row in zip(scores, prepared.dataset, strict=True):
        assert score.row == row["row"]
        for name in ("chosen", "rejected"):
            side, ids = getattr(score, name), row[f"{name}_ids"]
            logp, ref_logp = (
                plain_logp(model, row["prompt_ids"], ids) for model in (pair.policy, pair.reference)
            )
            assert side.tokens == len(ids)
            assert side.logp == pytest.approx(float(logp), abs=1e-4)
            assert side.ref_logp == pytest.approx(float(ref_logp), abs=1e-4)


def test_a_second_run_asks_the_cache_instead_of_the_reference(
    tmp_path: Path, pair: Pair, rows: Rows
) -> None:
    prepared = prepare(rows, pair.tokenizer, max_length=128)
    first = score_pairs(pair, prepared, cache_root=tmp_path)
    calls: list[int] = []
    assert isinstance(pair.reference, nn.Module)
    pair.reference.register_forward_pre_hook(lambda *_: calls.append(1))
    assert score_pairs(pair, prepared, cache_root=tmp_path) == first
    assert not calls


def test_without_reference_or_pairs_there_is_one_line(pair: Pair, rows: Rows) -> None:
    prepared = prepare(rows, pair.tokenizer, max_length=128)
    alone = Pair(pair.policy, None, pair.tokenizer, "policy")
    with pytest.raises(UserError, match="has no reference"):
        score_pairs(alone, prepared)
    other = Prepared(prepared.dataset, "sft", prepared.report, prepared.fingerprint)
    with pytest.raises(UserError, match=r"kind 'sft'.*preference"):
        score_pairs(pair, other)


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    report = judge_pairs(SCORES, beta=0.5)
    reliability_figure(tmp_path / "r.png", {"one": report.calibration, "two": report.calibration})
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["r.png"]
