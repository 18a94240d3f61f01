"""Response files of every accepted form, and how two of them are paired."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from tokenq.errors import UserError
from tokenq.judges import Comparison
from tokenq.judges.responses import pair_up, read_responses

CHAT = [{"role": "user", "content": "p1"}]


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "p1", "response": "a"}, {"prompt": "p2", "response": "b"}],
        [{"instruction": "p1", "output": "a", "set": "d"}, {"instruction": "p2", "output": "b"}],
        [{"prompt": "p1", "completion": "a"}, {"prompt": "p2", "completion": "b"}],
        [{"prompt": "p1", "responses": [{"text": "a"}]},
         {"prompt": "p2", "responses": [{"text": "b", "score": 1}]}],
        [{"prompt": "p1", "completions": [[{"role": "assistant", "content": "a"}]]},
         {"prompt": "p2", "completions": [[{"role": "assistant", "content": "b"}]]}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_every_form_says_the_same(tmp_path: Path, rows: list[Any], suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        listed = datasets.Dataset.from_list([{**names, **row} for row in rows])
        listed.to_parquet(path)
    else:
        write(path, rows)
    found = read_responses(path)
    assert found.texts == {"p1": ["a"], "p2": ["b"]}
    assert found.prompts == {"p1": "p1", "p2": "p2"}


def test_what_search_writes_is_read(tmp_path: Path) -> None:
    """Several ranked responses a prompt, each an object with its text and scores; some none."""
    row = {"prompt": CHAT, "responses": [{"text": "best", "score": -1.0}, {"text": "second"}]}
    skipped = {"prompt": "p2", "skipped": "prompt_too_long"}
    found = read_responses(write(tmp_path / "s.jsonl", [row, skipped]))
    [key] = found.texts
    assert found.texts[key] == ["best", "second"]
    assert found.prompts[key] == CHAT
    first = read_responses(tmp_path / "s.jsonl", first_only=True)
    assert list(first.texts.values()) == [["best"]]


def test_rows_of_one_prompt_are_put_together_and_text_can_be_chat(tmp_path: Path) -> None:
    rows = [{"prompt": "p1", "response": text, "answer": n} for n, text in enumerate("abc")]
    path = write(tmp_path / "r.jsonl", rows)
    found = read_responses(path)
    assert found.texts == {"p1": ["a", "b", "c"]}
    assert found.column("answer") == {"p1": "0"}
    assert found.column("nothing") == {}
    assert read_responses(path, first_only=True).texts == {"p1": ["a"]}
    chat = read_responses(path, chat=True)
    assert list(chat.prompts.values()) == [CHAT]


def test_prompts_are_matched_whatever_the_order(tmp_path: Path) -> None:
    ours = [{"prompt": f"p{i}", "response": f"o{i}"} for i in range(3)]
    theirs = [{"instruction": f"p{i}", "output": f"t{i}"} for i in (2, 0, 1)]
    comparisons = pair_up(
        read_responses(write(tmp_path / "o.jsonl", ours)),
        read_responses(write(tmp_path / "t.json", theirs)),
    )
    assert comparisons == [Comparison(f"p{i}", f"o{i}", f"t{i}") for i in range(3)]


def test_several_responses_stand_against_one_or_as_many(tmp_path: Path) -> None:
    many = read_responses(write(tmp_path / "m.jsonl", [{"prompt": "p", "responses": ["a", "b"]}]))
    one = read_responses(write(tmp_path / "o.jsonl", [{"prompt": "p", "response": "c"}]))
    assert pair_up(many, one) == [Comparison("p", "a", "c", 0), Comparison("p", "b", "c", 1)]
    assert pair_up(one, many) == [Comparison("p", "c", "a", 0), Comparison("p", "c", "b", 1)]
    assert [each.theirs for each in pair_up(many, many)] == ["a", "b"]
    three = read_responses(
        write(tmp_path / "t.jsonl", [{"prompt": "p", "responses": ["a", "b", "c"]}])
    )
    with pytest.raises(UserError, match=r"prompt 'p' has 2 responses in .*, 3 in .*--first_only"):
        pair_up(many, three)


def test_prompts_without_a_counterpart_are_named(tmp_path: Path) -> None:
    ours = read_responses(
        write(tmp_path / "o.jsonl", [{"prompt": f"p{i}", "response": "o"} for i in range(6)])
    )
    theirs = read_responses(
        write(tmp_path / "t.jsonl", [{"prompt": f"p{i}", "response": "t"} for i in (0, 9)])
    )
    with pytest.raises(UserError, match=r"to 5 of the 6 prompts .* 'p1', 'p2', 'p3', \.\.\.; acc"):
        pair_up(ours, theirs)
    assert [each.prompt for each in pair_up(ours, theirs, matched_only=True)] == ["p0"]
    strangers = read_responses(write(tmp_path / "s.jsonl", [{"prompt": "q", "response": "t"}]))
    with pytest.raises(UserError, match="share no prompt"):
        pair_up(ours, strangers, matched_only=True)


def test_text_and_messages_are_not_the_same_prompt_but_can_be_made_so(tmp_path: Path) -> None:
    text = write(tmp_path / "t.jsonl", [{"prompt": "p1", "response": "a"}])
    chat = write(tmp_path / "c.jsonl", [{"prompt": CHAT, "response": "b"}])
    for sides in ((text, chat), (chat, text)):
        with pytest.raises(UserError, match=r"c\.jsonl are messages, those of .*t\.jsonl text"):
            pair_up(*map(read_responses, sides))
    sides = [read_responses(path, chat=True) for path in (text, chat)]
    assert pair_up(*sides) == [Comparison(CHAT, "a", "b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not valid JSON"),
        ("[1]", "line 2: is a JSON list"),
        ('{"prompt": "p"}', "line 2: has the fields prompt; accepted: a field prompt or"),
        ('{"text": "p", "response": "r"}', "line 2: has the fields text, response; accepted"),
        ('{"prompt": "p", "response": "r", "output": "s"}', "line 2: has the fields prompt, resp"),
        ('{"prompt": 3, "response": "r"}', "line 2: field 'prompt' is 3"),
        ('{"prompt": "p", "response": null}', "line 2: field 'response' is no text"),
        ('{"prompt": "p", "responses": []}', "line 2: field 'responses' is no list with"),
        (
            '{"prompt": "p", "responses": ["a", {"text": null}]}',
            "line 2: field 'responses[1].text'",
        ),
        ('{"prompt": "p", "response": "\\ud800"}', "line 2: field 'response' holds half of a surr"),
        ('{"prompt": [{"role": "user"}], "response": "r"}', "line 2: field 'prompt[0].content'"),
    ],
)
def test_a_row_that_is_not_so_is_named_by_line_and_field(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "p", "response": "r"}\n' + line + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        read_responses(path)


def test_nothing_is_no_responses(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no rows"):
        read_responses(tmp_path / "r.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_responses(tmp_path / "gone.jsonl")
