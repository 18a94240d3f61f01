"""The page: hostile text stays text, the data says what the records say, nothing is loaded."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_records import HOSTILE, head, record, side

from tokenq.report.html import script_json, write_page


class Reader(html.parser.HTMLParser):
    """Collects start tags and the text of scripts, as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.lasttag == "script":
            self.scripts[-1] += data


def read(path: Path) -> tuple[Reader, dict[str, Any]]:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader, json.loads(reader.scripts[0])


def numbers(text: str) -> list[int]:
    """The numbers of a list as the page holds it."""
    return [int(each) for each in text.split(",")]


def tokens_of(data: dict[str, Any], packed: dict[str, Any]) -> list[str]:
    """The tokens' texts, put together as the page does it: in UTF-16 units."""
    units = packed["text"].encode("utf-16-le", "surrogatepass")
    outside, at, tokens = iter(numbers(packed["outside"])), 0, []
    places = numbers(packed["places"])
    for gap, length in zip(places[::2], places[1::2], strict=True):
        start, at = at + gap, at + gap + length
        text = units[2 * start : 2 * at].decode("utf-16-le", "surrogatepass")
        tokens.append(text if length else data["strings"][next(outside)])
    return tokens


def test_hostile_text_cannot_leave_its_script_tag(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    names = head(policy=HOSTILE.replace("\ud800", ""), reference='"><img src=x onerror=alert(1)>')
    write_page(page, [record(0, HOSTILE, "plain"), record(1, "a", "b")], names)
    reader, data = read(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in reader.tags]
    chosen = data["rows"][0]["sides"][0]
    assert chosen["text"] == HOSTILE
    assert tokens_of(data, chosen) == [*re.findall(r"\s?\S+|\s", HOSTILE), "</s>"]


def test_script_json_is_json_without_marks() -> None:
    text = script_json({"<a>": HOSTILE})
    assert json.loads(text) == {"<a>": HOSTILE}
    assert not set("<>&\u2028\u2029\ud800") & set(text)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, [record(0, "a b", "c")], head())
    reader, _ = read(page)
    attributes = [(tag, name) for tag, found in reader.tags for name in found]
    assert not [each for each in attributes if each[1] in ("src", "href", "srcset", "action")]
    assert not [
        tag for tag, _ in reader.tags if tag in ("link", "img", "iframe", "object", "embed")
    ]
    text = page.read_text()
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    metas = [found.get("content") or "" for tag, found in reader.tags if tag == "meta"]
    assert any("default-src 'none'" in content for content in metas)


def test_the_data_is_that_of_the_records(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, [record(4, "a b a", "c\n", -0.3)], head())
    _, data = read(page)
    [row] = data["rows"]
    assert (row["row"], row["margin"], row["prompt"]) == (4, -0.3, [["", "Review:"]])
    chosen, rejected = row["sides"]
    assert tokens_of(data, chosen) == ["a", " b", " a", "</s>"]
    assert tokens_of(data, rejected) == ["c", "\n", "</s>"]
    assert (data["beta"], data["nats"]) == (0.1, 1000)
    assert numbers(chosen["logps"]) == [-1000] * 4
    assert numbers(chosen["refs"]) == [-1500] * 4
    assert chosen["total"] == pytest.approx(0.2)
    assert chosen["length"] == 4
    film = data["strings"].index(" film")
    assert [numbers(each) for each in chosen["best"].split(";")] == [[film, -500, -1500]] * 4
    assert numbers(chosen["words"]) == [1, 2, 2]
    assert sum(numbers(rejected["sentences"])) == 2
    assert len(data["strings"]) == len(set(data["strings"]))


def test_tokens_that_share_a_character_or_pass_over_text(tmp_path: Path) -> None:
    # The camera is two tokens of its bytes, the second of which has the letter after it as well.
    uneven = side("  🎬x end", ["a", "b", "c"])
    uneven["tokens"] = ["🎬", "🎬x", "end", "</s>"]
    uneven["offsets"] = [[2, 3], [2, 4], [5, 8], [8, 8]]
    row = {"row": 0, "prompt": "", "responses": {"completion": uneven}}
    write_page(tmp_path / "page.html", [row], head())
    data = read(tmp_path / "page.html")[1]
    [packed] = data["rows"][0]["sides"]
    assert numbers(packed["places"]) == [2, 2, -2, 3, 1, 3, 0, 0]
    assert tokens_of(data, packed) == uneven["tokens"]


