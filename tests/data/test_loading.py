"""Files, folders and names to checked rows."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pytest

from tokenq.data import load_rows
from tokenq.errors import UserError

ROWS = [
    {"prompt": f"Question {i}?", "chosen": f" good {i}", "rejected": f" bad {i}", "source": "s"}
    for i in range(5)
]
CHAT = [
    {
        "chosen": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "no"}],
    }
    for i in range(5)
]


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(rows):
    """Rows without the number that loading adds."""
    return [{name: value for name, value in row.items() if name != "row"} for row in rows]


def write_as(form: str, rows, folder: Path) -> Path:
    path = folder / f"rows.{form}"
    dataset = datasets.Dataset.from_list(rows)
    if form == "jsonl":
        write_jsonl(path, rows)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif form == "data.json":
        path.write_text(json.dumps({"version": "1", "data": rows}))
    elif form == "csv":
        dataset.to_csv(path)
    elif form == "parquet":
        dataset.to_parquet(path)
    elif form == "saved":
        dataset.save_to_disk(path)
    elif form == "saved_splits":
        datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(path)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path_factory.mktemp("home")))


FORMS = ["jsonl", "jsonl.gz", "json", "data.json", "csv", "parquet", "saved", "saved_splits"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form, streaming):
    path = write_as(form, ROWS, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    rows = load_rows(path, streaming=streaming)
    assert rows.kind == "preference"
    assert plain(rows.dataset) == ROWS
    assert [row["row"] for row in rows.dataset] == list(range(5))
    assert rows.rejected == 0
    first = load_rows(path, limit=2, streaming=streaming)
    assert plain(first.dataset) == ROWS[:2]
    assert first.fingerprint != rows.fingerprint
    assert load_rows(path).fingerprint == rows.fingerprint
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written beside the user's data


@pytest.mark.parametrize("form", [form for form in FORMS if form != "csv"])
def test_messages_in_every_form(tmp_path, form):
    rows = load_rows(write_as(form, CHAT, tmp_path))
    assert plain(rows.dataset) == [
        {
            "prompt": [{"role": "user", "content": f"{i}"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for i in range(5)
    ]


def test_extra_columns_are_kept_as_they_are(tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}]
    rows = [
        {**ROWS[0], "tools": tools, "chat_template_kwargs": {"think": True}, "score": 1},
        {**ROWS[1], "tools": [{"type": "other"}], "chat_template_kwargs": {"lang": "fr"}},
        {**ROWS[2], "score": "high", "late": [1, 2]},
    ]
    loaded = plain(load_rows(write_jsonl(tmp_path / "rows.jsonl", rows)).dataset)
    for given, kept in zip(rows, loaded, strict=True):
        assert {name: value for name, value in kept.items() if value is not None} == given


def test_unpaired_and_ranked_and_csv_cells(tmp_path):
    unpaired = tmp_path / "unpaired.csv"
    unpaired.write_text('prompt,completion,label\nQ,"a, b\nc",TRUE\nQ,d,0\n')
    rows = load_rows(unpaired)
    assert rows.kind == "unpaired"
    assert [(row["completion"], row["label"]) for row in rows.dataset] == [
        ("a, b\nc", True),
        ("d", False),
    ]
    ranked = tmp_path / "ranked.csv"
    ranked.write_text('prompt,completions,scores\nQ,"[""a"", ""b""]","[1, 2]"\n')
    assert load_rows(ranked).dataset[0]["completions"] == ["b", "a"]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_ranked_messages_from_arrow(tmp_path, form):
    answers = [[{"role": "assistant", "content": text}] for text in "abc"]
    row = {"prompt": "Q", "completions": answers, "scores": [0.5, 2.0, 1.0]}
    loaded = load_rows(write_as(form, [row], tmp_path)).dataset[0]
    assert loaded["prompt"] == [{"role": "user", "content": "Q"}]
    assert loaded["completions"] == [answers[1], answers[2], answers[0]]
    assert loaded["ranks"] == [0, 1, 2]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "saved"])
def test_responses_without_an_order(tmp_path, form):
    rows = [{"prompt": "Q", "responses": ["a", "b"]}]
    if form == "csv":
        path = tmp_path / "rows.csv"
        path.write_text('prompt,responses\nQ,"[""a"", ""b""]"\n')
    else:
        path = write_as(form, rows, tmp_path)
    loaded = load_rows(path)
    assert loaded.kind == "ranked"
    assert loaded.dataset[0] == {
        "prompt": "Q",
        "completions": ["a", "b"],
        "ranks": [0, 0],
        "row": 0,
    }


def test_message_responses_from_arrow(tmp_path):
    answers = [[{"role": "assistant", "content": text}] for text in "ab"]
    path = write_as("parquet", [{"prompt": "Q", "responses": answers}], tmp_path)
    assert load_rows(path).dataset[0]["completions"] == answers


# --- malformed rows

BAD_JSONL = [
    (b'{"prompt": "Q", "chosen": "a"', "line 3: is not valid JSON"),
    (b'["a"]', "line 3: is a JSON list"),
    (b'{"prompt": "Q", "chosen": "", "rejected": "b"}', "line 3: field 'chosen' is empty"),
    (b'{"prompt": "Q", "chosen": "a"}', "line 3: field 'rejected' is missing or null"),
    (b'{"prompt": "Q", "chosen": "\xff", "rejected": "b"}', "line 3: is not UTF-8"),
]


@pytest.mark.parametrize(("line", "said"), BAD_JSONL)
def test_malformed_line_names_file_line_and_field(tmp_path, line, said):
    good = json.dumps(ROWS[0]).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n" + good + b"\n")
    with pytest.raises(UserError) as caught:
        load_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, {said}")
    assert "accepted: " in message
    assert "\n" not in message
    # Set aside instead: the other rows keep their numbers.
    rejects = tmp_path / "out" / "rejects.jsonl"
    rows = load_rows(path, rejects=rejects)
    assert rows.rejected == 1
    assert [row["row"] for row in rows.dataset] == [0, 2]
    [entry] = [json.loads(each) for each in rejects.read_text().splitlines()]
    assert (entry["row"], entry["where"]) == (1, f"{path}, line 3")
    assert entry["reason"] in message
    assert entry["value"]
    # A stream says the same when it gets there, and sets aside on each pass anew.
    with pytest.raises(UserError, match="line 3"):
        list(load_rows(path, streaming=True).dataset)
    stream = load_rows(path, streaming=True, rejects=tmp_path / "stream.jsonl").dataset
    assert len(list(stream)) == len(list(stream)) == 2
    assert (tmp_path / "stream.jsonl").read_text() == rejects.read_text()


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_malformed_arrow_row_names_row_and_field(tmp_path, form):
    bad = {**ROWS[0], "chosen": None}
    path = write_as(form, [*ROWS, bad], tmp_path)
    for _ in range(2):  # also when the check is remembered from before
        with pytest.raises(UserError, match="row 5: field 'chosen' is missing or null"):
            load_rows(path)
        rows = load_rows(path, rejects=tmp_path / "rejects.jsonl")
        assert (rows.rejected, len(rows.dataset)) == (1, 5)
        [entry] = [json.loads(x) for x in (tmp_path / "rejects.jsonl").read_text().splitlines()]
        assert (entry["row"], entry["value"]) == (5, bad)
        (tmp_path / "rejects.jsonl").unlink()


def test_rejects_file_is_written_even_when_nothing_is_rejected(tmp_path):
    load_rows(write_jsonl(tmp_path / "r.jsonl", ROWS), rejects=tmp_path / "rejects.jsonl")
    assert (tmp_path / "rejects.jsonl").read_text() == ""


def test_malformed_csv(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected\n"two\nlines",a,b\nQ,a\n')
    with pytest.raises(UserError, match="line 4: has 2 cells; accepted: 3"):
        load_rows(path)
    path.write_text("prompt,completion,label\nQ,a,maybe\n")
    with pytest.raises(UserError, match="line 2: field 'label' is \"maybe\""):
        load_rows(path)
    path.write_text('prompt,completion\nQ,"a" b\n')
    with pytest.raises(UserError, match="line 2: cannot be read"):
        load_rows(path)


def test_malformed_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n {"prompt": "Q",\n  "completion" "a"}\n]')
    with pytest.raises(UserError, match=r"rows\.json, line 3: is not valid JSON"):
        load_rows(path)
    path.write_text('{"rows": []}')
    with pytest.raises(UserError, match="holds no list of rows"):
        load_rows(path)
    path.write_text(json.dumps([*ROWS, {**ROWS[0], "prompt": 1}]))
    with pytest.raises(UserError, match=r"rows\.json, row 5: field 'prompt' is 1"):
        load_rows(path)


def test_first_rows_malformed_do_not_decide_the_format(tmp_path):
    bad = [{"chosen": 5, "rejected": 6}, {"note": "x"}]
    path = write_jsonl(tmp_path / "rows.jsonl", bad + CHAT)
    rows = load_rows(path, rejects=tmp_path / "rejects.jsonl")
    assert (rows.rejected, len(rows.dataset)) == (2, 5)


def test_nothing_usable(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(UserError, match="holds no rows"):
        load_rows(empty)
    with pytest.raises(UserError, match="no known kind of row"):
        load_rows(write_jsonl(tmp_path / "text.jsonl", [{"text": "a"}]))
    bad = write_jsonl(tmp_path / "bad.jsonl", [{**ROWS[0], "chosen": ""}])
    with pytest.raises(UserError, match="no usable row"):
        load_rows(bad, rejects=tmp_path / "rejects.jsonl")
    assert (tmp_path / "rejects.jsonl").read_text()
    with pytest.raises(UserError, match="limit is 0"):
        load_rows(bad, limit=0)


# --- where rows come from


def test_folder_of_data_files(tmp_path):
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "train-00001-of-00002.jsonl", ROWS[2:4])
    write_jsonl(tmp_path / "test.jsonl", ROWS[4:])
    assert plain(load_rows(tmp_path).dataset) == ROWS[:4]
    assert plain(load_rows(tmp_path, split="test").dataset) == ROWS[4:]
    with pytest.raises(UserError, match="split 'validation'; accepted: test, train"):
        load_rows(tmp_path, split="validation")


def test_folder_without_split_names_and_with_parquet(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    assert len(load_rows(tmp_path).dataset) == 5
    nested = tmp_path / "hub" / "data"
    nested.mkdir(parents=True)
    datasets.Dataset.from_list(ROWS).to_parquet(nested / "train-00000-of-00001.parquet")
    assert plain(load_rows(tmp_path / "hub").dataset) == ROWS


def test_sources_that_are_not_there(tmp_path):
    for missing in (tmp_path / "no.jsonl", "no/such/place.csv", "./nothing", tmp_path / "no"):
        with pytest.raises(UserError, match="no such file or folder"):
            load_rows(missing)
    with pytest.raises(UserError, match="holds no data file"):
        load_rows(tmp_path)
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match="no known data file"):
        load_rows(tmp_path / "rows.xlsx")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"broken.parquet: is no readable Parquet"):
        load_rows(tmp_path / "broken.parquet")
    with pytest.raises(UserError, match="no such bundled data set; accepted: film-reviews"):
        load_rows("bundled:nothing")
    with pytest.raises(UserError, match="no option 'gape'"):
        load_rows("bundled:film-reviews?gape=1")
    disk = write_as("saved_splits", ROWS, tmp_path)
    with pytest.raises(UserError, match="no split 'dev'; accepted: train, test"):
        load_rows(disk, split="dev")


def test_fingerprint_follows_the_content_not_the_path(tmp_path):
    first = load_rows(write_jsonl(tmp_path / "a.jsonl", ROWS)).fingerprint
    assert load_rows(write_jsonl(tmp_path / "b.jsonl", ROWS)).fingerprint == first
    assert load_rows(write_jsonl(tmp_path / "a.jsonl", ROWS[:4])).fingerprint != first


def test_changed_parquet_file_is_read_anew(tmp_path):
    path = write_as("parquet", ROWS, tmp_path)
    assert len(load_rows(path).dataset) == 5
    write_as("parquet", ROWS[:3], tmp_path)
    assert len(load_rows(path).dataset) == 3


# --- real files


def real(name: str) -> Path:
    root = os.environ.get("TOKENQ_DATA")
    if not root or not (path := Path(root) / name).exists():
        pytest.skip(f"TOKENQ_DATA holds no {name}")
    return path


def test_hh_dialogues(tmp_path):
    path = real("hh/harmless_base_test.jsonl.gz")
    with pytest.raises(UserError, match="line 87: field 'chosen' is empty after the prompt"):
        load_rows(path)
    rows = load_rows(path, rejects=tmp_path / "rejects.jsonl")
    assert len(rows.dataset) + rows.rejected == 2312
    assert 0 < rows.rejected < 50
    whole = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for row in rows.dataset:
        assert row["prompt"].endswith("\n\nAssistant:")
        for side in ("chosen", "rejected"):
            assert row["prompt"] + row[side] == whole[row["row"]][side]


def test_hub_answers_without_a_network(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no such file or folder, and not to be had from the hub"):
        load_rows("nobody/nothing-of-the-kind")


@pytest.mark.parametrize("damaged", ["no gzip file", "cut off", "changed inside"])
def test_a_damaged_gzip_file_is_one_clear_line(tmp_path: Path, damaged: str) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS * 99).encode())
    content = {
        "no gzip file": b"{}\n",
        "cut off": packed[: len(packed) // 2],
        "changed inside": packed[:20] + b"\xff" * 40 + packed[60:],
    }[damaged]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz: cannot be read"):
        load_rows(path)
