"""The tree that a search went through, laid out for a page and drawn as a picture.

Nodes are those of `Trace.to_dict()`. Stretches of text without a branch become one box; what was
looked at and dropped at once is counted, and the best of it shown where there is room.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenq.report.visible import visible
from tokenq.storage import atomic_file

Node = Mapping[str, Any]

_GAP = 4
"""Characters between a box and what follows it."""
_INK, _SOFT, _PAPER, _ACCENT = "#1b1e23", "#6a717c", "#ffffff", "#5b3fd1"
_LIKED, _BLAMED = "#1a6199", "#a34a00"
_CHARACTER, _ROW = 0.068, 0.31
"""Inches, of a character in the picture's type and from one row to the next."""
_NARROWEST, _LONGEST = 7, 60
"""Inches: what the words below a picture need, and what no program opens well beyond."""


@dataclass
class Box:
    """A stretch of tokens that follow one another without a branch.

    parent:    number of the box before; -1 behind the prompt
    nodes:     numbers of the trace's nodes, in their order
    fate:      of the last token: "chosen", "finished", "open" (something follows), "dropped" (what
               followed was all dropped, or nothing did) or "pruned" (dropped at once)
    score:     of the text up to here; logp, log_ratio: of the first token and of all of them, nats
    visits:    of a tree search, else 0
    rank:      1 for the first response that was given back, 2, ...; 0 for others
    hidden:    tokens that were tried behind it and are not drawn
    x, y:      left end in characters, and row
    """

    parent: int
    nodes: list[int]
    text: str
    fate: str
    score: float
    logp: float
    log_ratio: float | None
    visits: int = 0
    value: float | None = None
    rank: int = 0
    hidden: int = 0
    x: float = 0.0
    y: float = 0.0
    children: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Characters, with a margin."""
        return len(self.text) + 2


@dataclass(frozen=True)
class TreeLayout:
    """Boxes with their places; parents stand before children.

    width, height: characters and rows of the whole
    notes:         what is left out, a sentence each
    """

    boxes: list[Box]
    width: float
    height: float
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "boxes": [{**asdict(box), "width": box.width} for box in self.boxes],
            "width": self.width,
            "height": self.height,
            "notes": self.notes,
        }


def layout_tree(
    nodes: Sequence[Node], *, max_leaves: int = 40, pruned: int = 1, longest: int = 34
) -> TreeLayout:
    """Place the nodes of a trace.

    max_leaves: at most so many ends of branches; the best are drawn, and what is left out is noted
    pruned:     of the tokens that were dropped where a stretch ends, so many are drawn
    longest:    characters of a box; longer texts lose their middle
    """
    children = _children(nodes)
    kept = [node["fate"] != "pruned" or bool(children[n]) for n, node in enumerate(nodes)]
    shown, left_out = _shown_nodes(nodes, children, kept, max_leaves)
    ranks = _ranks(nodes)
    boxes: list[Box] = []
    waiting = [(-1, start) for start in reversed(_following(-1, children, shown))]
    while waiting:
        parent, start = waiting.pop()
        path = [start]
        while len(after := _following(path[-1], children, shown)) == 1:
            path.append(after[0])
        box = _box(nodes, path, parent, ranks, longest)
        if box.fate == "pruned":
            box.fate = "dropped"  # later, as something was tried behind it
        boxes.append(box)
        waiting += [(len(boxes) - 1, each) for each in reversed(after)]
    _add_pruned(nodes, children, kept, shown, boxes, pruned, max_leaves, longest)
    _place(boxes)
    return TreeLayout(
        boxes,
        max((box.x + box.width for box in boxes), default=0.0),
        1 + max((box.y for box in boxes), default=-1.0),
        _notes(nodes, kept, boxes, left_out),
    )


def draw_tree(nodes: Sequence[Node], path: Path, *, title: str = "", **options: Any) -> TreeLayout:
    """Draw a trace as a picture, whole or not at all; the suffix of `path` says which kind.

    title:   one line above it, such as the prompt
    options: of :func:`layout_tree`
    """
    from matplotlib.figure import Figure

    layout = layout_tree(nodes, **options)
    beginning = 8  # characters of the box that stands for the prompt
    across = max(layout.width + 21, _NARROWEST / _CHARACTER - beginning)
    width = min(_LONGEST, _CHARACTER * (across + beginning + 1))
    height = min(_LONGEST, _ROW * (layout.height + 1.2) + 0.5)
    figure = Figure(figsize=(width, max(1.6, height)), facecolor=_PAPER)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-beginning - 1, across)
    axes.set_ylim(layout.height + 0.9, -1.2)
    axes.axis("off")
    heading = _shortened(title, 110) or "What the search went through"
    _write(axes, -beginning, -0.85, heading, _INK, weight="bold")
    _frame(axes, -beginning, 0, beginning - 1, _SOFT, 0.8, "-")
    _write(axes, -beginning + 0.5, 0, "prompt", _SOFT)
    for box in layout.boxes:
        _draw_edge(axes, box, layout.boxes)
    for box in layout.boxes:
        _draw_box(axes, box)
    legend = "line: thickness is the first token's probability"
    if any(box.log_ratio is not None for box in layout.boxes):
        legend += ", colour the log-ratio (blue: the policy's, orange: the reference's)"
    _write(axes, -beginning, layout.height + 0.15, legend, _SOFT, size=6.5)
    _write(axes, -beginning, layout.height + 0.55, " ".join(layout.notes), _SOFT, size=6.5)
    with atomic_file(path) as temporary, warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the page shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=150)
    return layout


def _children(nodes: Sequence[Node]) -> list[list[int]]:
    """Numbers of each node's children; those behind the prompt come last."""
    children: list[list[int]] = [[] for _ in range(len(nodes) + 1)]
    for number, node in enumerate(nodes):
        children[node["parent"]].append(number)
    return children


