"""Rows that come as ids: what is read, what is refused, by file, line and field."""

import json

import datasets
import pytest

from tokenq.data import holds_token_ids, load_tokenised, prepare, tokenised_kind
from tokenq.data.loading import Rows
from tokenq.errors import UserError

PAIR = {
    "prompt_ids": [5, 9],
    "chosen_ids": [3, 2],
    "chosen_rewards": [0.5, -1],
    "chosen_segments": [0, 0],
    "rejected_ids": [4, 1, 2],
    "rejected_rewards": [-0.25, 0, 1],
    "rejected_segments": [0, -1, 1],
}
RANKED = {"prompt_ids": [5], "completions_ids": [[1, 2], [3, 2]], "ranks": [0, 1]}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_with_features(tmp_path):
    path = written(tmp_path / "rows.jsonl", PAIR | {"note": "mine"}, PAIR)
    loaded = load_tokenised(path)
    assert loaded.kind == "preference"
    assert list(loaded.dataset) == [PAIR | {"row": 0}, PAIR | {"row": 1}]
    assert loaded.report.to_dict()["response_tokens"]["mean"] == 2.5
    assert loaded.dataset.features["chosen_rewards"].feature.dtype == "float32"
    other = written(tmp_path / "other.jsonl", PAIR, PAIR)
    assert load_tokenised(other).fingerprint != loaded.fingerprint


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (RANKED | {"completions_edits": [[True, False], [True, False]]}, "ranked"),
        ({"prompt_ids": [5], "completion_ids": [1, 2], "label": False}, "unpaired"),
        ({"prompt_ids": [5], "completion_ids": [1, 2]}, "sft"),
    ],
)
def test_other_kinds_and_parquet(tmp_path, row, kind):
    assert tokenised_kind(row) == kind
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    for path in (written(tmp_path / "rows.jsonl", row), tmp_path / "rows.parquet"):
        loaded = load_tokenised(path)
        assert loaded.kind == kind
        assert list(loaded.dataset) == [row | {"row": 0}]


def test_files_of_ids_are_told_from_rows(tmp_path):
    assert holds_token_ids(written(tmp_path / "ids.jsonl", PAIR))
    assert not holds_token_ids(written(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"}))
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    assert not holds_token_ids(tmp_path / "bad.jsonl")


def test_the_first_rows_alone(tmp_path):
    path = written(tmp_path / "ids.jsonl", PAIR, PAIR, PAIR | {"prompt_ids": None})
    loaded = load_tokenised(path, limit=2)
    assert list(loaded.dataset["row"]) == [0, 1]
    assert loaded.fingerprint != load_tokenised(path, limit=1).fingerprint


def test_what_prepare_wrote_comes_back(tmp_path, make_tokenizer):
    rows = [{"row": 0, "prompt": "on", "chosen": " the cat\nsat", "rejected": " a dog"}]
    source = Rows(datasets.Dataset.from_list(rows), "preference", "h", "f", 0)
    prepared = prepare(source, make_tokenizer("byte_level"), segments="steps")
    prepared.dataset.to_json(tmp_path / "rows.jsonl")
    loaded = load_tokenised(tmp_path / "rows.jsonl")
    assert list(loaded.dataset) == list(prepared.dataset)
    assert loaded.dataset.features == prepared.dataset.features


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PAIR | {"chosen_rewards": [1.0]}, "field 'chosen_rewards' has 1 values; accepted: 2"),
        ({k: v for k, v in PAIR.items() if k != "chosen_rewards"}, "'chosen_rewards' has no list"),
        (PAIR | {"rejected_ids": []}, "field 'rejected_ids' holds no token ids; accepted: a list"),
        (PAIR | {"rejected_ids": "abc"}, "field 'rejected_ids' holds no token ids"),
        (PAIR | {"prompt_ids": [1, -1]}, "field 'prompt_ids' holds no token ids"),
        (PAIR | {"prompt_ids": None}, "field 'prompt_ids' holds no token ids"),
    ],
)
def test_malformed_pairs(tmp_path, row, said):
    path = written(tmp_path / "rows.jsonl", PAIR, row)
    with pytest.raises(UserError, match=f"rows.jsonl, line 2: .*{said}"):
        load_tokenised(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (RANKED | {"ranks": [0]}, r"field 'ranks' is \[0\]; accepted: 2 whole numbers"),
        (RANKED | {"ranks": [0, -1]}, "field 'ranks'"),
        (RANKED | {"completions_ids": [[1]]}, "two or more lists"),
        ({"prompt_ids": [5], "completion_ids": [1], "label": "no"}, "field 'label' is 'no'"),
        ({"prompt": "a", "completion": "b"}, "has the columns prompt, completion; accepted"),
    ],
)
def test_other_malformed_rows(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        load_tokenised(written(tmp_path / "rows.jsonl", row))


def test_broken_and_empty_files(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(PAIR) + "\n[1]\n")
    with pytest.raises(UserError, match="line 2: is a JSON list"):
        load_tokenised(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="holds no rows"):
        load_tokenised(written(tmp_path / "none.jsonl"))
