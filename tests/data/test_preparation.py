"""Rows to ids: truncation, what is dropped and counted, caches, streams."""

import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenq.data import encode, load_rows, prepare, tokenizer_hash
from tokenq.data.loading import Rows
from tokenq.errors import UserError

ONE_TOKEN = {"prompt": "t", "chosen": " sat", "rejected": "\n"}
PAIR = {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " sat"}


def as_rows(rows, kind="preference", streaming=False):
    numbered = [{**row, "row": 10 + i} for i, row in enumerate(rows)]
    dataset = datasets.Dataset.from_list(numbered)
    if streaming:
        dataset = dataset.to_iterable_dataset()
    return Rows(dataset, kind, "here", "fingerprint", 0)


def chat(question, **answers):
    turn = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    return {"prompt": [{"role": "user", "content": question}], **turn}


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer("byte_level")


@pytest.fixture
def chatty(make_tokenizer):
    return make_tokenizer("byte_level", "default_system", eos="<|im_end|>")


def test_preference_columns_are_those_of_encode(tokenizer):
    prepared = prepare(as_rows([PAIR]), tokenizer)
    [row] = prepared.dataset
    chosen = encode(tokenizer, PAIR["prompt"], PAIR["chosen"])
    rejected = encode(tokenizer, PAIR["prompt"], PAIR["rejected"])
    assert row == {
        "row": 10,
        "prompt_ids": chosen.prompt_ids,
        "chosen_ids": chosen.response_ids,
        "rejected_ids": rejected.response_ids,
    }
    assert prepared.report.to_dict() == {
        "rows": 1,
        "kept": 1,
        "rejected": 0,
        "truncated": 0,
        "prompt_truncated": 0,
        "identical": 0,
        "boundary_shifted": 0,
        "response_altered": 0,
        "dropped": {},
        "dropped_examples": {},
        "prompt_tokens": dict.fromkeys(("mean", "median", "p95", "max"), len(chosen.prompt_ids)),
        "response_tokens": {
            "mean": (len(chosen.response_ids) + len(rejected.response_ids)) / 2,
            "median": len(rejected.response_ids),
            "p95": len(chosen.response_ids),
            "max": len(chosen.response_ids),
        },
    }


def test_other_kinds(tokenizer, chatty):
    [row] = prepare(as_rows([chat("Q", completion="Paris")], "sft"), chatty).dataset
    assert set(row) == {"row", "prompt_ids", "completion_ids"}
    assert chatty.decode(row["completion_ids"]) == "Paris<|im_end|>"

    rows = [{"prompt": "Q", "completion": " a", "label": label} for label in (True, False)]
    assert [row["label"] for row in prepare(as_rows(rows, "unpaired"), tokenizer).dataset] == [
        True,
        False,
    ]

    ranked = {"prompt": "Q", "completions": [" a", " b", " a", " c"], "ranks": [0, 1, 1, 2]}
    [row] = prepare(as_rows([ranked], "ranked"), tokenizer).dataset
    assert [tokenizer.decode(ids) for ids in row["completions_ids"]] == [
        " a</s>",
        " b</s>",
        " c</s>",
    ]
    assert row["ranks"] == [0, 1, 2]


def test_keep_start_cuts_the_ends_of_responses(tokenizer):
    whole = prepare(as_rows([PAIR]), tokenizer).dataset[0]
    prompt, chosen = whole["prompt_ids"], whole["chosen_ids"]
    room = len(whole["rejected_ids"])
    assert room < len(chosen) - 1
    prepared = prepare(as_rows([PAIR]), tokenizer, max_length=len(prompt) + room)
    row = prepared.dataset[0]
    assert row["prompt_ids"] == prompt
    assert row["chosen_ids"] == chosen[:room]  # unfinished: no EOS is put on a cut response
    assert row["rejected_ids"] == whole["rejected_ids"]
    assert prepared.report.truncated == 1


def test_keep_end_cuts_the_beginning_of_the_prompt(tokenizer):
    whole = prepare(as_rows([PAIR]), tokenizer).dataset[0]
    longest = len(whole["chosen_ids"])
    assert len(whole["prompt_ids"]) == 2
    prepared = prepare(
        as_rows([PAIR]), tokenizer, max_length=longest + 1, truncation_mode="keep_end"
    )
    row = prepared.dataset[0]
    assert row["prompt_ids"] == whole["prompt_ids"][-1:]
    assert row["chosen_ids"] == whole["chosen_ids"]
    assert (prepared.report.truncated, prepared.report.prompt_truncated) == (0, 1)
    # Where even one prompt token is too much, the responses give way.
    row = prepare(
        as_rows([PAIR]), tokenizer, max_length=longest - 1, truncation_mode="keep_end"
    ).dataset[0]
    assert row["prompt_ids"] == whole["prompt_ids"][-1:]
    assert row["chosen_ids"] == whole["chosen_ids"][: longest - 2]


