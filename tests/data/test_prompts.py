"""Prompts are read from every kind of row, with the other columns beside them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tokenq.data.prompts import load_prompts, one_prompt
from tokenq.errors import UserError

SAYS = [{"role": "user", "content": "Hello?"}]
ANSWER = [{"role": "assistant", "content": "Yes."}]


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Review:"}, "Review:"),
        ({"prompt": SAYS, "chosen": "a", "rejected": "b"}, SAYS),
        ({"instruction": "Sum up."}, "Sum up."),
        ({"messages": SAYS}, SAYS),
        ({"messages": SAYS + ANSWER}, SAYS),
        ({"chosen": SAYS + ANSWER, "rejected": [*SAYS, {**ANSWER[0], "content": "No."}]}, SAYS),
        ({"chosen": "A film: good", "rejected": "A film: bad"}, "A film:"),
    ],
)
def test_a_prompt_is_found_in_every_kind_of_row(tmp_path: Path, row: dict, prompt: Any) -> None:
    [found] = load_prompts(written(tmp_path, row)).rows
    assert found.prompt == prompt
    assert found.where.endswith("rows.jsonl, line 1")


def test_other_columns_are_carried_along_and_chat_makes_messages(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a", "answer": "7"}, {"prompt": SAYS, "id": 3})
    first, second = load_prompts(path, chat=True).rows
    assert (first.prompt, first.columns) == ([{"role": "user", "content": "a"}], {"answer": "7"})
    assert (second.prompt, second.columns, second.row) == (SAYS, {"id": 3}, 1)
    assert one_prompt("a", chat=True).rows[0].prompt == first.prompt


def test_limits_and_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"prompt": "a", "x": 1}, {"prompt": "b", "x": None}]).to_parquet(
        str(path)
    )
    whole, one = load_prompts(path), load_prompts(path, limit=1)
    assert [row.columns for row in whole.rows] == [{"x": 1}, {}]
    assert len(one.rows) == 1
    assert one.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match="limit is 0"):
        load_prompts(path, limit=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "line 2: has the fields question; accepted: prompt or"),
        ({"prompt": 3}, "line 2: field 'prompt' is 3; accepted: a list of messages"),
        ({"prompt": " "}, "line 2: field 'prompt' is empty"),
        ({"prompt": SAYS + ANSWER}, "ends with an assistant message"),
        ({"chosen": "good", "rejected": "bad"}, "shares no beginning"),
        ({"chosen": "good", "rejected": SAYS}, "both text, or both messages"),
        ([1], "line 2: is a JSON list"),
    ],
)
def test_a_row_without_a_prompt_is_named_or_set_aside(
    tmp_path: Path, row: Any, message: str
) -> None:
    path = written(tmp_path, {"prompt": "a"}, row)
    with pytest.raises(UserError) as caught:
        load_prompts(path)
    assert message in str(caught.value)
    prompts = load_prompts(path, rejects=tmp_path / "rejects.jsonl")
    assert (len(prompts.rows), prompts.rejected) == (1, 1)
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["row"] == 1
