"""Planted errors: the place is exact, the detail is wrong, the other wordings are not."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenq.data import planted
from tokenq.data.debian import Archive, Description
from tokenq.data.planted_edits import KINDS, absent, error_edits, same_article, stated
from tokenq.data.planted_wordings import consistent_edits, paraphrases
from tokenq.errors import UserError

# (synopsis, long text): one package of each kind of detail, and one without any.
SEEDS = (
    ("tool to convert DVI to PNG", "This converts DVI files of any size to PNG pictures."),
    ("small utility to compare two directories", "Compares two directories by their content."),
    ("simple program to start a server", "A server is started, for those on the same host."),
    ("application to encrypt messages", "Messages are to encrypt before they leave the house."),
    ("program to decrypt messages", "Messages are to decrypt before they can be read here."),
    ("library to parse YAML files", "Programs that parse YAML can use this library."),
    ("pretty thing", "Nothing in particular is said about it."),
)
FILLER = "This sentence only makes the text long enough to be shown to a reader as a description."


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every seed under many names, each with a word of its own so that no two texts are equal."""
    descriptions = tuple(
        Description(
            f"p{i}-{n}", f"source{i}-{n}", "utils", f"{short} of kind{n}x", f"{text}\n{FILLER}"
        )
        for n in range(60)
        for i, (short, text) in enumerate(SEEDS)
    )
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path))
    monkeypatch.setattr(planted, "read", lambda: Archive({}, descriptions))
    planted._materials.cache_clear()
    planted._true_counts.cache_clear()
    yield
    planted._materials.cache_clear()
    planted._true_counts.cache_clear()


@pytest.mark.parametrize("mode", planted.MODES)
def test_spans_are_exact_and_the_rest_is_unchanged(archive: None, mode: str) -> None:
    items = planted.load("train", mode=mode)
    assert len(items) > 60
    for item in items:
        (a, b), (c, d) = item.removed_span, item.error_span
        assert item.truthful[:a] == item.erroneous[:c]
        assert item.truthful[b:] == item.erroneous[d:]
        wrong, right = item.erroneous[c:d], item.truthful[a:b]
        assert wrong != right
        assert item.rejected[slice(*item.rejected_span)] == wrong
        changed = item.consistent[slice(*item.consistent_span)]
        start = item.consistent_span[0]
        assert item.consistent[:start] == item.truthful[:start]
        assert item.truthful.endswith(item.consistent[item.consistent_span[1] :])
        assert changed
        assert changed not in item.truthful.split()
        assert right in item.consistent
        if not item.sort.startswith("X "):
            assert stated(item.prompt, right)
            assert not stated(item.prompt, wrong)
        assert len({item.truthful, item.erroneous, item.paraphrase, item.consistent}) == 4


def test_modes_differ_in_what_the_difference_shows(archive: None) -> None:
    for item in planted.load("train"):
        assert (item.chosen, item.rejected) == (item.truthful, item.erroneous)
    loose = planted.load("train", mode="loose")
    wordings = Counter()
    for item in loose:
        wordings["chosen own"] += item.chosen == item.truthful
        wordings["rejected own"] += item.rejected == item.erroneous
        right, wrong = (
            item.truthful[slice(*item.removed_span)],
            item.rejected[slice(*item.rejected_span)],
        )
        start = item.rejected_span[0]
        mended = item.rejected[:start] + right + item.rejected[start + len(wrong) :]
        assert mended != item.chosen  # not a minimal pair
    for side in wordings.values():  # neither side is always in the maintainer's words
        assert 0.15 < side / len(loose) < 0.85


def test_splits_share_no_source_and_seeds_move_none(archive: None) -> None:
    sources = {}
    for split in planted.SPLITS:
        drawn = [{item.source for item in planted.load(split, seed=seed)} for seed in (0, 1)]
        sources[split] = drawn[0] | drawn[1]
        assert sources[split]
    assert not sources["train"] & (sources["test"] | sources["validation"])
    assert not sources["test"] & sources["validation"]


def test_kinds_can_be_held_out(archive: None) -> None:
    some, other = ("number", "entity"), ("antonym", "position")
    for kinds in (some, other):
        assert {item.kind for item in planted.load("train", kinds=kinds)} <= set(kinds)
    every = {item.source for item in planted.load("train", kinds=some)}
    assert not every & {item.source for item in planted.load("train", kinds=other)}
    assert {item.kind for item in planted.load("train")} == set(KINDS)


def test_equal_seeds_give_equal_items(archive: None) -> None:
    assert planted.load("train", seed=3, mode="loose") == planted.load(
        "train", seed=3, mode="loose"
    )
    assert planted.load("train", seed=3) != planted.load("train", seed=4)


