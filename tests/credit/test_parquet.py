"""The Parquet file of a scored data set says what its JSON lines say."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from small_pairs import small_pair

from tokenq.credit import credit_dataset
from tokenq.credit import parquet as credit_parquet
from tokenq.credit.dataset import FACTS, CreditOptions, CreditRun
from tokenq.credit.parquet import write_parquet
from tokenq.data.loading import load_rows

MESSAGES = [{"role": "user", "content": "Review:"}]


def scored(folder: Path, rows: list[dict], **options: object) -> CreditRun:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return credit_dataset(small_pair(), load_rows(path), folder / "out", CreditOptions(**options))


def test_one_row_a_response_with_all_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credit_parquet, "_ROWS", 3)
    rows = [
        {"prompt": f"Review {i}:", "chosen": " A film 🎬.", "rejected": " Dull."} for i in range(4)
    ]
    run = scored(tmp_path, rows, alternatives=2, facts=True, min_probability=0.0)
    write_parquet(run.records(), tmp_path / "credit.parquet")
    table = parquet.read_table(tmp_path / "credit.parquet")
    found = table.to_pylist()
    records = list(run.records())
    assert len(found) == 8
    for place, response in enumerate(found):
        record = records[place // 2]
        name = ("chosen", "rejected")[place % 2]
        side = record["responses"][name]
        assert (response["row"], response["name"], response["rank"]) == (
            place // 2,
            name,
            place % 2,
        )
        assert (response["prompt"], response["label"]) == (record["prompt"], None)
        assert response["margin"] == record["margin"]
        assert (
            list(map(list, zip(response["starts"], response["ends"], strict=True)))
            == (side["offsets"])
        )
        for exact in ("response", "reward", "tokens", "token_ids", "tokens_cut"):
            assert response[exact] == side[exact]
        for column in ("logps", "ref_logps", "rewards", "values", *FACTS):
            assert response[column] == pytest.approx(side[column], abs=1e-5)
        for ours, theirs in zip(response["alternatives"], side["alternatives"], strict=True):
            assert [each["token"] for each in ours] == [each["token"] for each in theirs]
            for one, other in zip(ours, theirs, strict=True):
                assert one["reward"] == pytest.approx(other["reward"], abs=1e-6)


def test_what_was_not_kept_is_null_and_messages_are_their_json(tmp_path: Path) -> None:
    rows = [{"prompt": MESSAGES, "completion": [{"role": "assistant", "content": "Dull."}]}]
    run = scored(tmp_path, rows, alternatives=0)
    write_parquet(run.records(), tmp_path / "credit.parquet")
    [response] = parquet.read_table(tmp_path / "credit.parquet").to_pylist()
    assert json.loads(response["prompt"]) == MESSAGES
    assert (response["name"], response["response"]) == ("completion", "Dull.")
    for name in ("rank", "margin", "label", "alternatives", "estimates", *FACTS):
        assert response[name] is None


def test_labels_ranks_and_rows_that_were_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Review:", "completions": [" A film.", " Dull.", " Bad."], "ranks": [0, 1, 1]},
        {"prompt": "word " * 200, "completions": [" A film.", " Dull."], "ranks": [0, 1]},
    ]
    run = scored(tmp_path, rows, alternatives=0)
    assert run.summary.skipped
    write_parquet(run.records(), tmp_path / "credit.parquet")
    found = parquet.read_table(tmp_path / "credit.parquet").to_pylist()
    assert [(each["row"], each["name"], each["rank"]) for each in found] == [
        (0, "1", 0), (0, "2", 1), (0, "3", 1),
    ]  # fmt: skip


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_parquet([{"row": 0, "prompt": "x", "responses": {"a": {}}}], tmp_path / "c.parquet")
    assert not list(tmp_path.iterdir())
