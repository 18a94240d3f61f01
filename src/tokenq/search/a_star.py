"""Best-first search: always the prefix that promises most, until a whole response promises most.

With `score so far + value` as promise (eq. 12 of "From r to Q*", arXiv 2404.12358) this is A*:
where the value never promises less than can be had, the first whole response to come first is the
best of all. Log-probabilities are at most 0, so without a value likelihood search is exact. With a
width it is the best-first beam search of Meister et al. (arXiv 2007.03909).
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Unpack

import torch

from tokenq.errors import UserError
from tokenq.models.branching.branches import joined_moves
from tokenq.search.decoding import Decoding, DecodingOptions, whole
from tokenq.search.results import SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.scores import Score
from tokenq.search.steps import (
    Continuations,
    continuations,
    finish_greedily,
    mark,
    start_of,
    traced,
    whole_response,
)
from tokenq.search.target import Given, Prompt, Target
from tokenq.search.values import ScoredPrefix, Valuation, Value, needs_reference

_ROUNDS_BETWEEN_CLEANINGS = 32


@dataclass(frozen=True)
class BestFirstOptions:
    """What decides a best-first search; see :func:`best_first`."""

    expansions: int = 256
    score: Score | None = field(default_factory=Score)
    value: Value | None = None
    top_k: int = 32
    width: int | None = None
    memory: int | None = 4096
    leaves: int = 4
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for name in ("expansions", "top_k", "leaves", "num_return_sequences"):
            whole(name, getattr(self, name), 1)
        for name in ("width", "memory"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        if self.score is None and self.value is None:
            raise UserError("score is None; accepted: a score, or a value beside it")

    @property
    def needs_reference(self) -> bool:
        """Whether the reference must be read along."""
        scored = self.score is not None and self.score.needs_reference
        return scored or needs_reference(self.value)


def best_first(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    expansions: int = 256,
    max_new_tokens: int = 64,
    score: Score | str | float | None = "likelihood",
    *,
    value: Value | None = None,
    top_k: int = 32,
    width: int | None = None,
    memory: int | None = 4096,
    leaves: int = 4,
    num_return_sequences: int = 1,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Return the first whole responses to be the most promising of all that are known, in order.

    pair_or_model: a pair; a bare model, for prompts that are lists of token ids; or
                   {"policy": model, "reference": model}
    prompts:       texts, lists of messages, or lists of token ids
    expansions:    prefixes that the models read for a prompt at most. When they are used up, the
                   best whole responses known are returned, or the most promising prefix is
                   finished by the likeliest tokens
    score:         what the tokens so far count: "likelihood", "log_ratio" (needs a reference), a
                   number between, or None: nothing, the value alone
    value:         what is promised beyond the score, see :mod:`tokenq.search.values`; None:
                   nothing. It takes prefixes (`prompt_ids`, `response_ids`, `text`), all
                   continuations of a prefix at once, and gives one number each
    top_k:         only so many of the likeliest tokens behind a prefix are searched
    width:         only so many prefixes of each length are read, as in a beam; None: any number
    memory:        most prefixes of a prompt that wait to be read, the least promising ones are
                   dropped; None: no limit
    leaves:        prefixes of a prompt that are read together; more are faster, some in vain
    num_return_sequences: how many responses
    decoding:      see :class:`Decoding`

    A result's `score` is score plus value of the whole response. Its details: "proved" is 1 where
    it came first with nothing dropped by width or memory before, so that among the `top_k` tokens
    of every prefix none is better, if the value never promises too little; "expansions" of its
    prompt until then. Raises UserError for options out of range and prompts that the models cannot
    read.
    """
    options = BestFirstOptions(
        expansions,
        None if score is None else Score.of(score),
        value,
        top_k,
        width,
        memory,
        leaves,
        num_return_sequences,
    )
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model, with_reference=options.needs_reference)
    return run(target, prompts, settings, lambda batch: _search(batch, options))


@dataclass(frozen=True, order=True)
class _Entry:
    """A prefix that waits. Entries order by promise; of equal ones the longer, then the older.

    trace: of the prefix that it continues
    """

    below: float
    shorter: int
    number: int
    promise: float = field(compare=False)
    behind: Continuations = field(compare=False)
    place: int = field(compare=False)
    trace: int = field(compare=False)

    @property
    def prefix(self) -> ScoredPrefix:
        """The prefix."""
        return self.behind.prefixes[self.place]


@dataclass(eq=False)
class _Queue:
    """The search behind one prompt.

    read_at: how many prefixes of each length were read
    dropped: whether width or memory cost a prefix, after which nothing is proved
    """

    prompt: int
    waiting: list[_Entry] = field(default_factory=list)
    read_at: Counter[int] = field(default_factory=Counter)
    entries: int = 0
    expansions: int = 1
    dropped: bool = False
    done: bool = False
    found: list[Found] = field(default_factory=list)

    def push(self, behind: Continuations, promises: list[float], trace: int) -> None:
        """Let the continuations of a prefix wait."""
        for place, promise in enumerate(promises):
            length = len(behind.prefixes[place].response_ids)
            entry = _Entry(-promise, -length, self.entries, promise, behind, place, trace)
            heapq.heappush(self.waiting, entry)
            self.entries += 1

    def shorten(self, memory: int | None) -> None:
        """Drop the least promising prefixes beyond `memory`."""
        if memory is not None and len(self.waiting) > memory:
            self.waiting = heapq.nsmallest(memory, self.waiting)
            self.dropped = True