def test_cut_prompt_keeps_bos(make_tokenizer):
    tokenizer = make_tokenizer("wordpiece")
    whole = prepare(as_rows([PAIR | {"prompt": "the cat and the dog"}]), tokenizer).dataset[0]
    rows = as_rows([PAIR | {"prompt": "the cat and the dog"}])
    row = prepare(rows, tokenizer, max_prompt_length=3).dataset[0]
    assert row["prompt_ids"] == [tokenizer.bos_token_id, *whole["prompt_ids"][-2:]]


def test_prompt_without_room_drops_the_row_unless_it_may_be_cut(tokenizer):
    long = PAIR | {"prompt": "the cat sat on the mat " * 4}
    length = len(prepare(as_rows([long]), tokenizer).dataset[0]["prompt_ids"])
    prepared = prepare(as_rows([long, PAIR]), tokenizer, max_length=length)
    assert [row["row"] for row in prepared.dataset] == [11]
    assert prepared.report.dropped == {"prompt_too_long": 1}
    assert prepared.report.examples == {"prompt_too_long": [10]}
    prepared = prepare(as_rows([long]), tokenizer, max_length=length, max_prompt_length=5)
    assert len(prepared.dataset[0]["prompt_ids"]) == 5
    assert prepared.report.prompt_truncated == 1


def test_one_token_of_room_is_enough(tokenizer):
    rows = as_rows([PAIR | {"rejected": " the"}])
    length = len(prepare(rows, tokenizer).dataset[0]["prompt_ids"])
    row = prepare(rows, tokenizer, max_length=length + 1).dataset[0]
    assert len(row["chosen_ids"]) == len(row["rejected_ids"]) == 1


def test_identical_responses_are_dropped_also_after_truncation(tokenizer):
    same = PAIR | {"rejected": PAIR["chosen"]}
    prepared = prepare(as_rows([same, PAIR]), tokenizer)
    assert (prepared.report.identical, prepared.report.kept) == (1, 1)
    late = PAIR | {"rejected": PAIR["chosen"] + " again"}
    whole = prepare(as_rows([late]), tokenizer).dataset[0]
    length = len(whole["prompt_ids"]) + len(whole["chosen_ids"]) - 1
    other = {"prompt": "the", "chosen": " dog", "rejected": " log"}
    prepared = prepare(as_rows([late, other]), tokenizer, max_length=length)
    assert prepared.report.dropped == {"identical": 1}
    assert prepared.report.truncated == 0  # counts kept rows only
    ranked = {"prompt": "Q", "completions": [" a", " a"], "ranks": [0, 1]}
    tied = {"prompt": "Q", "completions": [" a", " b"], "ranks": [0, 0]}
    good = {"prompt": "Q", "completions": [" a", " b"], "ranks": [0, 1]}
    report = prepare(as_rows([ranked, tied, good], "ranked"), tokenizer).report
    assert report.dropped == {"identical": 1, "tied": 1}


def test_template_troubles_drop_the_row(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "trimming", eos="<|im_end|>")
    # A template may trim what loading lets pass: here the row is built by hand.
    rows = [chat("Q", chosen=" ", rejected="b"), chat("Q", chosen=" a ", rejected="b")]
    prepared = prepare(as_rows(rows), tokenizer)
    assert prepared.report.dropped == {"empty_response": 1}
    assert prepared.report.response_altered == 0

    tokenizer = make_tokenizer("byte_level", "bos_and_inst")
    refused = chat("Q", chosen="a", rejected="b")
    refused["prompt"].insert(0, {"role": "system", "content": "x"})
    prepared = prepare(as_rows([refused, chat("Q", chosen="a", rejected="b")]), tokenizer)
    assert prepared.report.dropped == {"template_error": 1}
    assert prepared.dataset[0]["prompt_ids"].count(tokenizer.bos_token_id) == 1

    tokenizer = make_tokenizer("byte_level", "shouting", eos="<|im_end|>")
    prepared = prepare(as_rows([chat("Q", chosen="a", rejected="b")]), tokenizer)
    assert prepared.report.response_altered == 1
    assert tokenizer.decode(prepared.dataset[0]["chosen_ids"]) == "A<|im_end|>"


