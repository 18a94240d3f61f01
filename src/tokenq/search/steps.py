"""Steps of one token as plain numbers: what tree searches keep of each, and walks to an end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenq.models.branching.branches import Frontier, Moves, joined_moves
from tokenq.search.running import Batch, Found
from tokenq.search.trace import Fate
from tokenq.search.values import ScoredPrefix

Gain = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""What steps add to a score, such as a :class:`~tokenq.search.scores.Score`: takes [N] under what
is searched and model -> [N], log-probabilities; returns [N]."""

Pick = Callable[[Tensor, Sequence[int], int], Tensor]
"""Takes log-probabilities [R, V] of what may follow, the numbers of the N walkers and the step;
N = R * m, m walkers behind each row. Returns tokens [N]."""


@dataclass(frozen=True, eq=False)
class Continuations:
    """The likeliest tokens behind one prefix, K of them, the likeliest first.

    moves:    [K] on the CPU
    allowed:  [K] log-probabilities of the tokens under what is searched, processors applied
    prefixes: what the prefix becomes
    """

    moves: Moves
    allowed: Tensor
    prefixes: list[ScoredPrefix]

    def __len__(self) -> int:
        return len(self.prefixes)


@dataclass(frozen=True, eq=False)
class Arrival:
    """Where a walker came to: a placed node and the prefix that it ends."""

    node: int
    prefix: ScoredPrefix


def start_of(batch: Batch, prompt: int) -> ScoredPrefix:
    """The empty response to a prompt of the batch."""
    models = dict.fromkeys(batch.branches.models, 0.0)
    return ScoredPrefix(tuple(batch.prompts[prompt]), (), logps=models, rules=batch.rules)


def continuations(
    batch: Batch,
    frontier: Frontier,
    parents: Sequence[ScoredPrefix],
    score: Gain | None,
    top_k: int,
) -> list[Continuations]:
    """The `top_k` likeliest tokens behind each row of the frontier; fewer where more is forbidden.

    parents: the prefix of each row
    score:   what each step adds to a prefix's score; None: nothing
    """
    allowed = batch.rules.allowed(batch.branches, frontier.nodes, frontier.searched)
    best = allowed.topk(min(top_k, allowed.shape[1]), dim=-1)
    width = best.values.shape[1]
    rows = torch.arange(len(frontier)).repeat_interleave(width)
    moves = _on_cpu(frontier.moves(rows, best.indices.flatten()))
    values = best.values.cpu()
    counts = (values > -torch.inf).sum(-1).tolist()
    kept = [row * width + place for row, count in enumerate(counts) for place in range(count)]
    moves, flat = moves.at(torch.tensor(kept, dtype=torch.long)), values.flatten()[kept]
    spread = [parent for parent, count in zip(parents, counts, strict=True) for _ in range(count)]
    prefixes = _extended(batch, spread, moves, flat, score)
    found, start = [], 0
    for count in counts:
        part = slice(start, start + count)
        found.append(Continuations(moves.at(part), flat[part], prefixes[part]))
        start += count
    return found


def walk(
    batch: Batch,
    frontier: Frontier,
    parents: Sequence[ScoredPrefix],
    score: Gain | None,
    pick: Pick,
    count: int = 1,
    steps: int | None = None,
) -> list[Arrival | None]:
    """Send `count` walkers from each row of the frontier, a token at a time, each by itself.

    parents: the prefix of each row
    pick:    chooses the tokens; walker n starts behind row n // count
    steps:   most tokens of a walk; None: to the end of the response

    Returns where each came to; None for one that stands where every token is forbidden. The nodes
    on the way stay until somebody retains others.
    """
    reached: list[Arrival | None] = [None] * (len(frontier) * count)
    prefixes = [parent for parent in parents for _ in range(count)]
    going = list(range(len(reached)))
    step = 0
    while going and (steps is None or step < steps):
        allowed = batch.rules.allowed(batch.branches, frontier.nodes, frontier.searched)
        share = len(going) // len(frontier)
        dead = allowed.amax(-1, keepdim=True) == -torch.inf
        tokens = pick(allowed.masked_fill(dead, 0.0), going, step).cpu()
        rows = torch.arange(len(going)) // share
        at = rows.to(allowed.device), tokens.to(allowed.device)
        moves, chosen = _on_cpu(frontier.moves(rows, tokens)), allowed[at].cpu()
        possible = (chosen > -torch.inf).nonzero().squeeze(-1)
        for place in (chosen == -torch.inf).nonzero().squeeze(-1).tolist():
            reached[going[place]] = None
        going = [going[place] for place in possible.tolist()]
        if not going:
            break
        moves, chosen = moves.at(possible), chosen[possible]
        nodes = batch.branches.place(moves)
        here = _extended(batch, [prefixes[number] for number in going], moves, chosen, score)
        for number, node, prefix in zip(going, nodes.tolist(), here, strict=True):
            prefixes[number], reached[number] = prefix, Arrival(node, prefix)
        step += 1
        on = [place for place, prefix in enumerate(here) if prefix.finish is None]
        going = [going[place] for place in on]
        if going and (steps is None or step < steps):
            frontier = batch.branches.read(nodes[on])
    return reached


