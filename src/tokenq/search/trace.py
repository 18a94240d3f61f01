"""The tree that a search went through, as plain data that a report can draw."""

from dataclasses import asdict, dataclass, field
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

    def choose(self, number: int) -> None:
        """Mark a response as given back."""
        self.nodes[number].fate = "chosen"

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"nodes": [asdict(node) for node in self.nodes]}
