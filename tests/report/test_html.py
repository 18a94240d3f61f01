"""The page: hostile text stays text, the data says what the records say, nothing is loaded."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tokenq.report.html import PageHead, script_json, write_page

HOSTILE = (
    "</script><script>alert(1)</script><!-- \"q\" 'q' & <u>x</u> \u202eevil\u202c "
    "👩\u200d👩\u200d👧 \u2028 \ud800"
)


def side(text: str, pieces: list[str] | None = None) -> dict[str, Any]:
    pieces = pieces or re.findall(r"\s?\S+|\s", text)
    offsets, at = [], 0
    for piece in pieces:
        offsets.append([at, at + len(piece)])
        at += len(piece)
    count = len(pieces) + 1
    best = [{"token": " film", "token_id": 7, "logp": -0.5, "ref_logp": -1.5, "reward": 0.1}]
    return {
        "response": text,
        "reward": 0.05 * count,
        "tokens": [*pieces, "</s>"],
        "token_ids": list(range(count)),
        "offsets": [*offsets, [len(text), len(text)]],
        "logps": [-1.0] * count,
        "ref_logps": [-1.5] * count,
        "rewards": [0.05] * count,
        "values": [0.05 * i for i in range(count + 1)],
        "alternatives": [best] * count,
        "tokens_cut": 0,
    }


def record(row: int, chosen: str, rejected: str, margin: float = 0.2) -> dict[str, Any]:
    responses = {"chosen": side(chosen), "rejected": side(rejected)}
    return {"row": row, "prompt": "Review:", "responses": responses, "margin": margin}


def head(**fields: Any) -> PageHead:
    return PageHead(**{"policy": "p", "reference": "r", "beta": 0.1, "rows": 2, **fields})


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


def test_hostile_text_cannot_leave_its_script_tag(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    names = head(policy=HOSTILE.replace("\ud800", ""), reference='"><img src=x onerror=alert(1)>')
    write_page(page, [record(0, HOSTILE, "plain"), record(1, "a", "b")], names)
    reader, data = read(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in reader.tags]
    tokens = [data["strings"][number] for number in data["rows"][0]["sides"][0]["tokens"]]
    assert "".join(tokens[:-1]) == HOSTILE


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
    assert [data["strings"][i] for i in chosen["tokens"]] == ["a", " b", " a", "</s>"]
    assert [data["strings"][i] for i in rejected["tokens"]] == ["c", "\n", "</s>"]
    assert chosen["logps"] == [-1000] * 4
    assert chosen["refs"] == [-1500] * 4
    assert chosen["best"][0] == [data["strings"].index(" film"), -500, -1500]
    assert chosen["outside"] == [3]
    assert len(data["strings"]) == len(set(data["strings"]))


def test_text_outside_tokens_and_shared_characters(tmp_path: Path) -> None:
    uneven = side("  🎬 end", ["🎬"])
    uneven["tokens"], uneven["offsets"] = ["🎬", "🎬", "</s>"], [[2, 3], [2, 3], [7, 7]]
    for name in ("logps", "ref_logps", "rewards", "alternatives"):
        uneven[name] = [uneven[name][0]] * 3
    row = {"row": 0, "prompt": "", "responses": {"completion": uneven}}
    write_page(tmp_path / "page.html", [row], head())
    [packed] = read(tmp_path / "page.html")[1]["rows"][0]["sides"]
    assert (packed["before"], packed["after"]) == ("  ", " end")
    assert packed["shared"] == [1]
    assert packed["outside"] == [2]


def test_only_the_first_rows_are_on_the_page_and_it_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, (record(i, "a", "b") for i in range(5)), head(rows=5), page_rows=3)
    assert [row["row"] for row in read(page)[1]["rows"]] == [0, 1, 2]
    assert "first 3 of 5 rows" in page.read_text()


def test_head_shows_names_and_accuracy(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    facts = head(accuracy=0.625, mean_margin=-0.125, ordered=8, rows=8, skipped=2, data="d.jsonl")
    write_page(page, [record(0, "a", "b")], facts)
    text = re.sub(r"<[^>]*>", "", page.read_text().split('<script type="application/json"')[0])
    for shown in ("62.5% of 8", "−0.125", "d.jsonl", "+ 2 skipped"):
        assert shown in text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_browser_draws_the_page_and_runs_nothing_of_the_data(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    rows = [record(0, "fine text", "b", 0.5), record(1, HOSTILE, "a\n\nb", -0.4)]
    write_page(page, rows, head(accuracy=0.5, mean_margin=0.05, ordered=2))
    chrome = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    chrome += ["--disable-background-networking", "--enable-logging=stderr", "--dump-dom"]
    chrome += [f"--user-data-dir={tmp_path / 'profile'}", f"{page.as_uri()}#row=1"]
    done = subprocess.run(chrome, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    reader = Reader()
    reader.feed(done.stdout)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2
    assert not {"u", "img"} & set(tags[tags.index("main") : tags.index("footer")])
    chosen = len(rows[1]["responses"]["chosen"]["tokens"])
    rejected = len(rows[1]["responses"]["rejected"]["tokens"])
    drawn = [f for _, f in reader.tags if (f.get("class") or "").split()[:1] == ["tok"]]
    assert len(drawn) == chosen + rejected
    assert tags.count("polyline") == 2
    for visible in ("U+202E", "U+2028", "↵", "&lt;/script&gt;", "≠ label"):
        assert visible in done.stdout
