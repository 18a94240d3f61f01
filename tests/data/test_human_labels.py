"""Sets of human labels from TOKENQ_DATA: what is read, where spans lie, what is refused."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tokenq.data import finegrained_qa, summedits
from tokenq.data.human_labels import SPLITS, leading, split_of, word_count
from tokenq.data.pair_rows import pair_row
from tokenq.errors import UserError

QUESTION: dict[str, Any] = {
    "passages": [["Tea", "Tea is a drink.", "It is hot."], ["Cup", "A cup holds tea."]],
    "gold": "A hot drink.",
    "prediction 1": "Tea is a cold drink. It is green.",
    "prediction 2": "Tea is hot.",
    "prediction 3": "Tea is a drink.",
    "prediction 4": "Tea.",
    "feedback": {
        "errors": [
            {"error type": "Wrong-Grounding", "explanation": "", "start": 9, "end": 13},
            {"error type": "Irrelevant", "explanation": "", "start": 21, "end": 33},
        ],
        "missing-info": [],
        "corrected-prediction": "Tea is a hot drink.",
    },
    "preference": [2, 2, 0, 1, 1, 0],
}
ORIGINAL = "The red fox quickly jumps over two fences."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENQ_DATA", str(tmp_path))
    return tmp_path


def _write_questions(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "finegrained_qa").mkdir()
    (folder / "finegrained_qa" / "feedback.json").write_text(json.dumps(records))


def _write_edits(folder: Path, summaries: list[tuple[str, int]], documents: int = 1) -> None:
    (folder / "summedits").mkdir()
    records = [
        {
            "id": f"{d}-{n}",
            "doc": f"Fox number {d}.\n\nIt jumps.",
            "summary": summary,
            "label": label,
            "original_summary": ORIGINAL,
            "edit_types": ["entity_modification"],
        }
        for d in range(documents)
        for n, (summary, label) in enumerate([(ORIGINAL, 1), *summaries])
    ]
    (folder / "summedits" / "news.json").write_text(json.dumps(records))


def _all_edits() -> list[summedits.EditedSummary]:
    return [edit for split in SPLITS for edit in summedits.load(split)]


def test_questions_with_their_faults_and_pairs(folder: Path) -> None:
    _write_questions(folder, [{"question": f"What is tea {n}?"} | QUESTION for n in range(40)])
    loaded = {split: finegrained_qa.load(split) for split in SPLITS}
    assert sum(map(len, loaded.values())) == 40
    assert not {q.question for q in loaded["train"]} & {q.question for q in loaded["test"]}
    question = loaded["train"][0]
    assert [question.answers[0][a:b] for a, b in question.spans()] == ["cold", "It is green."]
    assert question.spans(finegrained_qa.FACTUAL) == [(9, 13)]
    assert question.prompt.startswith("Tea: Tea is a drink.\nIt is hot.\nCup: A cup holds tea.\n\n")
    assert question.prompt.endswith(question.question)
    rows = finegrained_qa.pairs([question], format="text")
    # (1,2) second, (1,3) second, (1,4) tie, (2,3) first, (2,4) first, (3,4) tie
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ("Tea is hot.", "Tea is a cold drink. It is green."),
        ("Tea is a drink.", "Tea is a cold drink. It is green."),
        ("Tea is hot.", "Tea is a drink."),
        ("Tea is hot.", "Tea."),
    ]
    short = [q for split in SPLITS for q in finegrained_qa.load(split, max_length=6)]
    assert all(q.prompt.startswith("Tea: Tea is a drink.\n\n") for q in short)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": [1, 2]}, "record 0: preference is"),
        ({"preference": [3] * 6}, "not six numbers"),
        ({"prediction 1": "Tea."}, r"characters 9\.\.13 are not in its answer"),
        ({"gold": None, "feedback": None}, "missing|subscriptable"),
    ],
)
def test_damaged_questions_are_named(folder: Path, change: dict[str, Any], message: str) -> None:
    record = {"question": "What is tea?"} | QUESTION | change
    if change.get("feedback", 0) is None:
        del record["feedback"]
    _write_questions(folder, [record])
    with pytest.raises(UserError, match=message):
        finegrained_qa.load(split_of("What is tea?"))


def test_edits_are_found_by_words(folder: Path) -> None:
    found = summedits.changes("a red fox ran home", "a blue fox ran")
    text = "a blue fox ran"
    assert [(out, put, text[a:b]) for out, put, a, b in found] == [
        ("red", "blue", "blue"),
        ("home", "", "ran"),
    ]
    assert summedits.changes("costs $5", "costs $50")[0][2:] == (7, 9)
    assert summedits.changes("the old dog", "the dog")[0] == ("old", "", 4, 7)


def test_harmless_changes_are_left_out_of_a_wrong_edit(folder: Path) -> None:
    rapid = ORIGINAL.replace("quickly", "rapidly")
    wrong = rapid.replace("red", "blue")
    two = ORIGINAL.replace("two", "nine").replace("red", "blue")
    _write_edits(folder, [(rapid, 1), (wrong, 0), (two, 0), (rapid, 0)])
    harmless, single, both, disputed = _all_edits()
    assert harmless.consistent
    assert [rapid[a:b] for a, b in harmless.spans] == ["rapidly"]
    assert [wrong[a:b] for a, b in single.spans] == ["blue"]
    assert single.exact
    assert [two[a:b] for a, b in both.spans] == ["blue", "nine"]
    assert not both.exact
    # Judged differently twice: its place is shown, and not called certain.
    assert [rapid[a:b] for a, b in disputed.spans] == ["rapidly"]
    assert not disputed.exact


def test_pairs_are_minimal_or_loose_and_documents_stay_together(folder: Path) -> None:
    rapid, wrong = ORIGINAL.replace("quickly", "rapidly"), ORIGINAL.replace("red", "blue")
    _write_edits(folder, [(rapid, 1), (wrong, 0)], documents=30)
    prompts = {split: {edit.prompt for edit in summedits.load(split)} for split in SPLITS}
    assert prompts["train"]
    assert not prompts["train"] & prompts["test"]
    edits = summedits.load("train")
    for mode, chosen in (("minimal", ORIGINAL), ("loose", rapid)):
        rows = summedits.pairs(edits, mode=mode, format="text")
        assert {(row["chosen"], row["rejected"]) for row in rows} == {(chosen, wrong)}
        assert len(rows) == len(prompts["train"])
    with pytest.raises(UserError, match="mode='tight'"):
        summedits.pairs(edits, mode="tight")


def test_long_documents_are_cut(folder: Path) -> None:
    _write_edits(folder, [(ORIGINAL.replace("red", "blue"), 0)])
    for limit, shown in ((3, "Fox number 0."), (2, "Fox number"), (9, "Fox number 0.\nIt jumps.")):
        (edit,) = (e for split in SPLITS for e in summedits.load(split, max_length=limit))
        assert edit.prompt == f"{shown}\n\n{summedits.INSTRUCTION}"


def test_missing_folder_split_and_domain_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENQ_DATA", raising=False)
    with pytest.raises(UserError, match="TOKENQ_DATA"):
        summedits.load()
    monkeypatch.setenv("TOKENQ_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no folder finegrained_qa"):
        finegrained_qa.load()
    with pytest.raises(UserError, match="no split 'dev'"):
        finegrained_qa.load("dev")
    _write_edits(tmp_path, [])
    with pytest.raises(UserError, match="no domain 'sports'; it has news"):
        summedits.load(domains=["sports"])
    (tmp_path / "summedits" / "news.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"news\.json, record 0: .*doc.* missing"):
        summedits.load()
    (tmp_path / "summedits" / "news.json").write_text("no")
    with pytest.raises(UserError, match="not JSON"):
        summedits.load()


def test_leading_parts_and_row_formats() -> None:
    assert leading(["a b", "c", "d e"], 3, word_count) == ["a b", "c"]
    assert leading(["a b", "c c c", "d"], 3, word_count) == ["a b"]
    assert pair_row("p", "c", "r", "text") == {"prompt": "p\n\n", "chosen": "c", "rejected": "r"}
    assert pair_row("p", "c", "r")["rejected"] == [{"role": "assistant", "content": "r"}]
    with pytest.raises(UserError, match="format='csv'"):
        pair_row("p", "c", "r", "csv")


def _real(name: str) -> None:
    root = os.environ.get("TOKENQ_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"TOKENQ_DATA holds no {name}")


def test_order_of_comparisons_leaves_no_cycle_in_the_real_data() -> None:
    """What :data:`finegrained_qa.COMPARISONS` claims about the labels."""
    _real("finegrained_qa")
    questions = [q for split in SPLITS for q in finegrained_qa.load(split)]
    triples = cycles = 0
    for question in questions:
        better = dict(zip(finegrained_qa.COMPARISONS, question.preferences, strict=True))
        for a, b, c in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):
            ab, bc, ac = better[a, b], better[b, c], better[a, c]
            if ab and bc and ac:
                triples += 1
                cycles += ab == bc != ac
    assert (triples, cycles) == (758, 0)


def test_real_edits_have_a_place_in_their_text() -> None:
    _real("summedits")
    edits = _all_edits()
    assert Counter(edit.consistent for edit in edits)[False] > 1400
    for edit in edits:
        assert edit.spans
        for start, end in edit.spans:
            assert edit.edited[start:end].strip() == edit.edited[start:end] != ""