def _search(batch: Batch, options: BestFirstOptions) -> list[list[Found]]:
    worth_of = Valuation(options.value)
    frontier = batch.branches.open()
    queues = [_Queue(prompt) for prompt in range(len(batch.prompts))]
    starts = [start_of(batch, queue.prompt) for queue in queues]
    behind = continuations(batch, frontier, starts, options.score, options.top_k)
    _wait(queues, behind, [-1] * len(queues), worth_of, options)
    rounds = 0
    while open_queues := [queue for queue in queues if not queue.done]:
        taken = [(queue, entry) for queue in open_queues for entry in _take(batch, queue, options)]
        _read(batch, taken, worth_of, options)
        rounds += 1
        if rounds % _ROUNDS_BETWEEN_CLEANINGS == 0:
            _forget(batch, queues, options)
    _finish(batch, queues, worth_of, options)
    batch.counts["value_calls"] = worth_of.calls
    batch.counts["value_seconds"] = worth_of.seconds
    return [queue.found for queue in queues]


def _take(batch: Batch, queue: _Queue, options: BestFirstOptions) -> list[_Entry]:
    """The prefixes to read next; whole responses that come first are found on the way."""
    taken: list[_Entry] = []
    room = min(options.leaves, options.expansions - queue.expansions)
    while queue.waiting:
        entry = queue.waiting[0]
        if entry.prefix.finish is not None:
            # What is read now may lead to better ones.
            if taken:
                break
            heapq.heappop(queue.waiting)
            _found(batch, queue, entry, not queue.dropped)
            if len(queue.found) == options.num_return_sequences:
                queue.done = True
                return []
            continue
        if len(taken) == room:
            break
        heapq.heappop(queue.waiting)
        length = len(entry.prefix.response_ids)
        if options.width is not None and queue.read_at[length] >= options.width:
            queue.dropped = True
            continue
        queue.read_at[length] += 1
        taken.append(entry)
    queue.expansions += len(taken)
    if taken:
        best = taken[0]
        response = list(best.prefix.response_ids)
        batch.tell(queue.prompt, queue.expansions, response, best.promise)
    else:
        queue.done = True
    return taken


def _read(
    batch: Batch,
    taken: list[tuple[_Queue, _Entry]],
    worth_of: Valuation,
    options: BestFirstOptions,
) -> None:
    """Read the prefixes of all prompts together and let their continuations wait."""
    if not taken:
        return
    moves = [entry.behind.moves.at(slice(entry.place, entry.place + 1)) for _, entry in taken]
    frontier = batch.branches.extend(joined_moves(moves))
    prefixes = [entry.prefix for _, entry in taken]
    behind = continuations(batch, frontier, prefixes, options.score, options.top_k)
    traces = [
        traced(batch, queue.prompt, entry.trace, move, 0, entry.promise)
        for (queue, entry), move in zip(taken, moves, strict=True)
    ]
    _wait([queue for queue, _ in taken], behind, traces, worth_of, options)


def _wait(
    queues: list[_Queue],
    behind: list[Continuations],
    traces: list[int],
    worth_of: Valuation,
    options: BestFirstOptions,
) -> None:
    promises = iter(worth_of([prefix for each in behind for prefix in each.prefixes]))
    for queue, each, trace in zip(queues, behind, traces, strict=True):
        queue.push(each, [next(promises) for _ in each.prefixes], trace)
        queue.shorten(options.memory)


def _found(batch: Batch, queue: _Queue, entry: _Entry, proved: bool) -> None:
    move = entry.behind.moves.at(slice(entry.place, entry.place + 1))
    number = traced(batch, queue.prompt, entry.trace, move, 0, entry.promise)
    mark(batch, queue.prompt, number, "finished")
    node = int(batch.branches.place(move))
    found = whole_response(batch, node, entry.prefix, entry.promise, number)
    queue.found.append(_told(found, queue, proved))


def _told(found: Found, queue: _Queue, proved: bool) -> Found:
    details = {"proved": float(proved), "expansions": float(queue.expansions)}
    return replace(found, details=details)


def _finish(
    batch: Batch, queues: list[_Queue], worth_of: Valuation, options: BestFirstOptions
) -> None:
    """Take what whole responses wait where the expansions were used up, or else finish a prefix."""
    lacking = []
    for queue in queues:
        missing = options.num_return_sequences - len(queue.found)
        known = sorted(entry for entry in queue.waiting if entry.prefix.finish is not None)
        for entry in known[:missing]:
            _found(batch, queue, entry, False)
        if not queue.found and queue.waiting:
            lacking.append((queue, queue.waiting[0]))
    ends = [(entry.behind, entry.place) for _, entry in lacking]
    arrivals = finish_greedily(batch, ends, options.score)
    for (queue, _), arrival in zip(lacking, arrivals, strict=True):
        if arrival is not None:
            (worth,) = worth_of([arrival.prefix])
            found = whole_response(batch, arrival.node, arrival.prefix, worth)
            queue.found.append(_told(found, queue, False))


def _forget(batch: Batch, queues: list[_Queue], options: BestFirstOptions) -> None:
    """Let the branches go behind which nothing waits."""
    nodes = {
        int(entry.behind.moves.parents[entry.place])
        for queue in queues
        if len(queue.found) < options.num_return_sequences
        for entry in queue.waiting
    }
    if nodes:
        batch.branches.retain(torch.tensor(sorted(nodes)))
