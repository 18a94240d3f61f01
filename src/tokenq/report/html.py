"""One self-contained HTML page with the tokens of scored responses; works from `file://`.

The page's parts are `page.html` (template), `page.css` and `page.js`. Its data is JSON in a script
tag, from which the script writes text nodes only: no text of the data set is ever parsed as HTML.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokenq.storage import write_text

_NATS = 1000
"""Log-probabilities are written as whole thousandths of a nat."""

_SCRIPT_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""What could end a script tag, start a comment or break a line of a script; fine inside strings."""


@dataclass(frozen=True)
class PageHead:
    """What the page says above its rows.

    accuracy:    share of ordered rows with a margin above 0
    mean_margin: beta times nats
    rows:        scored rows, of which the page shows the first ones
    skipped:     rows that could not be scored
    """

    policy: str
    reference: str
    beta: float
    data: str | None = None
    accuracy: float | None = None
    mean_margin: float | None = None
    ordered: int = 0
    rows: int = 1
    tokens: int = 0
    skipped: int = 0
    min_probability: float = 0.0


def write_page(
    path: Path, records: Iterable[dict[str, Any]], head: PageHead, *, page_rows: int = 2000
) -> None:
    """Write `records` (lines of a scored data set) as one page at `path`, whole or not at all.

    page_rows: only the first so many; a row takes about 10 kB for 2 x 60 tokens with alternatives
    """
    payload = _Payload()
    for record in islice(records, page_rows):
        payload.add(record)
    environment = Environment(
        loader=PackageLoader("tokenq.report", "."), autoescape=True, undefined=StrictUndefined
    )
    source = environment.loader
    assert isinstance(source, PackageLoader)
    page = environment.get_template("page.html").render(
        head=head,
        shown=len(payload.rows),
        css=Markup(source.get_source(environment, "page.css")[0]),
        js=Markup(source.get_source(environment, "page.js")[0]),
        data=Markup(script_json(payload.to_dict(head))),
    )
    write_text(path, page)


def single_page(record: dict[str, Any], path: Path, *, min_probability: float = 0.0) -> None:
    """Write the page of one response, given as `Credit.to_dict(alternatives=..., ...)`."""
    row = {"row": 0, "prompt": record["prompt"], "responses": {"response": record}}
    head = PageHead(
        record["policy"],
        record["reference"],
        record["beta"],
        tokens=len(record["token_ids"]),
        min_probability=min_probability,
    )
    write_page(path, [row], head)


def script_json(value: Any) -> str:
    """Return `value` as JSON that may stand in a script tag."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate, as JSON escapes can bring it into a data set, has no UTF-8 form.
    text = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text.translate(_SCRIPT_ESCAPES)


@dataclass
class _Payload:
    """The page's data; every token text is written once."""

    strings: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        sides = [self._side(name, side) for name, side in record["responses"].items()]
        row = {"row": record["row"], "prompt": _turns(record["prompt"]), "sides": sides}
        if "margin" in record:
            row["margin"] = record["margin"]
        self.rows.append(row)

    def to_dict(self, head: PageHead) -> dict[str, Any]:
        return {"beta": head.beta, "unit": _NATS, "strings": list(self.strings), "rows": self.rows}

    def _side(self, name: str, side: dict[str, Any]) -> dict[str, Any]:
        packed = {
            "name": name,
            "cut": side.get("tokens_cut", 0),
            "tokens": [self._string(token) for token in side["tokens"]],
            **_places(side["response"], side["offsets"]),
            "logps": _milli(side["logps"]),
            "refs": _milli(side["ref_logps"]),
        }
        if "alternatives" in side:
            packed["best"] = [self._best(each) for each in side["alternatives"]]
        return packed

    def _best(self, alternatives: list[dict[str, Any]]) -> list[int]:
        """Token, log-prob, reference log-prob of each alternative, one after the other."""
        return [
            number
            for each in alternatives
            for number in (
                self._string(each["token"]),
                *_milli([each["logp"], each["ref_logp"]]),
            )
        ]

    def _string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))


def _places(text: str, offsets: list[list[int]]) -> dict[str, Any]:
    """How the tokens make up the text, without positions: JavaScript counts characters differently.

    outside:      tokens that stand for no text of the response
    shared:       tokens that are further bytes of the character of the token before
    before/after: text of the response that no token covers
    """
    inside = [offset for offset in offsets if offset[0] < offset[1]]
    pairs = enumerate(pairwise(offsets), start=1)
    return {
        "outside": [at for at, (start, end) in enumerate(offsets) if start == end],
        "shared": [at for at, (one, two) in pairs if one == two and one[0] < one[1]],
        "before": text[: inside[0][0]] if inside else text,
        "after": text[inside[-1][1] :] if inside else "",
    }


def _milli(logps: list[float]) -> list[int]:
    return [round(_NATS * logp) for logp in logps]


def _turns(prompt: Any) -> list[list[str]]:
    """[role, text] of each turn; the role of a plain text prompt is empty."""
    if isinstance(prompt, str):
        return [["", prompt]]
    return [
        [
            str(turn["role"]),
            content if isinstance(content := turn["content"], str) else str(content),
        ]
        for turn in prompt
    ]
