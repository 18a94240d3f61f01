"""Rankings: the scores of `credit`, controls worked out by hand, files ready to train on."""

import json
from pathlib import Path

import pytest
from scipy.stats import kendalltau
from small_pairs import small_pair

import tokenq
from tokenq.credit import credit_dataset
from tokenq.credit.dataset import CreditOptions
from tokenq.credit.finished import open_finished, records_by_row
from tokenq.credit.ranking import (
    SIGNALS,
    RankingSummary,
    ResponseSums,
    rank,
    rank_dataset,
    ranked_responses,
)
from tokenq.data.loading import Rows, load_rows, source_columns
from tokenq.errors import UserError
from tokenq.models.pair import Pair

RESPONSES = [
    " A warm, funny film.",
    " The plot is a dull mess of clichés.",
    " An uneven but charming debut with a terrific lead.",
    " Jokes land with a thud 🎬.",
]


@pytest.fixture
def pair() -> Pair:
    return small_pair()


def rows_of(folder: Path, rows: list[dict]) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(path)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_those_of_credit(pair: Pair) -> None:
    ranking = rank(pair, "Review:", RESPONSES, beta=0.3)
    assert sorted(each.place for each in ranking) == [0, 1, 2, 3]
    assert [each.score for each in ranking] == sorted((e.score for e in ranking), reverse=True)
    for each in ranking:
        assert each.response == RESPONSES[each.place]
        alone = tokenq.credit(pair, "Review:", RESPONSES[each.place], beta=0.3)
        assert each.score == pytest.approx(alone.reward, abs=1e-5)
        logp, ref_logp = (float(part.double().sum()) for part in (alone.logps, alone.ref_logps))
        assert each.signals == pytest.approx({
            "implicit_reward": alone.reward,
            "implicit_reward_per_token": alone.reward / len(alone),
            "policy_logp": logp,
            "policy_logp_per_token": logp / len(alone),
            "reference_logp": ref_logp,
            "reference_logp_per_token": ref_logp / len(alone),
            "shorter": -len(alone),
        }, abs=1e-4)  # fmt: skip


@pytest.mark.parametrize("by", SIGNALS)
def test_any_signal_orders(by: str, pair: Pair) -> None:
    ranking = rank(pair, [{"role": "user", "content": "Review"}], RESPONSES, by=by)
    scores = [each.signals[by] for each in ranking]
    assert scores == sorted(scores, reverse=True)
    assert scores == [each.score for each in ranking]


def test_beta_changes_no_order_and_ties_stay_as_given(pair: Pair) -> None:
    orders = [
        [each.place for each in rank(pair, "Review:", RESPONSES, beta=beta)] for beta in (0.01, 3)
    ]
    assert orders[0] == orders[1]
    same = rank(pair, "Review:", [RESPONSES[0]] * 3)
    assert [each.place for each in same] == [0, 1, 2]


@pytest.mark.parametrize(
    ("responses", "by", "said"),
    [
        ([], "implicit_reward", "no responses to rank"),
        (RESPONSES, "beauty", "ranked by 'beauty'; accepted: implicit_reward, "),
        ([" A film.", ""], "implicit_reward", "empty"),
    ],
)
def test_what_cannot_be_ranked(responses: list[str], by: str, said: str, pair: Pair) -> None:
    with pytest.raises(UserError, match=said):
        rank(pair, "Review:", responses, by=by)
    with pytest.raises(UserError, match="has no reference"):
        rank(Pair(pair.policy, None, pair.tokenizer, "p"), "Review:", RESPONSES)


def sums(reward: float, logp: float, ref_logp: float, tokens: int) -> ResponseSums:
    return ResponseSums(reward, logp, ref_logp, tokens)


