"""Credit as columns of the rows: aligned with the ids, and what training takes."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from small_pairs import random_model, small_pair, small_tokenizer

from tokenq.credit import CreditRun, credit_dataset
from tokenq.credit import columns as credit_columns
from tokenq.credit.columns import write_columns
from tokenq.credit.dataset import CreditOptions
from tokenq.data import check_features
from tokenq.data.loading import Rows, load_rows
from tokenq.data.tokenised import load_tokenised
from tokenq.errors import UserError
from tokenq.models.pair import Pair
from tokenq.training import PreferenceConfig, PreferenceTrainer

PAIRS: list[dict[str, Any]] = [
    {
        "prompt": f"Review {i}:",
        "chosen": " A warm, funny film." + " A lead." * (i % 3),
        "rejected": " The plot is a dull mess." * (1 + i % 2),
        "source": {"site": "s", "stars": [i, 1]},
    }
    for i in range(7)
]


@pytest.fixture
def pair() -> Pair:
    return small_pair()


def rows_of(folder: Path, rows: list[dict[str, Any]]) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(path)


def scored(pair: Pair, rows: Rows, out: Path, **options: Any) -> CreditRun:
    return credit_dataset(pair, rows, out, CreditOptions(alternatives=0, **options))


def test_rows_keep_their_columns_and_get_ids_and_rewards(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credit_columns, "_BATCH", 3)
    rows = rows_of(tmp_path, PAIRS)
    run = scored(pair, rows, tmp_path / "out", estimators=("words",))
    for estimator in ("plain", "words"):
        dataset = run.columns(rows, pair.tokenizer, estimator=estimator)
        assert len(dataset) == 7
        check_features(dataset, ["chosen_rewards", "rejected_rewards"])
        for row, source, record in zip(dataset, PAIRS, run.records(), strict=True):
            assert {name: row[name] for name in source} == source
            assert row["prompt_ids"] == pair.tokenizer(source["prompt"])["input_ids"]
            for name in ("chosen", "rejected"):
                side = record["responses"][name]
                credit = side["rewards"] if estimator == "plain" else side["estimates"]["words"]
                assert row[f"{name}_ids"] == side["token_ids"]
                assert row[f"{name}_ids"][-1] == pair.tokenizer.eos_token_id
                assert row[f"{name}_rewards"] == pytest.approx(credit, abs=1e-6)
    with pytest.raises(UserError, match="no credit by 'centred'; accepted: plain, words"):
        run.columns(rows, pair.tokenizer, estimator="centred")


@pytest.mark.parametrize("name", ["sepo", "tgdpo"])
def test_training_learns_from_the_columns(tmp_path: Path, pair: Pair, name: str) -> None:
    """SePO and TGDPO train on the file; other credit gives another loss."""
    rows = rows_of(tmp_path, PAIRS)
    run = scored(pair, rows, tmp_path / "out")
    run.columns(rows, pair.tokenizer)
    path = tmp_path / "out" / "columns.parquet"
    reversed_path = tmp_path / "reversed.parquet"
    turned = datasets.Dataset.from_parquet(str(path)).map(
        lambda row: {
            f"{side}_rewards": row[f"{side}_rewards"][::-1] for side in ("chosen", "rejected")
        }
    )
    turned.to_parquet(reversed_path)
    losses = []
    for number, source in enumerate((path, path, reversed_path)):
        config = PreferenceConfig(
            output_dir=str(tmp_path / f"run-{number}"), loss_type=[name], max_steps=3,
            per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, report_to="none",
            logging_steps=1, save_strategy="no", disable_tqdm=True, seed=3,
            reference_cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        model = random_model("llama", len(small_tokenizer()), 5)
        trainer = PreferenceTrainer(
            model=model, args=config, train_dataset=str(source), processing_class=pair.tokenizer
        )
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)


def test_cut_responses_keep_the_ids_that_were_scored(tmp_path: Path, pair: Pair) -> None:
    rows = rows_of(tmp_path, PAIRS)
    prompt = len(pair.tokenizer(PAIRS[0]["prompt"])["input_ids"])
    run = scored(pair, rows, tmp_path / "out", max_length=prompt + 4)
    for row in run.columns(rows, pair.tokenizer):
        assert len(row["chosen_ids"]) == len(row["chosen_rewards"])
        assert len(row["prompt_ids"]) + len(row["chosen_ids"]) == prompt + 4
        assert row["chosen_ids"][-1] != pair.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("row", "ids"),
    [
        ({"prompt": "Review:", "completion": " A film."}, "completion_ids"),
        ({"prompt": "Review:", "completion": " A film.", "label": False}, "completion_ids"),
        (
            {"prompt": "Review:", "completions": [" A film.", " Dull."], "ranks": [0, 1]},
            "completions_ids",
        ),
    ],
)
def test_other_kinds_of_rows_load_as_token_ids(
    tmp_path: Path, pair: Pair, row: dict[str, Any], ids: str
) -> None:
    rows = rows_of(tmp_path, [row, row])
    run = scored(pair, rows, tmp_path / "out")
    dataset = run.columns(rows, pair.tokenizer)
    rewards = f"{ids.removesuffix('_ids')}_rewards"
    check_features(dataset, [rewards])
    loaded = load_tokenised(tmp_path / "out" / "columns.parquet")
    assert loaded.kind == rows.kind
    assert loaded.dataset[0][rewards] == dataset[0][rewards]
    for name in ("label", "ranks"):
        if name in row:
            assert loaded.dataset[0][name] == row[name]


def test_what_is_left_out_is_counted(tmp_path: Path, pair: Pair) -> None:
    long = {**PAIRS[0], "prompt": "word " * 200}
    # " film" is one token: the prompt's last one goes into one answer and not into the other.
    merging = {**PAIRS[0], "prompt": "A warm fil", "chosen": "m here.", "rejected": " Dull."}
    rows = rows_of(tmp_path, [long, *PAIRS[:2], merging])
    run = scored(pair, rows, tmp_path / "out")
    assert sum(run.summary.skipped.values()) == 1
    report = write_columns(rows, pair.tokenizer, run.records(), tmp_path / "c.parquet")
    assert report.rows == 2
    assert dict(report.left_out) == {"not scored": 1, "answers begin at different tokens": 1}
    assert [row["row"] for row in datasets.Dataset.from_parquet(str(tmp_path / "c.parquet"))] == [
        1, 2,
    ]  # fmt: skip


def test_a_stream_keeps_its_token_columns_only(tmp_path: Path, pair: Pair) -> None:
    rows = rows_of(tmp_path, PAIRS)
    streamed = load_rows(tmp_path / "rows.jsonl", streaming=True)
    run = scored(pair, streamed, tmp_path / "out")
    ours = run.columns(streamed, pair.tokenizer)
    assert "source" not in ours.column_names
    theirs = run.columns(rows, pair.tokenizer)
    assert ours[:] == theirs.select_columns(ours.column_names)[:]


def test_other_rows_and_other_tokenizers_are_refused(tmp_path: Path, pair: Pair) -> None:
    run = scored(pair, rows_of(tmp_path, PAIRS), tmp_path / "out")
    path = tmp_path / "c.parquet"
    changed = [{**row, "chosen": row["chosen"][::-1]} for row in PAIRS]
    with pytest.raises(UserError, match="row 0: 'chosen' has other tokens than those"):
        write_columns(rows_of(tmp_path, changed), pair.tokenizer, run.records(), path)
    with pytest.raises(UserError, match="has no row 3, which was scored"):
        write_columns(rows_of(tmp_path, PAIRS[:3]), pair.tokenizer, run.records(), path)
    with pytest.raises(UserError, match=r"other tokens than those that were scored"):
        write_columns(rows_of(tmp_path, PAIRS), small_tokenizer(300), run.records(), path)
    with pytest.raises(UserError, match="no row has token credit to be kept"):
        write_columns(rows_of(tmp_path, PAIRS), pair.tokenizer, iter([]), path)
    assert not path.exists()