def _following(number: int, children: list[list[int]], shown: set[int]) -> list[int]:
    return [each for each in children[number] if each in shown]


def _shown_nodes(
    nodes: Sequence[Node], children: list[list[int]], kept: list[bool], max_leaves: int
) -> tuple[set[int], int]:
    """The nodes on the way to the best ends of branches, and how many ends are left out."""
    ends = [n for n in range(len(nodes)) if kept[n] and not any(kept[c] for c in children[n])]
    ends.sort(key=lambda n: _worth(nodes[n]), reverse=True)
    shown: set[int] = set()
    for end in ends[:max_leaves]:
        while end >= 0 and end not in shown:
            shown.add(end)
            end = nodes[end]["parent"]
    return shown, max(0, len(ends) - max_leaves)


def _worth(node: Node) -> tuple[int, int, float]:
    order = ("pruned", "open", "finished", "chosen").index(node["fate"])
    score = node["score"]
    return order, node.get("visits") or 0, -math.inf if math.isnan(score) else score


def _ranks(nodes: Sequence[Node]) -> dict[int, int]:
    """Place of each response that was given back: as the search says, else by score."""
    given = [n for n, node in enumerate(nodes) if node["fate"] == "chosen"]
    given.sort(key=lambda n: (nodes[n].get("rank") or math.inf, -nodes[n]["score"]))
    return {n: place for place, n in enumerate(given, start=1)}


def _box(
    nodes: Sequence[Node], path: list[int], parent: int, ranks: Mapping[int, int], longest: int
) -> Box:
    first, last = nodes[path[0]], nodes[path[-1]]
    ratios = [_log_ratio(nodes[n]) for n in path]
    known = [each for each in ratios if each is not None]
    return Box(
        parent=parent,
        nodes=path,
        text=_shortened("".join(_text(nodes[n]) for n in path), longest),
        fate=last["fate"],
        score=last["score"],
        logp=first["logp"],
        log_ratio=sum(known) if len(known) == len(ratios) else None,
        visits=first.get("visits") or 0,
        value=last.get("value"),
        rank=ranks.get(path[-1], 0),
    )


def _text(node: Node) -> str:
    return f"#{node['token']} " if node.get("text") is None else str(node["text"])


def _shortened(text: str, longest: int) -> str:
    shown = visible(text).strip("␣") or visible(text)
    if len(shown) <= longest:
        return shown
    head = 2 * longest // 3
    return f"{shown[:head].rstrip()} … {shown[head + 3 - longest :].lstrip()}"


def _log_ratio(node: Node) -> float | None:
    theirs = node.get("ref_logp")
    return None if theirs is None else node["logp"] - theirs


def _add_pruned(
    nodes: Sequence[Node],
    children: list[list[int]],
    kept: list[bool],
    shown: set[int],
    boxes: list[Box],
    count: int,
    max_leaves: int,
    longest: int,
) -> None:
    """Give every box the best of what was dropped where it ends, as far as there is room."""
    followed = {box.parent for box in boxes}
    room = max_leaves - sum(number not in followed for number in range(len(boxes)))
    for number, box in enumerate(boxes):
        if box.fate == "open" and number not in followed:
            box.fate = "dropped"
    for number in range(len(boxes)):
        box = boxes[number]
        box.hidden = sum(c not in shown for n in box.nodes for c in children[n])
        if box.fate in ("chosen", "finished"):
            continue
        dropped = [c for c in children[box.nodes[-1]] if not kept[c]]
        dropped.sort(key=lambda n: _worth(nodes[n]), reverse=True)
        best = dropped[: max(0, min(count, room))]
        room -= len(best)
        box.hidden -= len(best)
        boxes += [_box(nodes, [each], number, {}, longest) for each in best]