def test_response_and_prompt_without_tokens(make_tokenizer):
    rows = [{"prompt": "the cat", "chosen": "  ", "rejected": "sat"}, PAIR]
    assert prepare(as_rows(rows), make_tokenizer("wordpiece")).report.dropped == {
        "empty_response": 1
    }
    empty = PAIR | {"prompt": ""}
    tokenizer = make_tokenizer("byte_level", bos=None)
    assert prepare(as_rows([empty, PAIR]), tokenizer).report.dropped == {"no_prompt_token": 1}
    with_bos = make_tokenizer("byte_level")
    assert prepare(as_rows([empty]), with_bos).dataset[0]["prompt_ids"] == [with_bos.bos_token_id]


def test_sides_share_the_prompt_that_the_earlier_departure_leaves(tokenizer):
    # " t" + "he" merges, " t" + "!" does not.
    for merging, other in (("chosen", "rejected"), ("rejected", "chosen")):
        pair = {"prompt": "x t", merging: "he", other: "!"}
        prepared = prepare(as_rows([pair]), tokenizer)
        row = prepared.dataset[0]
        assert prepared.report.boundary_shifted == 1
        assert tokenizer.decode(row["prompt_ids"]) == "x"
        assert tokenizer.decode(row[f"{merging}_ids"]) == " the</s>"
        assert tokenizer.decode(row[f"{other}_ids"]) == " t!</s>"


def test_template_columns_are_used(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "with_tools", eos="<|im_end|>")
    row = chat("Q", chosen="a", rejected="b")
    tools = json.dumps([{"name": "look_up"}])
    rows = [row | {"tools": tools, "chat_template_kwargs": {"shout": True}}]
    text = tokenizer.decode(prepare(as_rows(rows), tokenizer).dataset[0]["prompt_ids"])
    assert text.startswith('TOOLS [{"name": "look_up"}]\nSHOUT\n')


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length is 8; accepted: 1 to 7"),
        ({"truncation_mode": "middle"}, "truncation_mode is 'middle'"),
    ],
)
def test_limits_are_checked(tokenizer, limits, said):
    with pytest.raises(UserError, match=said):
        prepare(as_rows([PAIR]), tokenizer, **limits)


def test_refusals(tokenizer, make_tokenizer):
    with pytest.raises(UserError, match=r"no row is left after preparation \(1 identical\)"):
        prepare(as_rows([PAIR | {"rejected": PAIR["chosen"]}]), tokenizer)
    with pytest.raises(UserError, match="no chat template"):
        prepare(as_rows([chat("Q", chosen="a", rejected="b")]), tokenizer)
    with pytest.raises(UserError, match="no EOS"):
        prepare(as_rows([PAIR]), make_tokenizer("byte_level", eos=None))


TEXTS = st.text(st.sampled_from("the cat sé😀\n"), max_size=12)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}),
        min_size=1,
        max_size=5,
    ),
    max_length=st.integers(2, 20),
    mode=st.sampled_from(["keep_start", "keep_end"]),
)
def test_invariants(tokenizer, rows, max_length, mode):
    rows = [row | {"row": i} for i, row in enumerate([*rows, ONE_TOKEN])]
    source = Rows(datasets.Dataset.from_list(rows), "preference", "here", "f", 0)
    prepared = prepare(source, tokenizer, max_length=max_length, truncation_mode=mode)
    report = prepared.report
    assert report.rows == len(rows) == report.kept + sum(report.dropped.values())
    assert report.kept == len(prepared.dataset)
    for row in prepared.dataset:
        sides = [row["chosen_ids"], row["rejected_ids"]]
        assert sides[0] != sides[1]
        for side in sides:
            assert row["prompt_ids"]
            assert side
            assert len(row["prompt_ids"]) + len(side) <= max_length
            assert side.count(tokenizer.eos_token_id) <= 1
            complete = side[-1] == tokenizer.eos_token_id
            assert complete or len(row["prompt_ids"]) + len(side) == max_length


