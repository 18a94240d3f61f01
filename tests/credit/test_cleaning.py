"""Disputed labels: what margins say of them, planted wrong labels found, and the files of a run."""

import copy
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.special import expit
from small_pairs import random_model, small_pair, small_tokenizer
from torch import nn

from tokenq.credit import cleaning, credit_dataset
from tokenq.credit.cleaning import (
    CleaningSummary,
    clean_dataset,
    dispute,
    disputed_records,
    fit_label_noise,
)
from tokenq.credit.dataset import CreditOptions
from tokenq.data.encoding import encode
from tokenq.data.loading import Rows, load_rows
from tokenq.errors import UserError
from tokenq.models.pair import Pair, load_pair

# --- how margins speak for labels


def simulated(
    seed: int, count: int, rate: float, scale: float, sd: float
) -> tuple[np.ndarray, np.ndarray]:
    """Margins as labelled, and which labels are wrong: Bradley-Terry with labels that err."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(0, sd, count)
    first_is_better = generator.random(count) < expit(scale * differences)
    wrong = generator.random(count) < rate
    return np.where(first_is_better ^ wrong, differences, -differences), wrong


def test_the_posterior_is_the_one_that_integration_gives() -> None:
    margins = np.array([2.0, -1.0, 0.5])
    spread = np.sqrt(np.mean(margins**2))

    def density(rate: float, log_scale: float) -> float:
        right = expit(np.exp(log_scale) * margins)
        return float(np.prod((1 - rate) * right + rate * (1 - right)))

    low, high = np.log(0.01 / spread), np.log(100 / spread)

    def mean(value) -> float:  # type: ignore[no-untyped-def]
        whole, _ = dblquad(density, low, high, 0, 0.5)
        part, _ = dblquad(lambda r, s: value(r, np.exp(s)) * density(r, s), low, high, 0, 0.5)
        return part / whole

    noise = fit_label_noise(margins)
    assert noise.rate == pytest.approx(mean(lambda rate, scale: rate), abs=2e-3)
    for margin in (-1.0, 2.0):
        expected = mean(
            lambda rate, scale, margin=margin: (
                rate * expit(-scale * margin)
                / (rate * expit(-scale * margin) + (1 - rate) * expit(scale * margin))
            )
        )  # fmt: skip
        assert noise.probability_wrong(margin) == pytest.approx(expected, abs=2e-3)


def test_the_interval_holds_the_true_rate_as_often_as_it_says() -> None:
    held = []
    for seed in range(40):
        margins, _ = simulated(seed, 300, rate=0.15, scale=2.0, sd=2.0)
        low, high = fit_label_noise(margins).interval
        held.append(low <= 0.15 <= high)
    # 95 % of 40; fewer than 34 has a probability below 1 in 500.
    assert sum(held) >= 34


def test_probabilities_are_shares() -> None:
    margins, wrong = simulated(0, 4000, rate=0.2, scale=1.5, sd=2.0)
    noise = fit_label_noise(margins)
    assert noise.rate == pytest.approx(0.2, abs=0.03)
    probabilities = np.array([noise.probability_wrong(margin) for margin in margins])
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.8), (0.8, 1.0)):
        inside = (probabilities >= low) & (probabilities < high)
        assert inside.sum() > 50
        assert wrong[inside].mean() == pytest.approx(probabilities[inside].mean(), abs=0.08)
    order = np.argsort(margins)
    assert (np.diff(probabilities[order]) <= 1e-12).all()


def test_trusted_pairs_tell_the_scale() -> None:
    # Small margins: without them, doubtful labels and a doubtful policy look alike.
    margins, _ = simulated(1, 400, rate=0.1, scale=1.0, sd=0.7)
    known, _ = simulated(2, 4000, rate=0.0, scale=1.0, sd=0.7)
    blind, told = fit_label_noise(margins), fit_label_noise(margins, known)
    widths = [high - low for low, high in (blind.interval, told.interval)]
    assert widths[1] < 0.8 * widths[0]
    assert told.interval[0] <= 0.1 <= told.interval[1]


def test_many_margins_enter_as_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    margins, _ = simulated(3, 3000, rate=0.1, scale=1.0, sd=3.0)
    exact = fit_label_noise(margins)
    monkeypatch.setattr(cleaning, "_BINS", 300)
    binned = fit_label_noise(margins)
    assert binned.rate == pytest.approx(exact.rate, abs=2e-3)
    assert binned.probability_wrong(-2.0) == pytest.approx(exact.probability_wrong(-2.0), abs=5e-3)


@pytest.mark.parametrize("margins", [[], [1.0, float("nan")], [float("inf")]])
def test_margins_that_are_none_are_refused(margins: list[float]) -> None:
    with pytest.raises(ValueError, match="margin"):
        fit_label_noise(margins)


def test_equal_margins_say_nothing_about_labels() -> None:
    # Nobody can tell wrong labels from a policy that knows nothing: the prior is left.
    assert fit_label_noise([0.0] * 50).rate == pytest.approx(0.25, abs=1e-3)


# --- why a label is disputed


def side(tokens: list[str], rewards: list[float]) -> dict:
    """A saved response: its tokens, and an end token that has the last reward."""
    offsets, reached = [], 0
    for token in tokens:
        offsets.append([reached, reached + len(token)])
        reached += len(token)
    text = "".join(tokens)
    return {
        "response": text,
        "offsets": [*offsets, [reached, reached]],
        "rewards": rewards,
        "token_ids": [0] * len(rewards),
    }


def test_reasons_are_the_words_that_speak_against_the_label() -> None:
    record = {
        "margin": -4.0,
        "responses": {
            "chosen": side(
                [" Lima", " is", " in", " Chile", " today", "."], [0.5, 0, 0, -3, 0, -0.5, 0.2]
            ),
            "rejected": side(
                [" Lima", " is", " in", " Peru", " today", "!"], [0, 0, 0, 1, 0, 0, 0.2]
            ),
        },
    }
    found = dispute(record, fit_label_noise([2.0, 1.0, -4.0]))
    assert found.margin == pytest.approx(-4.0)
    assert found.content_margin == pytest.approx(-3.5)
    assert [(each.side, each.text) for each in found.reasons] == [
        ("chosen", " Chile"),
        ("rejected", " Peru"),
        ("chosen", "."),
    ]
    assert [each.difference for each in found.reasons] == pytest.approx([-3.0, -1.0, -0.5])
    assert (found.reasons[1].start, found.reasons[1].end) == (11, 16)
    assert found.shared == pytest.approx(0.5)
    assert len(dispute(record, fit_label_noise([1.0]), reasons=1).reasons) == 1
    json.dumps(found.to_dict())


# --- wrong labels planted in pairs, judged by a policy that was trained on others

GOOD = ["warm", "funny", "charming", "terrific"]
BAD = ["dull", "mess", "thud", "uneven"]
NOUNS = ["film", "debut", "plot", "lead", "jokes", "review"]


def sentences(nouns: list[str]) -> list[dict]:
    return [
        {"prompt": "Review:", "chosen": f" A {good} {noun}.", "rejected": f" A {bad} {noun}."}
        for noun, good, bad in product(nouns, GOOD, BAD)
    ]


def response_logp(model: nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + response])
    logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()


@pytest.fixture(scope="module")
def trained_pair() -> Pair:
    """A tiny policy that DPO has taught good words from bad ones, on some nouns."""
    tokenizer = small_tokenizer()
    reference = random_model("llama", len(tokenizer), 2)
    policy = copy.deepcopy(reference)
    optimiser = torch.optim.Adam(policy.parameters(), lr=2e-3)
    rows = sentences(NOUNS[:2])
    encoded = [
        [encode(tokenizer, row["prompt"], row[name]) for name in ("chosen", "rejected")]
        for row in rows
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for at in torch.randperm(len(rows), generator=generator).tolist():
            ratios = []
            for each in encoded[at]:
                ids = each.prompt_ids, each.response_ids
                with torch.no_grad():
                    before = response_logp(reference, *ids)
                ratios.append(response_logp(policy, *ids) - before)
            loss = -nn.functional.logsigmoid(0.5 * (ratios[0] - ratios[1]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return load_pair(policy, reference, tokenizer=tokenizer)


def rows_of(folder: Path, rows: list[dict]) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(path)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_planted_wrong_labels_are_found(tmp_path: Path, trained_pair: Pair) -> None:
    source = sentences(NOUNS[2:])
    flipped = {at for at in range(len(source)) if at % 8 == 3}
    for at in flipped:
        row = source[at]
        source[at] = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    rows = rows_of(tmp_path, source)
    run = credit_dataset(
        trained_pair, rows, tmp_path / "out", CreditOptions(beta=0.5, alternatives=0)
    )
    summary = clean_dataset(rows, run.path, tmp_path / "out", flip=0.5)
    disputed = lines(tmp_path / "out/disputed.jsonl")
    found = {line["row"] for line in disputed}
    recall, precision = len(found & flipped) / len(flipped), len(found & flipped) / len(found)
    assert recall >= 0.75
    assert precision >= 0.75
    low, high = summary.noise.interval
    assert low <= 1 / 8 <= high
    # What is named is the word.
    named = [line["dispute"]["reasons"][0] for line in disputed if line["row"] in flipped]
    words = [
        reason["text"].strip() in (BAD if reason["side"] == "chosen" else GOOD) for reason in named
    ]
    assert sum(words) >= 0.75 * len(words)
    # Exchanged where the policy is sure; those labels are right now.
    exchanged = lines(tmp_path / "out/flipped.jsonl")
    assert summary.flipped == len(exchanged) > 0
    right = [any(word in line["chosen"] for word in GOOD) for line in exchanged]
    assert sum(right) >= 0.75 * len(right)


# --- files


@pytest.fixture
def pair() -> Pair:
    return small_pair()


def test_every_row_goes_to_one_file_and_comes_back_as_it_was(tmp_path: Path, pair: Pair) -> None:
    source = [
        {"prompt": "Review:", "chosen": f" A {good} film.", "rejected": f" A {bad} film!", "id": i}
        for i, (good, bad) in enumerate(product(GOOD, BAD))
    ]
    source.append({"prompt": "word " * 200, "chosen": " A.", "rejected": " B.", "id": 16})
    rows = rows_of(tmp_path, source)
    options = CreditOptions(alternatives=0, max_length=100)
    run = credit_dataset(pair, rows, tmp_path / "out", options)
    margins = {record["row"]: record["margin"] for record in run.records()}
    threshold = sorted(margins.values())[5]
    summary = clean_dataset(rows, run.path, tmp_path / "out", threshold=threshold)
    files = {name: lines(tmp_path / f"out/{name}.jsonl") for name in
             ("kept", "disputed", "unscored")}  # fmt: skip
    assert not (tmp_path / "out/flipped.jsonl").exists()
    assert [len(each) for each in files.values()] == [11, 5, 1]
    assert summary.disputed == 5
    assert summary.margins.count == 16
    assert sum(summary.skipped.values()) == 1
    for name, found in files.items():
        assert [line["row"] for line in found] == sorted(line["row"] for line in found)
        for line in found:
            assert {key: line[key] for key in source[0]} == source[line["row"]]
            if name != "unscored":
                assert (margins[line["row"]] >= threshold) == (name == "kept")
    for line in files["disputed"]:
        assert line["dispute"]["margin"] == pytest.approx(margins[line["row"]], abs=1e-5)
        reasons = [reason["difference"] for reason in line["dispute"]["reasons"]]
        assert reasons == sorted(reasons)
        assert all(reason < 0 for reason in reasons)
    assert load_rows(tmp_path / "out/kept.jsonl").kind == "preference"

    shown = list(disputed_records(run.path, threshold))
    assert [record["row"] for record in shown] == [line["row"] for line in files["disputed"]]
    for record in shown:
        total = sum(segment["difference"] for segment in record["segments"])
        assert total == pytest.approx(record["margin"], abs=1e-4)


def test_other_rows_and_no_scored_row_are_refused(tmp_path: Path, pair: Pair) -> None:
    ranked = rows_of(tmp_path, [{"prompt": "Q", "responses": [" A.", " B."]}])
    with pytest.raises(UserError, match="of kind 'ranked'; accepted: preference pairs"):
        clean_dataset(ranked, tmp_path / "none", tmp_path / "out")
    rows = rows_of(tmp_path, [{"prompt": "word " * 200, "chosen": " A.", "rejected": " B."}])
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(alternatives=0, max_length=20))
    with pytest.raises(UserError, match="no row could be scored"):
        clean_dataset(rows, run.path, tmp_path / "out")


@pytest.mark.parametrize(
    ("agreeing", "count", "known", "said"),
    [
        (98, 100, False, "agrees with 98.0% of the labels"),
        (96, 100, False, None),
        (20, 20, False, None),
        (50, 100, True, "was trained on these pairs"),
    ],
)
def test_who_judges_what_it_was_trained_on_is_told(
    agreeing: int, count: int, known: bool, said: str | None
) -> None:
    summary = CleaningSummary(fit_label_noise([1.0]), agreeing=agreeing)
    for _ in range(count):
        summary.margins.add(1.0)
    warning = summary.memorised(known)
    if said is None:
        assert warning is None
    else:
        assert said in str(warning)