def _place(boxes: list[Box]) -> None:
    """Rows in the order of the ends, best first; a box stands beside the first of its children."""
    roots: list[int] = []
    best: list[tuple[float, ...]] = [_order(box) for box in boxes]
    for number in range(len(boxes) - 1, -1, -1):
        parent = boxes[number].parent
        if parent >= 0:
            best[parent] = min(best[parent], best[number])
    for number, box in enumerate(boxes):
        (boxes[box.parent].children if box.parent >= 0 else roots).append(number)
        if box.parent >= 0:
            before = boxes[box.parent]
            box.x = before.x + before.width + _GAP
    row = 0.0
    waiting = sorted(roots, key=best.__getitem__, reverse=True)
    while waiting:
        box = boxes[waiting.pop()]
        box.children.sort(key=best.__getitem__)
        box.y = row
        if box.children:
            waiting += reversed(box.children)
        else:
            row += 1


def _order(box: Box) -> tuple[float, ...]:
    """Given back first, in their order; then by what became of them, and by score."""
    fate = ("chosen", "finished", "open", "dropped", "pruned").index(box.fate)
    score = math.inf if math.isnan(box.score) else -box.score
    return (0 if box.rank else 1, box.rank, fate, -box.visits, score)


def _notes(
    nodes: Sequence[Node], kept: Sequence[bool], boxes: Sequence[Box], left_out: int
) -> list[str]:
    drawn = {number for box in boxes for number in box.nodes}
    dropped = sum(not kept[n] and n not in drawn for n in range(len(nodes)))
    notes = [f"{len(nodes):,} tokens were looked at."]
    if dropped:
        notes.append(f"{dropped:,} that were dropped at once are not drawn.")
    if left_out:
        notes.append(f"{left_out:,} more branches are left out.")
    return notes


def _draw_edge(axes: Any, box: Box, boxes: Sequence[Box]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    before = boxes[box.parent] if box.parent >= 0 else None
    start = (-1.0, 0.0) if before is None else (before.x + before.width, before.y)
    end = (box.x, box.y)
    middle = (start[0] + end[0]) / 2
    points = [start, (middle, start[1]), (middle, end[1]), end]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    axes.add_patch(
        PathPatch(
            curve,
            fill=False,
            linewidth=0.5 + 3.0 * math.exp(min(0.0, box.logp)),
            edgecolor=_colour(box),
            linestyle=":" if box.fate == "pruned" else "-",
            alpha=0.55 if box.fate == "pruned" else 0.9,
        )
    )


def _draw_box(axes: Any, box: Box) -> None:
    ink = _SOFT if box.fate == "pruned" else _INK
    if box.fate != "pruned":
        edge, line = (_ACCENT, 1.6) if box.rank else (_colour(box), 0.8)
        _frame(axes, box.x, box.y, box.width, edge, line, _line(box))
    weight = "bold" if box.rank else "normal"
    _write(axes, box.x + 1, box.y, box.text, ink, weight=weight)
    if box.visits:
        _write(axes, box.x + 0.2, box.y + 0.47, f"{box.visits}×", _SOFT, size=5.5)
    if not box.children:
        score = f"{box.score:+.2f}"
        told = f"{box.rank}.  {score}" if box.rank else score
        if box.fate == "dropped":
            told += f"  dropped ({box.hidden} tried)" if box.hidden else "  dropped"
        _write(axes, box.x + box.width + 0.8, box.y, told, _ACCENT if box.rank else _SOFT, size=6.5)


def _line(box: Box) -> str:
    return "--" if box.fate == "dropped" else "-"


def _colour(box: Box) -> str:
    """From grey to blue or orange, full at a factor of e."""
    if box.log_ratio is None:
        return _SOFT
    share = min(1.0, abs(box.log_ratio))
    full = _LIKED if box.log_ratio > 0 else _BLAMED
    return _mixed(_SOFT, full, share)


def _mixed(one: str, other: str, share: float) -> str:
    parts = []
    for at in (1, 3, 5):
        low, high = int(one[at : at + 2], 16), int(other[at : at + 2], 16)
        parts.append(f"{round(low + share * (high - low)):02x}")
    return "#" + "".join(parts)


def _frame(
    axes: Any, x: float, y: float, width: float, colour: str, line: float, style: str
) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (x, y - 0.33), width, 0.66, facecolor=_PAPER, edgecolor=colour, linewidth=line,
            linestyle=style,
        )
    )  # fmt: skip


def _write(
    axes: Any,
    x: float,
    y: float,
    text: str,
    colour: str,
    *,
    size: float = 8,
    weight: str = "normal",
) -> None:
    axes.text(
        x, y, text, color=colour, fontsize=size, fontweight=weight, va="center", ha="left",
        family="monospace", parse_math=False,
    )  # fmt: skip