def test_spans_segments_estimates_and_facts_reach_the_page(tmp_path: Path) -> None:
    rich = record(0, "🎬 a bad film", "a good film")
    chosen = rich["responses"]["chosen"]
    chosen["spans"] = [{"start": 4, "end": 12, "p_value": 0.01, "reward": -0.5, "flagged": False}]
    rich["responses"]["rejected"]["spans"] = [{"start": 0, "end": 1}]
    chosen["estimates"] = {"plain": chosen["rewards"], "centred": [0.1, -0.2, 0.3, 0.4, 0.55555]}
    chosen["entropies"] = [0.5, 1.0, 1.5, 2.0, 2.5]
    segment = {"kind": "replace", "chosen": [4, 7], "rejected": [2, 6]}
    rich["segments"] = [{**segment, "chosen_reward": -0.1, "rejected_reward": 0.3}]
    write_page(tmp_path / "page.html", [rich], head())
    data = read(tmp_path / "page.html")[1]
    [row] = data["rows"]
    ours, theirs = row["sides"]
    # The clapper board takes two of JavaScript's characters; ` bad` and ` film` are tokens 2, 3.
    assert ours["spans"] == [
        {"start": 5, "end": 13, "first": 2, "last": 4, "p": 0.01, "reward": -0.5, "flagged": False}
    ]
    assert theirs["spans"][0]["flagged"] is True
    assert theirs["spans"][0]["p"] is None
    assert ours["estimates"] == {"centred": "1000,-2000,3000,4000,5556"}
    assert data["reward"] == 10_000
    plain, centred = data["estimators"]
    assert (plain["name"], plain["spread"], plain["unit"]) == ("plain", False, "β·nats")
    assert (centred["name"], centred["spread"], centred["unit"]) == ("centred", False, "β·nats")
    assert "mean reward in the state" in centred["summary"]
    assert ours["facts"] == {"entropies": "500,1000,1500,2000,2500"}
    assert row["pair"] == [0, 1]
    [packed] = row["segments"]
    assert packed["places"] == [[5, 8], [2, 6]]
    assert packed["difference"] == pytest.approx(-0.4)
    assert "segments" not in read_rows(tmp_path, record(1, "a", "b"))


def read_rows(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The only row of the page of `row`, as the page has it."""
    write_page(folder / "one.html", [row], head())
    [packed] = read(folder / "one.html")[1]["rows"]
    return packed


def test_an_estimate_of_another_length_is_refused(tmp_path: Path) -> None:
    short = record(0, "a b", "c")
    short["responses"]["chosen"]["estimates"] = {"centred": [0.1]}
    with pytest.raises(ValueError, match="1 values of 'centred' for 3 tokens"):
        write_page(tmp_path / "page.html", [short], head())


def test_only_the_first_rows_are_on_the_page_and_it_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, (record(i, "a", "b") for i in range(5)), head(rows=5), page_rows=3)
    assert [row["row"] for row in read(page)[1]["rows"]] == [0, 1, 2]
    assert "first 3 of 5 rows" in page.read_text()


def test_alternatives_and_the_file_of_all_rows_are_spoken_of_where_there_are_any(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.html"
    row = record(0, "a", "b")
    write_page(page, [row], head(source="disputed.jsonl"))
    assert "all of them are in disputed.jsonl" in page.read_text()
    assert "Alternatives are the tokens of highest reward" in page.read_text()
    for each in row["responses"].values():
        del each["alternatives"]
    write_page(page, [row], head(rows=1))
    assert "all of them are in" not in page.read_text()
    assert "Alternatives are" not in page.read_text()


def test_head_shows_names_and_accuracy(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    facts = head(accuracy=0.625, mean_margin=-0.125, ordered=8, rows=8, skipped=2, data="d.jsonl")
    write_page(page, [record(0, "a", "b")], facts)
    text = re.sub(r"<[^>]*>", "", page.read_text().split('<script type="application/json"')[0])
    for shown in ("62.5% of 8", "−0.125", "d.jsonl", "+ 2 skipped"):
        assert shown in text


def test_credit_on_format_tokens_is_told_above_the_rows(tmp_path: Path) -> None:
    shares = {"share_of_credit": 0.5, "share_of_tokens": 0.125}
    told = {
        **shares,
        "by_class": {"end": shares, "line break": {"share_of_credit": 0, "share_of_tokens": 0}},
        "pairs_decided_by_format": 0.25,
        "warning": "Half of it is <end>.",
    }
    page = tmp_path / "page.html"
    write_page(page, [record(0, "a", "b")], head(format=told))
    text = page.read_text()
    assert "Half of it is &lt;end&gt;." in text
    assert "they decide 25% of pairs" in text
    assert re.search(r'<th scope="row">end</th><td>50\.0%</td><td>12\.5%</td>', text)
    write_page(page, [record(0, "a", "b")], head(format={**told, "warning": None}))
    assert "Credit sits on format tokens" not in page.read_text()
    assert "50% of all |credit|, 12% of tokens" in page.read_text()
    write_page(page, [record(0, "a", "b")], head())
    assert "Format tokens" not in page.read_text()