def test_the_summary_is_the_one_counted_by_hand() -> None:
    summary = RankingSummary("implicit_reward")
    responses = [sums(3, -9, -12, 3), sums(1, -4, -5, 4), sums(2, -7, -9, 2)]
    summary.add(ranked_responses(["a", "b", "c"], responses, "implicit_reward"), [0, 1, 1])
    # Two of the ordered pairs: a above b and a above c. The rewards are 3 > 2 > 1.
    plain = summary.to_dict()
    assert plain["mean_margin"] == 1
    assert plain["agreement"]["implicit_reward"] == {
        "pairs": 2, "accuracy": 1.0, "prompts": 1, "top_1": 1.0}  # fmt: skip
    # By policy log-prob: b, c, a.
    assert plain["agreement"]["policy_logp"]["accuracy"] == 0
    # Fewest tokens first: c (2), a (3), b (4): above b only.
    assert plain["agreement"]["shorter"]["accuracy"] == 0.5
    assert plain["kendall_tau"]["policy_logp"] == pytest.approx(-1)
    assert plain["kendall_tau"]["shorter"] == pytest.approx(
        kendalltau([3, 1, 2], [-3, -4, -2]).statistic
    )
    assert "implicit_reward" not in plain["kendall_tau"]

    # Responses without an order count nothing there.
    alone = RankingSummary("implicit_reward")
    alone.add(ranked_responses(["a", "b", "c"], responses, "implicit_reward"), [0, 0, 0])
    assert alone.to_dict()["agreement"] is None
    assert alone.to_dict()["prompts"] == 1


def test_a_data_set_becomes_rankings_and_rows_to_train_on(tmp_path: Path, pair: Pair) -> None:
    source = [
        {"prompt": f"Review {i}:", "responses": RESPONSES[i:] + RESPONSES[:i], "id": i}
        for i in range(3)
    ]
    rows = rows_of(tmp_path, source)
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(beta=0.3, alternatives=0))
    summary = rank_dataset(rows, run.path, tmp_path / "out", keep=2, min_margin=0.0)
    assert (summary.prompts, summary.responses) == (3, 12)
    assert summary.to_dict()["agreement"] is None

    ranked = lines(tmp_path / "out/ranked.jsonl")
    saved = {record["row"]: record["responses"] for record in run.records()}
    for line, row in zip(ranked, source, strict=True):
        rewards = [saved[line["row"]][str(place + 1)]["reward"] for place in line["places"]]
        assert line["scores"] == rewards == sorted(rewards, reverse=True)
        assert line["completions"] == [row["responses"][place] for place in line["places"]]
        assert line["margin"] == rewards[0] - rewards[1]
        alone = rank(pair, row["prompt"], row["responses"], beta=0.3)
        assert [each.place for each in alone] == line["places"]
        assert line["scores"] == pytest.approx([each.score for each in alone], abs=1e-4)

    # What was written is read back as rows of its kind, in the same order.
    again = load_rows(tmp_path / "out/ranked.jsonl")
    assert again.kind == "ranked"
    assert again.dataset[0]["completions"] == ranked[0]["completions"]
    assert again.dataset[0]["ranks"] == [0, 1, 2, 3]
    best = load_rows(tmp_path / "out/best.jsonl")
    assert best.kind == "sft"
    assert list(best.dataset["completion"]) == [
        text for line in ranked for text in line["completions"][:2]
    ]
    pairs = load_rows(tmp_path / "out/pairs.jsonl")
    assert pairs.kind == "preference"
    for found, line in zip(pairs.dataset, ranked, strict=True):
        assert found["chosen"] == line["completions"][0]
        assert found["rejected"] == line["completions"][-1]
        assert found["score_chosen"] - found["score_rejected"] > 0

    wide = min(line["scores"][0] - line["scores"][-1] for line in ranked)
    rank_dataset(rows, run.path, tmp_path / "wide", min_margin=wide)
    assert len(lines(tmp_path / "wide/pairs.jsonl")) == 2


def test_preference_rows_and_messages_keep_what_they_hold(tmp_path: Path, pair: Pair) -> None:
    def said(text: str) -> list[dict]:
        return [{"role": "assistant", "content": text}]

    source = [
        {
            "prompt": [{"role": "user", "content": f"Review {i}"}],
            "chosen": said(RESPONSES[i].strip()),
            "rejected": said(RESPONSES[i + 1].strip()),
            "chat_template_kwargs": {"style": "short"},
        }
        for i in range(3)
    ]
    rows = rows_of(tmp_path, source)
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(alternatives=0))
    summary = rank_dataset(rows, run.path, tmp_path / "out")
    found = summary.to_dict()["agreement"]["implicit_reward"]
    assert found["accuracy"] == run.summary.accuracy == found["top_1"]
    assert 0 < found["pairs"] == 3
    for line, row in zip(lines(tmp_path / "out/pairs.jsonl"), source, strict=True):
        assert {json.dumps(line[name]) for name in ("chosen", "rejected")} == {
            json.dumps(row[name]) for name in ("chosen", "rejected")
        }
        assert line["prompt"] == row["prompt"]
        assert line["chat_template_kwargs"] == {"style": "short"}