def test_stream_gives_the_same_rows_and_counts(tokenizer, tmp_path):
    rows = [PAIR | {"prompt": "the cat " * (i % 4)} for i in range(1, 30)]
    rows[3] = rows[3] | {"rejected": rows[3]["chosen"]}
    loaded = prepare(as_rows(rows), tokenizer, max_length=12)
    streamed = prepare(as_rows(rows, streaming=True), tokenizer, max_length=12)
    assert streamed.report.rows == 0
    for _ in range(2):  # each pass counts anew
        assert list(streamed.dataset) == list(loaded.dataset)
        assert streamed.report.to_dict() == loaded.report.to_dict()
    assert streamed.fingerprint == loaded.fingerprint

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": 1}]))
    source = load_rows(path, streaming=True, rejects=tmp_path / "rejects.jsonl")
    from_file = prepare(source, tokenizer, max_length=12)
    ids = [{**row, "row": row["row"] + 10} for row in from_file.dataset]
    assert ids == list(loaded.dataset)
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 1


def test_two_processes_give_the_same(chatty):
    rows = [chat(f"Question {i}", chosen=f"good {i}", rejected=f"bad {i}") for i in range(20)]
    one = prepare(as_rows(rows), chatty)
    two = prepare(as_rows(rows), chatty, num_proc=2)
    assert list(one.dataset) == list(two.dataset)
    assert one.report.to_dict() == two.report.to_dict()


def test_ids_on_disk_follow_tokenizer_template_and_limits(make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    path = tmp_path / "rows.parquet"
    rows = [chat(f"Question {i}", chosen=f"good {i}", rejected="bad bad") for i in range(4)]
    datasets.Dataset.from_list(rows).to_parquet(path)
    source = load_rows(path)
    tokenizer = make_tokenizer("byte_level", "chatml", eos="<|im_end|>")
    first = prepare(source, tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    written = sorted((tmp_path / "home").rglob("cache-*"))
    again = prepare(load_rows(path), tokenizer)
    assert sorted((tmp_path / "home").rglob("cache-*")) == written != []
    assert list(again.dataset) == list(first.dataset)
    assert again.report.to_dict() == first.report.to_dict()
    assert again.fingerprint == first.fingerprint

    with_system = make_tokenizer("byte_level", "default_system", eos="<|im_end|>")
    other = prepare(source, with_system)
    assert with_system.decode(other.dataset[0]["prompt_ids"]).startswith("<|im_start|>system")
    shorter = prepare(source, tokenizer, max_length=24)
    assert shorter.report.truncated == 4
    assert len({first.fingerprint, other.fingerprint, shorter.fingerprint}) == 3


def test_tokenizer_hash(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "chatml")
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert (
        tokenizer_hash(tokenizer)
        == before
        == tokenizer_hash(make_tokenizer("byte_level", "chatml"))
    )
    tokenizer.add_tokens(["newword"])
    others = [
        tokenizer_hash(tokenizer),
        tokenizer_hash(make_tokenizer("byte_level", "trimming")),
        tokenizer_hash(make_tokenizer("byte_level", "chatml", eos="<|im_end|>")),
        tokenizer_hash(make_tokenizer("wordpiece", "chatml")),
    ]
    assert len({before, *others}) == 5


def test_report_is_printed_and_saved(tokenizer, tmp_path):
    same = PAIR | {"rejected": PAIR["chosen"]}
    report = prepare(as_rows([same, PAIR, PAIR]), tokenizer).report
    lines = report.render().splitlines()
    assert lines[0].split()[:2] == ["rows", "3"]
    assert lines[1].split() == ["kept", "2"]
    assert any(line.startswith("dropped: identical") and "first rows: 10" in line for line in lines)
    report.save(tmp_path / "out" / "report.json")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.to_dict()


def test_real_preferences_and_tokenizer(film_snippets, bundled_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    rows = load_rows("bundled:film-reviews?pairs=50", split="test")
    assert rows.fingerprint == load_rows("bundled:film-reviews?pairs=50", split="test").fingerprint
    assert rows.fingerprint != load_rows("bundled:film-reviews?pairs=49", split="test").fingerprint
    prepared = prepare(rows, tokenizer)
    assert prepared.report.kept == 50
    assert prepared.report.boundary_shifted == prepared.report.response_altered == 0
    for row, given_row in zip(prepared.dataset, rows.dataset, strict=True):
        prompt = tokenizer.decode(row["prompt_ids"])
        assert prompt.count("<|im_start|>system") == 1
        for side in ("chosen", "rejected"):
            text = tokenizer.decode(row[f"{side}_ids"])
            assert text == given_row[side][0]["content"] + "<|im_end|>"
            assert row[f"{side}_ids"].count(tokenizer.eos_token_id) == 1
