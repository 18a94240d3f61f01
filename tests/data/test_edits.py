"""Marks of differing tokens, stop words, edit distance, and the columns made of them."""

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.data import add_edits, edited_tokens, load_rows, prepare, stop_word_ids
from tokenq.data.edits import STOP_WORDS, edit_distance
from tokenq.data.loading import Rows
from tokenq.errors import UserError

IDS = st.lists(st.integers(0, 4), max_size=14)
PAIRS = [
    {"row": 0, "prompt": "on", "chosen": " the cat sat", "rejected": " the dog sat"},
    {"row": 1, "prompt": "on", "chosen": " the mat", "rejected": " a mat and the log"},
]


def as_rows(rows, streaming=False):
    dataset = datasets.Dataset.from_list(rows)
    return Rows(dataset.to_iterable_dataset() if streaming else dataset, "preference", "h", "f", 0)


def shown(*marks):
    return tuple("".join("x" if each else "." for each in side) for side in marks)


@pytest.mark.parametrize(
    ("chosen", "rejected", "marks"),
    [
        ("the cat sat", "the dog sat", (".x.", ".x.")),
        ("the old cat sat", "the cat sat", (".x..", "...")),
        ("the cat sat", "the old cat sat", ("...", ".x..")),
        ("a b c", "x y", ("xxx", "xx")),
        ("a b", "a b", ("..", "..")),
        ("", "a", ("", "x")),
        ("one two and five", "one and four five", (".x..", "..x.")),
    ],
)
def test_by_hand(chosen, rejected, marks):
    assert shown(*edited_tokens(chosen.split(), rejected.split())) == marks


def test_ignored_ids_are_never_marked():
    chosen, rejected = [1, 2, 3], [1, 4, 5, 3]
    assert shown(*edited_tokens(chosen, rejected)) == (".x.", ".xx.")
    assert shown(*edited_tokens(chosen, rejected, {2, 5})) == ("...", ".x..")


@given(chosen=IDS, rejected=IDS, ignored=st.frozensets(st.integers(0, 4)))
def test_what_is_not_marked_is_common(chosen, rejected, ignored):
    marks = edited_tokens(chosen, rejected)
    left = [[i for i, edited in zip(ids, side, strict=True) if not edited]
            for ids, side in zip((chosen, rejected), marks, strict=True)]  # fmt: skip
    assert left[0] == left[1]
    # The marked tokens alone are an edit, so there are at least as many as the least edit has.
    assert sum(map(sum, marks)) >= edit_distance(chosen, rejected)
    assert (sum(map(sum, marks)) == 0) == (chosen == rejected)
    narrower = edited_tokens(chosen, rejected, ignored)
    for ids, side, narrow in zip((chosen, rejected), marks, narrower, strict=True):
        expected = [edited and i not in ignored for i, edited in zip(ids, side, strict=True)]
        assert narrow == expected


def test_frequent_tokens_of_long_answers_are_compared():
    # The standard library would set aside items that fill more than 1 % of 200 or more.
    same = [7] * 150 + [8] * 150
    assert shown(*edited_tokens([1, *same], [2, *same])) == ("x" + "." * 300,) * 2


def plain_distance(first, second):
    """The textbook recursion over a whole table."""
    table = [[i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            table[i][j] = min(
                table[i - 1][j] + 1,
                table[i][j - 1] + 1,
                table[i - 1][j - 1] + (first[i - 1] != second[j - 1]),
            )
    return table[-1][-1]


@settings(max_examples=200)
@given(first=IDS, second=IDS)
def test_edit_distance_is_the_table_s(first, second):
    assert edit_distance(first, second) == plain_distance(first, second)


def test_edit_distance_by_hand():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], [1, 2]) == 2
    assert edit_distance([], []) == 0


def test_stop_words(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    found = stop_word_ids(tokenizer)
    texts = {tokenizer.decode([number]) for number in found}
    assert {" the", " and", "s", "is"} <= texts
    assert all(text.strip().lower() in STOP_WORDS for text in texts)
    # A word that decides what is claimed is no stop word.
    assert not {"not", "no", "never", "without"} & STOP_WORDS
    [cat] = tokenizer(" cat")["input_ids"]
    assert cat not in found
    assert stop_word_ids(tokenizer, ["CAT"]) >= {cat}


def test_columns_of_prepared_pairs(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    prepared = prepare(as_rows(PAIRS), tokenizer)
    marked = add_edits(prepared)
    assert marked.dataset.column_names == [
        *prepared.dataset.column_names, "chosen_edits", "rejected_edits"
    ]  # fmt: skip
    for row, before in zip(marked.dataset, prepared.dataset, strict=True):
        assert before.items() <= row.items()
        expected = edited_tokens(row["chosen_ids"], row["rejected_ids"])
        assert (row["chosen_edits"], row["rejected_edits"]) == expected
    first = marked.dataset[0]
    edited = [i for i, mark in zip(first["chosen_ids"], first["chosen_edits"], strict=True) if mark]
    assert tokenizer.decode(edited) == " cat"
    the = frozenset(tokenizer(" the")["input_ids"])
    spared = add_edits(prepared, ignored=the)
    assert sum(spared.dataset[1]["rejected_edits"]) < sum(marked.dataset[1]["rejected_edits"])
    assert len({prepared.fingerprint, marked.fingerprint, spared.fingerprint}) == 3


def test_marks_on_disk_are_found_again(make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    datasets.Dataset.from_list(PAIRS).remove_columns("row").to_parquet(tmp_path / "rows.parquet")
    tokenizer = make_tokenizer("byte_level")

    def marked(**options):
        return add_edits(prepare(load_rows(tmp_path / "rows.parquet"), tokenizer), **options)

    first = marked()
    written = sorted((tmp_path / "home").rglob("cache-*"))
    again = marked()
    assert sorted((tmp_path / "home").rglob("cache-*")) == written != []
    assert list(again.dataset) == list(first.dataset)
    assert again.fingerprint == first.fingerprint
    other = marked(ignored=stop_word_ids(tokenizer))
    assert len(list((tmp_path / "home").rglob("cache-*"))) == len(written) + 1
    assert list(other.dataset) != list(first.dataset)


def test_stream_is_marked_alike(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    loaded = add_edits(prepare(as_rows(PAIRS), tokenizer))
    streamed = add_edits(prepare(as_rows(PAIRS, streaming=True), tokenizer))
    assert list(streamed.dataset) == list(loaded.dataset)
    assert streamed.fingerprint == loaded.fingerprint


def test_only_pairs_have_edits(make_tokenizer):
    rows = datasets.Dataset.from_list([{"row": 0, "prompt": "on", "completion": " the mat"}])
    prepared = prepare(Rows(rows, "sft", "h", "f", 0), make_tokenizer("byte_level"))
    with pytest.raises(UserError, match="of kind 'sft'"):
        add_edits(prepared)
