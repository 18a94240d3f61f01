"""Whole data sets: the same numbers as one by one, every kind of row, resuming, refusing."""

import gc
import json
import tracemalloc
from pathlib import Path

import pytest
from small_pairs import random_model, small_pair
from torch import nn

import tokenq
import tokenq.credit.dataset as dataset
from tokenq.credit import credit_dataset
from tokenq.credit.dataset import CreditOptions
from tokenq.credit.parquet import write_parquet
from tokenq.credit.vocabulary import VocabularyReader
from tokenq.data.encoding import encode
from tokenq.data.loading import Rows, load_rows
from tokenq.errors import UserError
from tokenq.models.pair import Pair, load_pair, reference_of
from tokenq.models.reference_cache import ReferenceCache

SENTENCES = [
    " A warm, funny film.",
    " The plot is a dull mess of clichés.",
    " An uneven but charming debut with a terrific lead.",
    " Jokes land with a thud 🎬.",
]
PAIRS = [
    {"prompt": f"Review {i}:", "chosen": SENTENCES[i % 4], "rejected": SENTENCES[(i + 1) % 4]}
    for i in range(9)
]


def rows_of(folder: Path, rows: list[dict]) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(path)


@pytest.fixture
def pair() -> Pair:
    return small_pair()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "credit.jsonl").read_text().splitlines()]


def test_a_data_set_is_its_responses_one_by_one(tmp_path: Path, pair: Pair) -> None:
    options = CreditOptions(beta=0.2, alternatives=2, min_probability=0.0, token_budget=64)
    run = credit_dataset(pair, rows_of(tmp_path, PAIRS), tmp_path / "out", options)
    records = lines(tmp_path / "out")
    assert [record["row"] for record in records] == list(range(9))
    correct = 0
    for record, row in zip(records, PAIRS, strict=True):
        assert record["prompt"] == row["prompt"]
        for name in ("chosen", "rejected"):
            alone = tokenq.credit(pair, row["prompt"], row[name], beta=0.2)
            expected, side = alone.to_dict(alternatives=2), record["responses"][name]
            for exact in ("response", "tokens", "token_ids", "offsets"):
                assert side[exact] == expected[exact]
            for close in ("logps", "ref_logps", "rewards", "values", "reward"):
                assert side[close] == pytest.approx(expected[close], abs=5e-5)
            for ours, theirs in zip(side["alternatives"], expected["alternatives"], strict=True):
                assert [each["token_id"] for each in ours] == [each["token_id"] for each in theirs]
            assert side["tokens_cut"] == 0
        sums = [record["responses"][name]["reward"] for name in ("chosen", "rejected")]
        assert record["margin"] == pytest.approx(sums[0] - sums[1], abs=1e-5)
        correct += sums[0] > sums[1]
    assert 0 < correct < 9
    assert run.summary.accuracy == correct / 9
    assert run.summary.rows == 9
    assert run.summary.tokens == sum(
        len(side["token_ids"]) for record in records for side in record["responses"].values()
    )
    assert run.summary.to_dict()["rewards/margins"] == pytest.approx(
        sum(record["margin"] for record in records) / 9
    )


def test_reference_log_probs_come_from_the_shared_cache(tmp_path: Path, pair: Pair) -> None:
    rows = rows_of(tmp_path, PAIRS)
    first = credit_dataset(pair, rows, tmp_path / "1", CreditOptions(alternatives=0))
    cache = ReferenceCache.open(reference_of(pair))
    assert cache.stats().rows == len({(row["prompt"], row["chosen"]) for row in PAIRS} | {
        (row["prompt"], row["rejected"]) for row in PAIRS
    })  # fmt: skip
    forwards = []
    reference_of(pair).register_forward_pre_hook(lambda *_: forwards.append(1))
    second = credit_dataset(pair, rows, tmp_path / "2", CreditOptions(alternatives=0))
    assert not forwards
    assert list(first.records()) == list(second.records())


def test_without_alternatives_the_numbers_are_the_same(tmp_path: Path, pair: Pair) -> None:
    rows = rows_of(tmp_path, PAIRS)
    for count in (0, 1):
        credit_dataset(pair, rows, tmp_path / str(count), CreditOptions(alternatives=count))
    for bare, full in zip(lines(tmp_path / "0"), lines(tmp_path / "1"), strict=True):
        for name, side in bare["responses"].items():
            assert "alternatives" not in side
            assert side["logps"] == pytest.approx(full["responses"][name]["logps"], abs=2e-5)


