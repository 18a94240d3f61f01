"""One self-contained HTML page with the tokens of scored responses; works from `file://`.

The page's parts lie in `page/`: the template, its style, and scripts that share one scope. Its data
is JSON in a script tag, from which the scripts write text nodes only: no text of the data set is
ever parsed as HTML. This module decides what the page is told; what it shows is the scripts' work.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokenq.storage import write_text

_NATS = 1000
"""Log-probabilities are written as whole thousandths of a nat."""

_SCALE = 0.98
_REWARD = 10_000
"""Rewards are written as whole ten-thousandths of a nat times beta."""

_SCRIPTS = (
    "text",
    "theme",
    "browse",
    "data",
    "list",
    "card",
    "curve",
    "difference",
    "row",
    "controls",
)
"""In the order in which they stand on the page: names are made before they are used."""

_FACTS = ("entropies", "ref_entropies", "divergences")
"""Numbers of each step, in nats, that a record may hold."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SCRIPT_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""What could end a script tag, start a comment or break a line of a script; fine inside strings."""


@dataclass(frozen=True)
class PageHead:
    """What the page says above its rows.

    accuracy:    share of ordered rows with a margin above 0
    mean_margin: beta times nats
    rows:        scored rows, of which the page shows the first ones
    skipped:     rows that could not be scored
    source:      the file that holds all rows
    format:      share of the credit that lies on format tokens, as `credit.format_tokens` gives it
                 (`FormatShare.to_dict`); its `warning`, if any, is shown above all rows
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
    source: str = "credit.jsonl"
    format: dict[str, Any] | None = None


def write_page(
    path: Path, records: Iterable[dict[str, Any]], head: PageHead, *, page_rows: int = 2000
) -> None:
    """Write `records` (lines of a scored data set) as one page at `path`, whole or not at all.

    What a record may hold beyond its tokens, and the page then shows: `segments` (where chosen and
    rejected differ, as `credit.aligned_segments` gives them), and of each response `alternatives`,
    `estimates` (rewards by the name of their estimator, beta times nats), `spans` (`start` and
    `end` characters, `p_value`, `reward`, `flagged`) and `entropies`, `ref_entropies`,
    `divergences` (nats).

    page_rows: only the first so many; a row takes about 10 kB for 2 x 60 tokens with alternatives
    """
    payload = _Payload()
    for record in islice(records, page_rows):
        payload.add(record)
    environment = Environment(
        loader=PackageLoader("tokenq.report", "page"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html").render(
        head=head,
        shown=len(payload.rows),
        alternatives=payload.alternatives,
        css=Markup(part(environment, "page.css")),
        js=Markup("\n".join(part(environment, f"{name}.js") for name in _SCRIPTS)),
        data=Markup(payload.to_json(head)),
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
    text = _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return text.translate(_SCRIPT_ESCAPES)


def part(environment: Environment, name: str) -> str:
    """The text of a part of the page."""
    loader = environment.loader
    assert isinstance(loader, PackageLoader)
    return loader.get_source(environment, name)[0]


@dataclass
class _Payload:
    """The page's data, each row as JSON already; texts that recur are written once."""

    strings: dict[str, int] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    estimators: dict[str, None] = field(default_factory=dict)
    alternatives: bool = False

    def add(self, record: dict[str, Any]) -> None:
        """Add one row: a line of a scored data set."""
        names = list(record["responses"])
        row = {
            "row": record["row"],
            "prompt": turns(record["prompt"]),
            "sides": [self._side(name, record["responses"][name]) for name in names],
        }
        if "margin" in record:
            row["margin"] = record["margin"]
        if record.get("segments"):
            row["pair"] = [names.index("chosen"), names.index("rejected")]
            row["segments"] = _segments(record)
        self.rows.append(script_json(row))

    def to_json(self, head: PageHead) -> str:
        """All of it, to stand in a script tag."""
        facts = {
            "beta": head.beta,
            "nats": _NATS,
            "reward": _REWARD,
            "scale": self._scale(),
            "estimators": [_about(name) for name in ("plain", *self.estimators)],
            "strings": list(self.strings),
        }
        start = script_json(facts)
        return f'{start[:-1]},"rows":[{",".join(self.rows)}]}}'

    def _scale(self) -> float:
        """The |reward| of a token at which colours end: the 98th percentile, so that a few extreme
        tokens do not wash out all others."""
        return sorted(self.sizes)[int(_SCALE * len(self.sizes))] if self.sizes else 0.0

    def _side(self, name: str, side: dict[str, Any]) -> dict[str, Any]:
        text, offsets = side["response"], side["offsets"]
        units = Utf16(text)
        self.sizes += map(abs, side["rewards"])
        worst = min(range(len(side["rewards"])), key=side["rewards"].__getitem__)
        packed = {
            "name": name,
            "text": text,
            "cut": side.get("tokens_cut", 0),
            "length": len(side["tokens"]),
            "total": side["reward"],
            "worst": [self._string(side["tokens"][worst]), side["rewards"][worst]],
            "places": _places(units, offsets),
            "outside": _joined(
                self._string(token)
                for token, (start, end) in zip(side["tokens"], offsets, strict=True)
                if start == end
            ),
            "logps": _milli(side["logps"]),
            "refs": _milli(side["ref_logps"]),
            **_levels(units, text),
        }
        if "alternatives" in side:
            packed["best"] = ";".join(map(self._best, side["alternatives"]))
            self.alternatives = True
        if side.get("estimates"):
            packed["estimates"] = _estimates(side)
            self.estimators |= dict.fromkeys(packed["estimates"])
        facts = {each: _milli(side[each]) for each in _FACTS if each in side}
        if facts:
            packed["facts"] = facts
        if "spans" in side:
            packed["spans"] = [_span(each, units, offsets) for each in side["spans"]]
        return packed

    def _best(self, alternatives: list[dict[str, Any]]) -> str:
        """Token, log-prob, reference log-prob of each alternative, one after the other."""
        return _joined(
            number
            for each in alternatives
            for number in (
                self._string(each["token"]),
                round(_NATS * each["logp"]),
                round(_NATS * each["ref_logp"]),
            )
        )

    def _string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))