def finish_greedily(
    batch: Batch, ends: Sequence[tuple[Continuations, int]], score: Gain | None
) -> list[Arrival | None]:
    """Go on from each of some continuations, by their place, by the likeliest tokens to the end.

    Returns the whole responses; None where every token is forbidden before one ends.
    """
    if not ends:
        return []
    nodes = batch.branches.place(
        joined_moves([behind.moves.at(slice(place, place + 1)) for behind, place in ends])
    )
    prefixes = [behind.prefixes[place] for behind, place in ends]
    reached: list[Arrival | None] = [
        Arrival(node, prefix) for node, prefix in zip(nodes.tolist(), prefixes, strict=True)
    ]
    going = [number for number, prefix in enumerate(prefixes) if prefix.finish is None]
    if going:
        frontier = batch.branches.read(nodes[going])
        parents = [prefixes[number] for number in going]
        for number, arrival in zip(
            going, walk(batch, frontier, parents, score, likeliest), strict=True
        ):
            reached[number] = arrival
    return reached


def whole_response(
    batch: Batch, node: int, prefix: ScoredPrefix, worth: float, trace: int = -1
) -> Found:
    """A response that has ended, at a placed node."""
    assert prefix.finish is not None
    return Found(batch.branches.path(node), worth, prefix.finish, {}, trace)


def likeliest(allowed: Tensor, walkers: Sequence[int], step: int) -> Tensor:
    """The :data:`Pick` of greedy decoding, one walker a row."""
    return allowed.argmax(-1)


def traced(batch: Batch, prompt: int, parent: int, move: Moves, place: int, score: float) -> int:
    """Put one of the moves into the prompt's trace; return its number, -1 without a trace."""
    if batch.traces is None:
        return -1
    theirs = move.logps.get("reference")
    return batch.traces[prompt].add(
        parent,
        int(move.tokens[place]),
        score,
        float(move.searched[place]),
        None if theirs is None else float(theirs[place]),
    )


def mark(batch: Batch, prompt: int, number: int, fate: Fate) -> None:
    """Say what became of a trace node."""
    if batch.traces is not None and number >= 0:
        batch.traces[prompt].nodes[number].fate = fate


def _extended(
    batch: Batch,
    parents: Sequence[ScoredPrefix],
    moves: Moves,
    allowed: Tensor,
    score: Gain | None,
) -> list[ScoredPrefix]:
    gains = [0.0] * len(moves) if score is None else score(allowed, moves.logps).tolist()
    logps = {name: each.tolist() for name, each in moves.logps.items()}
    searched = moves.searched.tolist()
    extended = []
    for place, (parent, token) in enumerate(zip(parents, moves.tokens.tolist(), strict=True)):
        response = (*parent.response_ids, token)
        extended.append(
            ScoredPrefix(
                parent.prompt_ids,
                response,
                parent.score + gains[place],
                parent.searched + searched[place],
                {name: parent.logps[name] + logps[name][place] for name in logps},
                batch.rules.finish(response),
                batch.rules,
            )
        )
    return extended


def _on_cpu(moves: Moves) -> Moves:
    return Moves(
        moves.parents,
        moves.tokens,
        {name: each.cpu() for name, each in moves.logps.items()},
        moves.searched.cpu(),
    )