@pytest.mark.parametrize(
    ("row", "names", "ordered"),
    [
        ({"prompt": "Review:", "completion": SENTENCES[0]}, ["completion"], False),
        ({"prompt": "Review:", "completion": SENTENCES[0], "label": True}, ["completion"], False),
        ({"prompt": "Review:", "completions": SENTENCES[:3]}, ["1", "2", "3"], True),
        (
            {
                "messages": [
                    {"role": "user", "content": "Review:"},
                    {"role": "assistant", "content": "A dull mess."},
                ]
            },
            ["completion"],
            False,
        ),
    ],
)
def test_other_kinds_of_rows(
    tmp_path: Path, pair: Pair, row: dict, names: list[str], ordered: bool
) -> None:
    run = credit_dataset(pair, rows_of(tmp_path, [row]), tmp_path / "out")
    [record] = run.records()
    assert list(record["responses"]) == names
    assert ("margin" in record) == ordered
    assert record.get("label") == row.get("label")
    assert (run.summary.accuracy is not None) == ordered


def test_ranked_margin_is_the_worst_violation_and_ties_do_not_count(
    tmp_path: Path, pair: Pair
) -> None:
    row = {"prompt": "Review:", "completions": SENTENCES[:3], "ranks": [0, 1, 1]}
    run = credit_dataset(pair, rows_of(tmp_path, [row]), tmp_path / "out")
    [record] = run.records()
    first, *others = (side["reward"] for side in record["responses"].values())
    assert record["margin"] == pytest.approx(first - max(others), abs=1e-5)


class Cut(Exception):
    """Stands for whatever ends a process."""


def test_a_run_that_was_cut_off_continues(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, options = rows_of(tmp_path, PAIRS), CreditOptions(alternatives=0, token_budget=16)
    credit_dataset(pair, rows, tmp_path / "whole", options)

    def stop_after_some(count: int) -> None:
        nonlocal done
        done += count
        if done >= 3:
            raise Cut

    done = 0
    with pytest.raises(Cut):
        credit_dataset(pair, rows, tmp_path / "cut", options, on_progress=stop_after_some)
    assert not (tmp_path / "cut/credit.jsonl").exists()
    part = tmp_path / "cut/credit.jsonl.0.part"
    assert 0 < len(part.read_text().splitlines()) < 9
    with part.open("a") as file:
        file.write('{"row": 5, "prom')  # a line that was being written

    scored = []
    score = dataset._score
    monkeypatch.setattr(
        dataset,
        "_score",
        lambda pair, jobs, options, cache: scored.extend(jobs) or score(pair, jobs, options, cache),
    )
    credit_dataset(pair, rows, tmp_path / "cut", options)
    assert [job.row for job in scored] == list(range(done, 9))
    assert (tmp_path / "cut/credit.jsonl").read_text() == (
        tmp_path / "whole/credit.jsonl"
    ).read_text()
    assert not part.exists()

    scored.clear()
    again = credit_dataset(pair, rows, tmp_path / "cut", options)
    assert not scored
    assert again.summary.rows == 9


def test_a_folder_of_another_run_is_refused(tmp_path: Path, pair: Pair) -> None:
    rows, out = rows_of(tmp_path, PAIRS[:2]), tmp_path / "out"
    credit_dataset(pair, rows, out, CreditOptions(beta=0.1))
    before = (out / "credit.jsonl").read_text()
    with pytest.raises(UserError, match=r"its beta is 0\.1, now it is 0\.2"):
        credit_dataset(pair, rows, out, CreditOptions(beta=0.2))
    other = load_pair(
        random_model("llama", len(pair.tokenizer), 7), pair.reference, tokenizer=pair.tokenizer
    )
    with pytest.raises(UserError, match="its policy_hash is"):
        credit_dataset(other, rows, out, CreditOptions(beta=0.1))
    assert (out / "credit.jsonl").read_text() == before


def test_a_row_that_cannot_be_tokenised(tmp_path: Path, pair: Pair) -> None:
    pair.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}{{ eos_token }}"
    )
    rows = rows_of(
        tmp_path,
        [
            {"prompt": [{"role": "user", "content": text}], "completion": [
                {"role": "assistant", "content": " A film."}]}
            for text in ("good", "bad", "fine")
        ],
    )  # fmt: skip
    with pytest.raises(UserError, match="row 1: the chat template refuses"):
        credit_dataset(pair, rows, tmp_path / "out")
    run = credit_dataset(pair, rows, tmp_path / "out2", CreditOptions(skip_bad_rows=True))
    assert [record["row"] for record in run.records()] == [0, 2]
    assert sum(run.summary.skipped.values()) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("beta", 0.0), ("alternatives", -1), ("min_probability", 1.0)]
)
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; accepted"):
        CreditOptions(**{name: value})


