"""The tasks: what is trained on and scored, where the truth lies, that nothing is in both."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenq.data import planted as planted_source
from tokenq.data.debian import Archive, Description
from tokenq.data.film_snippets import SnippetTable
from tokenq.data.lexicon import LexiconEntry
from tokenq.demo.words import words_of
from tokenq.errors import UserError
from tokenq.reproduce.localisation.film import film
from tokenq.reproduce.localisation.material import TestText
from tokenq.reproduce.localisation.planted import planted
from tokenq.reproduce.localisation.qa import qa
from tokenq.reproduce.localisation.settings import (
    FilmSettings,
    PlantedSettings,
    QaSettings,
    Settings,
    SummEditsSettings,
    SurfaceSettings,
)
from tokenq.reproduce.localisation.summedits import summedits
from tokenq.reproduce.localisation.surface import CHANGES
from tokenq.reproduce.localisation.surface_measures import surface_measures
from tokenq.reproduce.localisation.tasks import TASKS, task_of

PACKAGES = (
    ("tool to convert DVI to PNG", "This converts DVI files of any size to PNG pictures."),
    ("tool to convert PNG to DVI", "This converts PNG pictures of any size to DVI files."),
    ("small utility to compare 2 directories", "Compares 2 directories by their content."),
    ("application to encrypt messages", "Messages are to encrypt before they leave the house."),
    ("program to decrypt messages", "Messages are to decrypt before they can be read here."),
    ("library to parse YAML files", "Programs that parse YAML can use this library."),
)
FILLER = "This sentence only makes the text long enough to be shown to a reader as a description."
ORIGINAL = "The red fox quickly jumps over two fences."


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    descriptions = tuple(
        Description(
            f"p{i}-{n}",
            f"source{i}-{n}",
            "utils",
            f"{short} of kind{n}x",
            f"{text} Number {n}.\n{FILLER}",
        )
        for n in range(60)
        for i, (short, text) in enumerate(PACKAGES)
    )
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path))
    monkeypatch.setattr(planted_source, "read", lambda: Archive({}, descriptions))
    caches = (planted_source._materials, planted_source._true_counts)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENQ_DATA", str(tmp_path))
    return tmp_path


def wrong_part(text: TestText) -> list[str]:
    assert text.errors is not None
    return [text.text[start:end] for start, end in text.errors]


def test_planted_details_and_their_negatives(archive: None) -> None:
    task = planted(PlantedSettings(pairs=20, tests=8))
    pairs, texts = task.pairs(0, ""), task.tests()
    assert len(pairs) == 20
    assert all(pair.chosen != pair.rejected for pair in pairs)
    trained = {json.dumps(pair.prompt) for pair in pairs}
    assert not trained & {json.dumps(text.prompt) for text in texts}
    assert len({text.id for text in texts}) == len(texts) == 32
    for group in {text.group for text in texts}:
        wrong, *right = [text for text in texts if text.group == group]
        assert [text.kind for text in right] == ["truthful", "paraphrase", "consistent"]
        assert wrong.kind in planted_source.KINDS
        assert len(wrong_part(wrong)) == 1
        assert wrong.text != right[0].text
        assert all(text.errors == () for text in right)
    kinds = Counter(text.kind for text in texts if text.errors)
    assert len(kinds) > 1


def test_planted_variants_leave_kinds_out_or_words_free(archive: None) -> None:
    task = planted(PlantedSettings(pairs=10, tests=4))
    assert task.pairs(0, "") == task.pairs(0, "")
    assert task.pairs(0, "") != task.pairs(1, "")
    assert task.pairs(0, "loose") != task.pairs(0, "")
    every = planted(PlantedSettings(pairs=1, tests=4))
    of_kind = {
        kind: {item.truthful for item in planted_source.load("train", kinds=(kind,), seed=0)}
        for kind in planted_source.KINDS
    }
    present = [kind for kind, found in of_kind.items() if found]
    chosen = {pair.chosen for pair in task.pairs(0, "+".join(present[:2]))}
    assert chosen <= of_kind[present[0]] | of_kind[present[1]]
    assert len(every.pairs(0, "")) == 1
    with pytest.raises(UserError, match="accepted up to that number"):
        planted(PlantedSettings(pairs=10_000)).pairs(0, "")


def test_film_words_have_a_valence(
    film_snippets: SnippetTable, word_valence: dict[str, LexiconEntry]
) -> None:
    task = film(FilmSettings(pairs=20, tests=30))
    pairs, texts = task.pairs(3, ""), task.tests()
    assert len(pairs) == 20
    assert len(texts) == 30
    trained = {side for pair in pairs for side in (pair.chosen, pair.rejected)}
    assert not trained & {text.text for text in texts}
    for text in texts:
        assert text.errors is None
        for word in text.words:
            assert word_valence[text.text[word.start : word.end].lower()].mean == word.valence
    with pytest.raises(UserError, match="accepted up to that number"):
        film(FilmSettings(pairs=100_000)).pairs(0, "")


def test_answers_with_marked_spans(labels: Path) -> None:
    record: dict[str, Any] = {
        "passages": [["Tea", "Tea is a drink.", "It is hot."]],
        "gold": "A hot drink.",
        **{f"prediction {n}": f"Tea is a cold drink. Answer {n}." for n in (1, 2, 3, 4)},
        "feedback": {
            "errors": [{"error type": "Wrong-Grounding", "start": 9, "end": 13}],
            "missing-info": [],
            "corrected-prediction": "Tea is a hot drink.",
        },
        "preference": [2, 2, 0, 1, 1, 0],
    }
    (labels / "finegrained_qa").mkdir()
    path = labels / "finegrained_qa" / "feedback.json"
    path.write_text(json.dumps([{"question": f"What is tea {n}?"} | record for n in range(40)]))
    task = qa(QaSettings(questions=3, tests=5))
    pairs, texts = task.pairs(0, ""), task.tests()
    assert len(pairs) == 3 * 4
    assert [pair.prompt for pair in pairs] == sorted(
        (pair.prompt for pair in pairs), key=[pair.prompt for pair in pairs].index
    )
    assert (pairs[0].chosen[-2], pairs[0].rejected[-2]) == ("2", "1")
    assert [wrong_part(text) for text in texts] == [["cold"]] * 5
    assert {text.kind for text in texts} == {"factual"}
    assert not {json.dumps(pair.prompt) for pair in pairs} & {json.dumps(t.prompt) for t in texts}


def test_edits_of_summaries(labels: Path) -> None:
    edits = [
        ("The blue fox quickly jumps over two fences.", 0),
        ("The red fox slowly jumps over two fences.", 0),
        ("The red fox rapidly jumps over two fences.", 1),
    ]
    records = [
        {
            "id": f"{d}-{n}",
            "doc": f"Fox number {d}.\n\nIt jumps.",
            "summary": summary,
            "label": label,
            "original_summary": ORIGINAL,
            "edit_types": ["entity_modification"],
        }
        for d in range(30)
        for n, (summary, label) in enumerate([(ORIGINAL, 1), *edits])
    ]
    (labels / "summedits").mkdir()
    (labels / "summedits" / "news.json").write_text(json.dumps(records))
    task = summedits(SummEditsSettings(domains=("news",), pairs=8, tests=6))
    pairs, texts = task.pairs(0, ""), task.tests()
    assert {pair.chosen for pair in pairs} == {ORIGINAL}
    assert {pair.rejected for pair in pairs} == {summary for summary, label in edits if not label}
    assert [pair.step for pair in task.pairs(0, "steps")] == [True] * 8
    kinds = Counter(text.kind for text in texts)
    assert kinds["inconsistent"] == kinds["consistent"] == 6
    for text in texts:
        if text.kind == "inconsistent":
            assert wrong_part(text)[0] in ("blue", "slowly")
        else:
            assert text.errors == ()
    assert not {json.dumps(pair.prompt) for pair in pairs} & {json.dumps(t.prompt) for t in texts}


def test_every_task_has_settings() -> None:
    settings = Settings()
    for name in TASKS:
        assert set(settings.of_task(name)) == {"model", "layers", name}
        task_of(name, getattr(settings, name))


def test_surfaces_leave_the_words_alone(film_snippets: SnippetTable) -> None:
    texts = task_of("surface", SurfaceSettings(FilmSettings(pairs=20), tests=5)).tests()
    for group in {text.group for text in texts}:
        versions = {text.kind: text.text for text in texts if text.group == group}
        assert {"chosen", "rejected", "newline"} <= set(versions)
        for kind in versions.keys() - {"chosen", "rejected"}:
            assert kind in CHANGES
            assert versions[kind] != versions["chosen"], kind
            assert len(words_of(versions[kind])) == len(words_of(versions["chosen"])), kind


def test_measures_of_surfaces_by_hand() -> None:
    kinds = ("chosen", "rejected", *CHANGES)

    def item(group: str, rewards: dict[str, float]) -> list[dict[str, Any]]:
        return [
            {"group": group, "kind": kind, "signals": {"plain": [-rewards.get(kind, 1.0), 0.0]}}
            for kind in kinds
            if rewards.get(kind) is not math.nan
        ]

    # The quotes turn the first pair round; the second is wrong either way.
    first = item("a", {"chosen": 1.0, "rejected": 0.0, "quoted": -1.0, "bold": math.nan})
    second = item(
        "b",
        {"chosen": 1.0, "rejected": 4.0, "quoted": 2.0, "bold": math.nan, "curly_quotes": math.nan},
    )
    found = surface_measures({"dpo": [{"items": first + second}]}, {"dpo": "plain"}, 50)["dpo"]
    assert found["accuracy"]["chosen"]["value"] == 0.5
    assert found["accuracy"]["quoted"]["value"] == 0.0
    assert found["accuracy"]["newline"]["value"] == 0.5
    # Margins of 1 and 3, changes of -2 and 1.
    assert found["shift"]["quoted"] == pytest.approx({"mean": -0.25, "size": 0.75})
    assert found["shift"]["newline"] == {"mean": 0.0, "size": 0.0}
    # What changes no text is not measured, what changes one pair is measured on that.
    assert "bold" not in found["accuracy"]
    assert found["accuracy"]["curly_quotes"]["value"] == 1.0
