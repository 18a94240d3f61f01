"""One self-contained HTML page of what a search found; works from `file://`.

Built as the page of token credit is (`html.py`), whose style and helpers it shares: data as JSON in
a script tag, text nodes only, no request to anywhere. Its own parts are `page/search*`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokenq.report.html import Utf16, part, script_json, turns
from tokenq.report.search_tree import layout_tree
from tokenq.storage import write_text

_SCALE = 0.98
_SCRIPTS = ("text", "theme", "browse", "search", "search_tree")
_DECIMALS = 4
_FACTS = (
    ("search/score", "Mean score"),
    ("search/log_ratio", "Mean log-ratio"),
    ("search/length", "Mean tokens"),
    ("search/tokens_per_second", "Tokens a second"),
)
_NODE = ("text", "score", "logp", "ref_logp", "visits", "value", "fate")


@dataclass(frozen=True)
class SearchHead:
    """What the page says above its prompts.

    summary:   `summary.json`: settings and metrics
    beta:      of the implicit rewards
    page_rows: at most so many prompts are on the page
    """

    summary: Mapping[str, Any]
    beta: float
    page_rows: int = 500

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values."""
        known = [(name, self.summary.get(key)) for key, name in _FACTS]
        return [(name, f"{value:,.2f}") for name, value in known if value is not None]


def write_search_page(
    path: Path,
    records: Iterable[Mapping[str, Any]],
    head: SearchHead,
    *,
    trace_of: Callable[[int], Mapping[str, Any] | None] = lambda row: None,
) -> None:
    """Write lines of `search.jsonl` as one page at `path`, whole or not at all.

    trace_of: the tree of a row (`Trace.to_dict`), or None
    """
    rows = [_row(record, trace_of(record["row"])) for record in islice(records, head.page_rows)]
    data = {"beta": head.beta, "scale": _scale(rows), "rows": rows}
    environment = Environment(
        loader=PackageLoader("tokenq.report", "page"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("search.html").render(
        head=head,
        shown=len(rows),
        css=Markup(part(environment, "page.css") + part(environment, "search.css")),
        js=Markup("\n".join(part(environment, f"{name}.js") for name in _SCRIPTS)),
        data=Markup(script_json(data)),
    )
    write_text(path, page)


def _row(record: Mapping[str, Any], trace: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "row": record["row"],
        "prompt": turns(record["prompt"]),
        "responses": [_response(each) for each in record["responses"]],
    }
    if trace is not None and trace["nodes"]:
        row["tree"] = _tree(trace["nodes"])
    return row


def _response(response: Mapping[str, Any]) -> dict[str, Any]:
    units = Utf16(response["text"])
    packed = {
        "text": response["text"],
        "tokens": response["tokens"],
        "places": [[units[start], units[end]] for start, end in response["offsets"]],
        "score": _number(response["score"]),
        "finish": response["finish"],
        "logps": [_number(each) for each in response["logps"]],
        "details": {name: _number(each) for name, each in response.get("details", {}).items()},
    }
    for name in ("log_ratio", "kl"):
        if response.get(name) is not None:
            packed[name] = _number(response[name])
    if "rewards" in response:
        packed["rewards"] = [_number(each) for each in response["rewards"]]
    return packed


def _tree(nodes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The layout, and of every box its tokens and what was dropped behind each of them."""
    layout = layout_tree(nodes)
    drawn = {number for box in layout.boxes for number in box.nodes}
    dropped: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        if number not in drawn:
            dropped.setdefault(node["parent"], []).append(number)
    plain = layout.to_dict()
    for box in plain["boxes"]:
        box["tokens"] = [_node(nodes[number]) for number in box["nodes"]]
        last = sorted(dropped.get(box["nodes"][-1], []), key=lambda n: -nodes[n]["score"])
        box["dropped"] = [_node(nodes[number]) for number in last[:6]]
        for name in ("score", "logp", "log_ratio", "value"):
            box[name] = None if box[name] is None else _number(box[name])
    return plain


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: node.get(name) for name in _NODE}
    if known["text"] is None:
        known["text"] = f"#{node['token']}"
    return {
        name: _number(value) if isinstance(value, float) else value for name, value in known.items()
    }


def _number(value: float) -> float:
    """JSON has no infinity; what no model thinks possible is shown as a very large number."""
    if math.isnan(value):
        return 0.0
    return round(max(-1e6, min(1e6, value)), _DECIMALS)


def _scale(rows: Iterable[Mapping[str, Any]]) -> float:
    """The |reward| at which colours end: the 98th percentile, as on the page of token credit."""
    sizes = sorted(
        abs(reward)
        for row in rows
        for each in row["responses"]
        for reward in each.get("rewards", [])
    )
    return float(sizes[int(_SCALE * len(sizes))]) if sizes else 0.0