def test_no_reference_is_refused_before_anything_is_written(tmp_path: Path, pair: Pair) -> None:
    alone = Pair(pair.policy, None, pair.tokenizer, "p")
    with pytest.raises(UserError, match="has no reference"):
        credit_dataset(alone, rows_of(tmp_path, PAIRS[:1]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scoring_leaves_the_models_as_they_were(tmp_path: Path, pair: Pair) -> None:
    assert isinstance(pair.policy, nn.Module)
    pair.policy.train()
    credit_dataset(pair, rows_of(tmp_path, PAIRS[:2]), tmp_path / "out")
    assert pair.policy.training
    assert all(parameter.grad is None for parameter in pair.policy.parameters())


def test_facts_are_those_of_each_response_alone(tmp_path: Path, pair: Pair) -> None:
    options = CreditOptions(alternatives=0, facts=True, token_budget=32)
    credit_dataset(pair, rows_of(tmp_path, PAIRS), tmp_path / "out", options)
    for record in lines(tmp_path / "out"):
        for side in record["responses"].values():
            assert "alternatives" not in side
            encoded = encode(pair.tokenizer, record["prompt"], side["response"])
            facts = VocabularyReader(pair, encoded.prompt_ids, encoded.response_ids).facts
            fields = (facts.entropy, facts.ref_entropy, facts.divergence)
            for name, field in zip(dataset.FACTS, fields, strict=True):
                assert side[name] == pytest.approx(field.tolist(), abs=5e-5)
            assert min(side["divergences"]) > 1e-3


def test_a_pair_is_explained_place_by_place(tmp_path: Path, pair: Pair) -> None:
    rows = rows_of(tmp_path, [*PAIRS[:3]])
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(alternatives=0))
    for record in run.records():
        total = sum(segment["difference"] for segment in record["segments"])
        assert total == pytest.approx(record["margin"], abs=1e-4)
        assert record["segments"][-1]["kind"] == "end"


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak of what Python allocates, for so many rows and for four times as many."""
    options = CreditOptions(alternatives=3, min_probability=0.0, facts=True, token_budget=64)
    monkeypatch.setattr("tokenq.credit.parquet._ROWS", 8)
    peaks = []
    for count in (24, 24, 96):  # the first one also fills what is kept for good
        rows = [{**PAIRS[i % 9], "row_name": f"{i}"} for i in range(count)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = load_rows(tmp_path / "rows.jsonl", streaming=True)
        out = tmp_path / f"out-{len(peaks)}"
        tracemalloc.start()
        # Garbage that waits for its collection would be counted by chance.
        run = credit_dataset(pair, source, out, options, on_progress=lambda _: gc.collect())
        write_parquet(run.records(), out / "credit.parquet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.summary.rows == count
    assert peaks[2] < 1.15 * peaks[1]


def test_estimates_are_those_of_each_response_alone(tmp_path: Path, pair: Pair) -> None:
    names = ("plain", "centred", "words")
    options = CreditOptions(alternatives=0, estimators=names, token_budget=32)
    run = credit_dataset(pair, rows_of(tmp_path, PAIRS[:3]), tmp_path / "out", options)
    for record in run.records():
        for side in record["responses"].values():
            assert not set(dataset.FACTS) & set(side)
            alone = tokenq.credit(pair, record["prompt"], side["response"])
            assert list(side["estimates"]) == list(names)
            for name, values in side["estimates"].items():
                assert values == pytest.approx(alone.estimate(name).tolist(), abs=5e-5)
            assert side["estimates"]["centred"] != side["estimates"]["plain"]
    with pytest.raises(UserError, match="estimator is 'wishful'; accepted: plain, centred"):
        CreditOptions(estimators=("wishful",))


def test_an_estimator_that_needs_no_vocabulary_reads_the_reference_from_the_cache(
    tmp_path: Path, pair: Pair
) -> None:
    rows = rows_of(tmp_path, PAIRS)
    options = CreditOptions(alternatives=0, estimators=("words",))
    credit_dataset(pair, rows, tmp_path / "1", options)
    forwards = []
    reference_of(pair).base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    credit_dataset(pair, rows, tmp_path / "2", options)
    assert not forwards
    credit_dataset(pair, rows, tmp_path / "3", CreditOptions(alternatives=0, facts=True))
    assert forwards


def test_several_turns_of_an_answer_are_scored_as_alone(tmp_path: Path, pair: Pair) -> None:
    prompt = [{"role": "user", "content": "Review:"}]
    answer = [
        {"role": "assistant", "content": "A film."},
        {"role": "user", "content": "Dull?"},
        {"role": "assistant", "content": "A mess."},
    ]
    alone = tokenq.credit(pair, prompt, answer)
    rows = rows_of(tmp_path, [{"prompt": prompt, "completion": answer}])
    run = credit_dataset(pair, rows, tmp_path / "whole", CreditOptions(alternatives=0))
    [record] = run.records()
    side = record["responses"]["completion"]
    assert side["turn_numbers"] == list(alone.turn_numbers)
    assert side["offsets"] == [list(offset) for offset in alone.offsets]
    assert side["rewards"] == pytest.approx(alone.rewards.tolist(), abs=5e-5)
    longest = len(alone) - 3 + len(pair.tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False))  # fmt: skip
    options = CreditOptions(alternatives=0, max_length=longest)
    run = credit_dataset(pair, rows, tmp_path / "cut", options)
    [record] = run.records()
    cut = record["responses"]["completion"]
    assert (cut["tokens_cut"], cut["turn_numbers"]) == (3, side["turn_numbers"][:-3])