def test_second_process_reads_what_the_first_found(
    archive: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planted.load("train")
    planted._materials.cache_clear()
    monkeypatch.setattr(planted, "_find", lambda descriptions: pytest.fail("looked again"))
    assert planted.load("train") == first


def test_count_takes_kinds_in_turn(archive: None) -> None:
    items = planted.load("train", count=20)
    assert len(items) == 20
    counts = Counter(item.kind for item in items)
    every = Counter(item.kind for item in planted.load("train"))
    # A kind has fewer than another only where it has no more.
    for kind, count in counts.items():
        assert count in (every[kind], max(counts.values()), max(counts.values()) - 1)


def test_rows_are_messages_or_text(archive: None) -> None:
    items = planted.load("train", count=2)
    (row, _) = planted.rows(items)
    assert row["prompt"] == [{"role": "user", "content": items[0].prompt}]
    assert row["chosen"][0]["content"] == items[0].chosen
    (plain, _) = planted.rows(items, format="text")
    assert plain["prompt"] + plain["rejected"] == f"{items[0].prompt}\n\n{items[0].rejected}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split 'dev' is not one of train"),
        ({"kinds": ["number", "colour"]}, "kind 'colour' is not one of number"),
        ({"mode": "tight"}, "mode 'tight' is not one of minimal"),
        ({"count": 10**6}, "1000000 items are asked for and split 'train' has"),
    ],
)
def test_bad_arguments_are_named(archive: None, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planted.load(**arguments)  # type: ignore[arg-type]


def _made(summary: str, description: str) -> set[str]:
    return {edit.apply(summary) for edit in error_edits(summary, description)}


def test_a_detail_is_changed_only_where_the_description_tells() -> None:
    summary = "reader of PDF files"
    made = _made(summary, "A reader of PDF.")
    assert {"writer of PDF files", "reader of EPUB files"} <= made
    assert not _made(summary, "It shows documents.")  # does not state the detail
    assert "writer of PDF files" not in _made(summary, "A reader and writer of PDF.")
    assert "reader of EPUB files" not in _made(summary, "It is a reader of PDF and epub.")


def test_numbers_keep_their_look_and_parts_of_names_are_left_alone() -> None:
    made = _made("client for version 1.8 of the protocol", "A client of version 1.8.")
    assert "client for version 1.7 of the protocol" in made
    assert all(text.startswith("client for version 1.") or "server" in text for text in made)
    assert not _made("interface to libfoo2 and mp3", "It uses libfoo2 with mp3.")
    bits = {
        t for t in _made("emulator of 8-bit machines", "Emulates 8-bit machines.") if "bit" in t
    }
    assert bits == {f"emulator of {n}-bit machines" for n in (16, 32, 64, 128, 256)}
    assert not _made("two of them", "There are two, or three.") & {"three of them"}
    assert not _made("needs 3 files", "It needs three files; or four.") & {"needs 4 files"}


def test_details_change_places_unless_both_ways_are_right() -> None:
    text = "Makes PNG out of DVI."
    assert "converts PNG files to DVI" in _made("converts DVI files to PNG", text)
    assert "run ASP.NET on Mono" in _made("run Mono on ASP.NET", "Mono and ASP.NET.")
    for both in ("It also converts PNG to DVI.", "DVI, PNG; in both directions.", "and vice versa"):
        assert "converts PNG files to DVI" not in _made("converts DVI files to PNG", text + both)


def test_articles_stay_right() -> None:
    assert same_article("a tool", 2, "tool", "utility") is True
    assert same_article("a tool", 2, "tool", "app") is False
    assert same_article("an XML tool", 3, "XML", "YAML") is False
    assert same_article("the tool", 4, "tool", "app") is True


def test_forms_of_a_word_count_as_the_word() -> None:
    assert stated("It converts files", "converting")
    assert stated("for Python3 only", "Python")
    assert not stated("a pythonic way", "Python")
    assert not absent("an encoder", "encoding")
    assert not absent("see libjson", "JSON")
    assert absent("a fast server", "slow")


def test_wordings_that_mean_the_same_are_made_and_fixed_terms_left() -> None:
    made = {
        edit.apply("tool to remove images") for edit in consistent_edits("tool to remove images")
    }
    assert {"utility to remove images", "tool to delete images", "tool to remove pictures"} <= made
    assert not [e for e in consistent_edits("mount disk images") if e.old == "images"]
    assert not [e for e in consistent_edits("for Qt Quick") if e.old == "Quick"]  # a name
    assert "Perl module" not in paraphrases("Perl module for reading logs")[0]
    assert paraphrases("JSON parser for Java")
    assert paraphrases("thing") == []


def test_of_two_opposites_neither_is_the_usual_wrong_one(archive: None) -> None:
    items = planted.load("train", kinds=["antonym", "position"])
    directions = Counter(planted._direction(item) for item in items if item.sort[:2] != "X ")
    assert max(directions.values()) > 1
    for (old, new), count in directions.items():
        assert count <= 1 + directions[new, old]
