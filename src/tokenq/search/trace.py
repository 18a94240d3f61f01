"""The tree that a search went through, as plain data that a report can draw."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Fate = Literal["open", "pruned", "finished", "chosen"]


@dataclass
class TraceNode:
    """One token that a search looked at.

    number: its place in :attr:`Trace.nodes`
    parent: number of the node before; -1 behind the prompt
    token:  its id; `text`: how it reads, filled in at the end where there is a tokenizer
    score:  the search's score of the response up to here
    logp:   log-probability of the token under what is searched, nats; ref_logp: reference or None
    fate:   "open" (went on), "pruned", "finished" (a whole response), "chosen" (given back)
    rank:   place among the responses that were given back, from 1; 0 for all else
    visits: of a tree search, 0 elsewhere
    value:  of the prefix, where the search has one
    """

    number: int
    parent: int
    token: int
    score: float
    logp: float
    ref_logp: float | None = None
    fate: Fate = "open"
    text: str | None = None
    visits: int = 0
    value: float | None = None
    rank: int = 0


@dataclass
class Trace:
    """All nodes of one prompt's search, parents before children."""

    nodes: list[TraceNode] = field(default_factory=list)

    def add(
        self,
        parent: int,
        token: int,
        score: float,
        logp: float,
        ref_logp: float | None = None,
        fate: Fate = "open",
    ) -> int:
        """Add a node and return its number."""
        number = len(self.nodes)
        self.nodes.append(TraceNode(number, parent, token, score, logp, ref_logp, fate))
        return number

    def path(self, number: int) -> list[TraceNode]:
        """The nodes from the prompt to this one."""
        steps: list[TraceNode] = []
        while number >= 0:
            steps.append(self.nodes[number])
            number = steps[-1].parent
        return steps[::-1]

    def choose(self, number: int, rank: int = 0) -> None:
        """Mark a response as given back, as the first (1), the second, ..."""
        self.nodes[number].fate = "chosen"
        self.nodes[number].rank = self.nodes[number].rank or rank

    def rank(self, responses: Sequence[Sequence[int]]) -> None:
        """Mark these responses, best first, as all that is given back of the whole ones."""
        places = {tuple(tokens): place for place, tokens in reversed([*enumerate(responses, 1)])}
        for node in [each for each in self.nodes if each.fate == "chosen"]:
            place = places.get(tuple(step.token for step in self.path(node.number)), 0)
            node.fate, node.rank = "chosen" if place else "finished", place

    def draw(self, path: str | Path, *, title: str = "", max_leaves: int = 40) -> None:
        """Draw the tree as a picture (.png, .svg or .pdf); see :func:`draw_tree` of the report.

        max_leaves: at most so many ends of branches, the best of them
        """
        from tokenq.report.search_tree import draw_tree

        draw_tree(self.to_dict()["nodes"], Path(path), title=title, max_leaves=max_leaves)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"nodes": [asdict(node) for node in self.nodes]}