def test_rows_that_could_not_be_scored_are_counted(tmp_path: Path, pair: Pair) -> None:
    source = [
        {"prompt": "Review:", "responses": RESPONSES[:2]},
        {"prompt": "word " * 200, "responses": RESPONSES[:2]},
    ]
    rows = rows_of(tmp_path, source)
    room = len(pair.tokenizer("Review:")["input_ids"]) + 4
    options = CreditOptions(alternatives=0, max_length=room)
    run = credit_dataset(pair, rows, tmp_path / "out", options)
    summary = rank_dataset(rows, run.path, tmp_path / "out")
    assert summary.prompts == 1
    assert sum(summary.skipped.values()) == 1
    assert summary.truncated == 2
    assert [line["row"] for line in lines(tmp_path / "out/ranked.jsonl")] == [0]


def test_finished_records_must_be_those_of_the_rows(tmp_path: Path, pair: Pair) -> None:
    rows = rows_of(tmp_path, [{"prompt": "Q", "responses": RESPONSES[:2]}] * 2)
    with pytest.raises(UserError, match=r"no credit\.jsonl"):
        open_finished(tmp_path / "out", rows)
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(alternatives=0, beta=0.7))
    path, settings = open_finished(tmp_path / "out", rows)
    assert path == run.path
    assert settings["beta"] == 0.7
    assert [(row["row"], record["row"]) for row, record in records_by_row(path, rows)] == [
        (0, 0), (1, 1)]  # fmt: skip
    other = rows_of(tmp_path, [{"prompt": "Q", "responses": RESPONSES[1:3]}] * 2)
    with pytest.raises(UserError, match="over other rows: its data_fingerprint"):
        open_finished(tmp_path / "out", other)
    (tmp_path / "out/settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings.json: is no JSON \("):
        open_finished(tmp_path / "out", rows)


def test_empty_cells_are_no_columns() -> None:
    row = {"a": None, "b": [{"role": "user", "tool_calls": None}], "c": 0, "d": {"e": None}}
    assert source_columns(row) == {"b": [{"role": "user"}], "c": 0, "d": {}}


def test_what_the_user_said_in_between_ranks_nothing(tmp_path: Path, pair: Pair) -> None:
    prompt = [{"role": "user", "content": "film?"}]
    responses = [
        [
            {"role": "assistant", "content": "A warm film."},
            {"role": "user", "content": asked},
            {"role": "assistant", "content": " A dull mess."},
        ]
        for asked in ("and?", "What else is there to say of it, in a word or two?")
    ]
    found = {each.place: each for each in rank(pair, prompt, responses, beta=0.3)}
    rows = rows_of(tmp_path, [{"prompt": prompt, "responses": responses}])
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(beta=0.3, alternatives=0))
    [record] = run.records()
    for place, response in enumerate(responses):
        alone = tokenq.credit(pair, prompt, response, beta=0.3)
        turns = alone.turns()
        own = [at for turn in turns for at in range(turn.first, turn.last)]
        assert len(own) < len(alone)
        assert found[place].tokens == len(own)
        expected = {
            "implicit_reward": alone.reward,
            "policy_logp": float(alone.logps[own].sum()),
            "reference_logp": float(alone.ref_logps[own].sum()),
            "shorter": -len(own),
        }
        saved = ResponseSums.of_record(record["responses"][str(place + 1)])
        for signals in (found[place].signals, {n: f(saved) for n, f in SIGNALS.items()}):
            assert {n: signals[n] for n in expected} == pytest.approx(expected, abs=1e-4)


def test_a_tie_does_not_learn_the_best_response_from_its_place() -> None:
    summary = RankingSummary("implicit_reward")
    responses = [sums(0.0, -9, -9, 3), sums(0.0, -4, -4, 4)]
    # Data sets give the better response first, and equal ones stay in the order given.
    summary.add(ranked_responses(["good", "bad"], responses, "implicit_reward"), [0, 1])
    found = summary.to_dict()["agreement"]["implicit_reward"]
    assert (found["accuracy"], found["top_1"]) == (0.5, 0.5)