class Utf16:
    """Positions in a text, in the units in which JavaScript counts them."""

    def __init__(self, text: str) -> None:
        # Most texts have no character outside the basic plane; their positions are the same.
        self._starts = None
        if text and max(text) > "\uffff":
            self._starts = list(accumulate((1 + (c > "\uffff") for c in text), initial=0))

    def __getitem__(self, position: int) -> int:
        return position if self._starts is None else self._starts[position]


def _joined(numbers: Iterable[int]) -> str:
    """Numbers as one string, which the browser takes in much faster than a list: it reads them only
    when the row is shown."""
    return ",".join(map(str, numbers))


def _places(units: Utf16, offsets: Sequence[Sequence[int]]) -> str:
    """Of each token the gap since the end of the one before (negative where both have bytes of one
    character) and the length; 0 for tokens that stand for no text."""
    places, reached = [], 0
    for start, end in offsets:
        places += [units[start] - reached, units[end] - units[start]]
        reached = units[end]
    return _joined(places)


def _levels(units: Utf16, text: str) -> dict[str, str]:
    """Lengths of the words and of the sentences that part the text, one after the other."""
    # Needs torch, which the commands that show progress only should not wait for.
    from tokenq.credit.aggregation import sentence_units, word_units

    return {
        name: _joined(units[end] - units[start] for start, end in parts)
        for name, parts in (("words", word_units(text)), ("sentences", sentence_units(text)))
    }


def _estimates(side: dict[str, Any]) -> dict[str, str]:
    """Other estimates of the tokens' rewards; the plain one is what the log-probs say.

    Raises ValueError for one of another length.
    """
    estimates = {name: each for name, each in side["estimates"].items() if name != "plain"}
    for name, values in estimates.items():
        if len(values) != len(side["rewards"]):
            raise ValueError(f"{len(values)} values of {name!r} for {len(side['rewards'])} tokens")
    return {
        name: _joined(round(_REWARD * value) for value in values)
        for name, values in estimates.items()
    }


def _about(name: str) -> dict[str, Any]:
    """What the page says of an estimator, and how it reads it.

    spread: whether each token has the number of its whole word already, so that tokens are not
            summed again
    """
    # Needs torch, as above.
    from tokenq.credit.estimators import ESTIMATORS

    return {
        "name": name,
        "summary": ESTIMATORS[name].summary if name in ESTIMATORS else "",
        "unit": "sd" if name.startswith("standardised") else "β·nats",
        "spread": name.endswith("words"),
    }


def _span(span: dict[str, Any], units: Utf16, offsets: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A span of characters with the tokens `first:last` that have some of them.

    A span with no `flagged` of its own is shown as flagged: whoever wrote it found it worth it.
    """
    start, end = span["start"], span["end"]
    inside = [at for at, (one, two) in enumerate(offsets) if one < end and two > start]
    return {
        "start": units[start],
        "end": units[end],
        "first": inside[0] if inside else 0,
        "last": inside[-1] + 1 if inside else 0,
        "p": span.get("p_value"),
        "reward": span.get("reward"),
        "flagged": span.get("flagged", True),
    }


def _segments(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Segments of a pair with what each adds to the margin; order as given."""
    sides = {name: Utf16(record["responses"][name]["response"]) for name in ("chosen", "rejected")}
    return [
        {
            "kind": segment["kind"],
            "places": [[units[at] for at in segment[name]] for name, units in sides.items()],
            "rewards": [segment[f"{name}_reward"] for name in sides],
            "difference": segment["chosen_reward"] - segment["rejected_reward"],
        }
        for segment in record["segments"]
    ]


def _milli(logps: list[float]) -> str:
    return _joined(round(_NATS * logp) for logp in logps)


def turns(prompt: Any) -> list[list[str]]:
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
