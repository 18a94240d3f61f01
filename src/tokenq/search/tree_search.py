"""Monte-Carlo tree search over tokens: PUCT with the policy as prior and any value at the leaves.

The rule is AlphaZero's (arXiv 1712.01815), values are scaled in each tree as in MuZero (arXiv
1911.08265), and the policy's own value guides it as in PPO-MCTS (arXiv 2309.15028); here that value
is the prefix value, which every preference-tuned policy carries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import Frontier, Moves, joined_moves
from tokenq.search.decoding import Decoding, DecodingOptions, at_least, whole
from tokenq.search.results import SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.sampling import drawn_tokens
from tokenq.search.scores import Score
from tokenq.search.steps import (
    Continuations,
    continuations,
    finish_greedily,
    start_of,
    traced,
    walk,
    whole_response,
)
from tokenq.search.target import Given, Prompt, Target
from tokenq.search.trace import Trace
from tokenq.search.values import ScoredPrefix, Valuation, Value, needs_reference

Backup = Literal["mean", "max", "soft"]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class MctsOptions:
    """What decides a tree search; see :func:`mcts`."""

    simulations: int = 64
    score: Score | None = field(default_factory=lambda: Score(1.0))
    value: Value | None = None
    c_puct: float = 1.25
    top_k: int = 16
    prior_temperature: float = 1.0
    leaves: int = 8
    backup: Backup = "mean"
    backup_temperature: float = 1.0
    value_ahead: bool = False
    value_scale: float | None = None
    rollouts: int = 0
    rollout_tokens: int | None = None
    emit: Literal["token", "response"] = "token"
    temperature: float = 0.0
    num_return_sequences: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("simulations", "top_k", "leaves", "num_return_sequences"):
            whole(name, getattr(self, name), 1)
        for name in ("rollouts", "seed"):
            whole(name, getattr(self, name), 0)
        for name in ("c_puct", "temperature"):
            at_least(name, getattr(self, name), 0)
        for name in ("prior_temperature", "backup_temperature", "value_scale"):
            given = getattr(self, name)
            if given is not None and not 0 < given < np.inf:
                raise UserError(f"{name} is {given}; accepted: above 0")
        if self.rollout_tokens is not None:
            whole("rollout_tokens", self.rollout_tokens, 1)
        if self.backup not in ("mean", "max", "soft"):
            raise UserError(f"backup is {self.backup!r}; accepted: mean, max, soft")
        if self.emit not in ("token", "response"):
            raise UserError(f"emit is {self.emit!r}; accepted: token, response")
        if self.emit == "token" and self.num_return_sequences > 1:
            raise UserError(
                f"num_return_sequences is {self.num_return_sequences}; accepted: 1 with "
                "emit='token' (emit='response' returns several)"
            )
        if self.score is None and self.value is None:
            raise UserError("score is None; accepted: a score, or a value beside it")

    @property
    def knows_ahead(self) -> bool:
        """Whether continuations have a worth of their own before they are visited."""
        return self.value_ahead or (self.value is None and not self.rollouts)

    @property
    def needs_reference(self) -> bool:
        """Whether the reference must be read along."""
        scored = self.score is not None and self.score.needs_reference
        return scored or needs_reference(self.value)


def mcts(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    simulations: int = 64,
    max_new_tokens: int = 64,
    score: Score | str | float | None = "log_ratio",
    *,
    value: Value | None = None,
    c_puct: float = 1.25,
    top_k: int = 16,
    prior_temperature: float = 1.0,
    leaves: int = 8,
    backup: Backup = "mean",
    backup_temperature: float = 1.0,
    value_ahead: bool = False,
    value_scale: float | None = None,
    rollouts: int = 0,
    rollout_tokens: int | None = None,
    emit: Literal["token", "response"] = "token",
    temperature: float = 0.0,
    num_return_sequences: int = 1,
    seed: int = 0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Search a tree of tokens behind each prompt; return the response that it settles on.

    pair_or_model:      a pair; a bare model, for prompts that are lists of token ids; or
                        {"policy": model, "reference": model}
    prompts:            texts, lists of messages, or lists of token ids
    simulations:        visits of a state before a token is chosen there, those that it had before
                        included; with emit="response" visits of the prompt, once for all
    score:              what the tokens of a response count: "log_ratio" (needs a reference; a
                        prefix's score is then its prefix value), "likelihood", a number between,
                        or None: nothing, the value alone
    value:              added to the score of a prefix, see :mod:`tokenq.search.values`; it takes
                        prefixes (`prompt_ids`, `response_ids`, `text`) and gives one number each
    c_puct:             how much the prior and rare visits count against values, which lie in 0..1
    top_k:              only so many of the likeliest tokens behind a prefix are searched
    prior_temperature:  the prior is the policy's law to the power 1 / temperature
    leaves:             most new prefixes of a tree that the models read together; more are faster,
                        and a little less directed
    backup:             what a prefix is worth by what was found behind it: the "mean" of all
                        visits, the "max" of its continuations, or their "soft" maximum, temperature
                        * log(mean of exp(worth / temperature)) under the prior
    backup_temperature: of backup="soft": with the reference as prior and the reward's beta here it
                        is V* of eq. 6 once everything is visited
    value_ahead:        ask the value for all continuations of a prefix when this one is read, not
                        for each when it is visited: `top_k` times as many questions, and the search
                        goes straight to where a good value points
    value_scale:        difference between values that counts as 1; None: between the least and the
                        greatest that the tree has seen
    rollouts:           samples of the policy from every new prefix, whose mean worth is taken in
                        place of the prefix's own
    rollout_tokens:     most tokens of a rollout; None: to the end of the response
    emit:               "token": choose token by token by visits, keeping what was searched behind
                        the chosen one; "response": return the best whole responses met
    temperature:        0: the most visited token; else one is drawn by visits ** (1 / temperature)
    num_return_sequences: with emit="response", how many of the responses met are returned
    seed:               decides rollouts and draws; a prompt's result does not depend on the others
    decoding:           see :class:`Decoding`

    A result's `score` is score plus value of the whole response. Its details: "value", what the
    tree found the prompt to be worth when the first token was chosen; "visits" that the response
    itself had; "simulations" spent on the prompt. Statistics of the results: "expansions",
    "model_seconds", "value_seconds", "value_calls", "simulations", "seconds". Raises UserError for
    options out of range and prompts that the models cannot read.
    """
    options = MctsOptions(
        simulations,
        None if score is None else Score.of(score),
        value,
        c_puct,
        top_k,
        prior_temperature,
        leaves,
        backup,
        backup_temperature,
        value_ahead,
        value_scale,
        rollouts,
        rollout_tokens,
        emit,
        temperature,
        num_return_sequences,
        seed,
    )
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model, with_reference=options.needs_reference)
    return run(target, prompts, settings, lambda batch: _search(batch, options))


class _State:
    """A prefix in the tree. K continuations; none where it is whole, or all are forbidden.

    node:    where it stands among the branches; -1 if whole
    own:     what it is worth by itself: score and value, or its rollouts
    behind:  moves and prefixes of the continuations
    prior:   [K] sums to 1
    guess:   [K] what a continuation is taken to be worth before it is visited: its own score and
             value where these are known, or else as much as this one
    visits, waiting, worth: [K] visits, those of them not yet counted, and what they found
    states:  [K] the continuations that were visited
    found:   the response, if whole
    """

    def __init__(self, node: int, prefix: ScoredPrefix, own: float, trace: int) -> None:
        self.node, self.prefix, self.own, self.trace = node, prefix, own, trace
        self.found: Found | None = None
        self.states: list[_State | None] = []
        self.visits = self.waiting = self.worth = self.prior = self.guess = np.empty(0)

    def open(self, behind: Continuations, options: MctsOptions, worth_of: Valuation) -> None:
        """Take up what may follow."""
        count = len(behind)
        self.behind = behind
        self.states = [None] * count
        self.visits, self.waiting, self.worth = np.zeros((3, count))
        self.prior = (behind.allowed.double() / options.prior_temperature).softmax(-1).numpy()
        self.guess = np.full(count, self.own)
        if options.knows_ahead:
            self.guess = np.array(worth_of(behind.prefixes))

    @property
    def leads_on(self) -> bool:
        """Whether it is whole or has continuations."""
        return self.found is not None or len(self.states) > 0

    @property
    def value(self) -> float:
        """What it is worth by the mean of all visits behind it."""
        visits = self.visits.sum()
        return float((self.worth * self.visits).sum() / visits) if visits else self.own

    def backed_up(self, options: MctsOptions) -> float:
        """What it is worth by its continuations, see `backup`."""
        if options.backup == "mean":
            return self.value
        seen = self.visits > 0
        if not seen.any():
            return self.own
        if options.backup == "max":
            return float(self.worth[seen].max())
        shares = np.append(self.prior[seen], max(0.0, 1.0 - float(self.prior[seen].sum())))
        worth = np.append(self.worth[seen], self.own)
        top = worth.max()
        scale = options.backup_temperature
        return float(top + scale * np.log((shares * np.exp((worth - top) / scale)).sum()))


@dataclass(eq=False)
class _Leaf:
    """A continuation at the end of a way down the tree.

    way: the states from the root down, and which continuation of each was taken
    """

    way: list[tuple[_State, int]]

    @property
    def prefix(self) -> ScoredPrefix:
        """The prefix that it makes."""
        state, place = self.way[-1]
        return state.behind.prefixes[place]

    @property
    def move(self) -> Moves:
        """Its last step."""
        state, place = self.way[-1]
        return state.behind.moves.at(slice(place, place + 1))

    def wait(self, visits: int) -> None:
        """Count visits on the way as waited for, or no longer so (-1)."""
        for state, place in self.way:
            state.waiting[place] += visits


@dataclass(eq=False)
class _Tree:
    """The search behind one prompt.

    low, high:    of what prefixes were worth
    prompt_value: of the prompt when it was first chosen from
    met:          whole responses by their tokens
    result:       what is returned
    """

    prompt: int
    root: _State
    chances: np.random.Generator
    trace: Trace | None
    low: float = np.inf
    high: float = -np.inf
    simulations: int = 0
    prompt_value: float | None = None
    met: dict[tuple[int, ...], Found] = field(default_factory=dict)
    result: list[Found] = field(default_factory=list)
    done: bool = False

    def see(self, *worths: float) -> None:
        """Widen the range of what was met."""
        self.low, self.high = min(self.low, *worths), max(self.high, *worths)

    def scaled(self, worth: Numbers, options: MctsOptions) -> Numbers:
        """Worths, 0 for the least that was met and 1 for the greatest."""
        span = self.high - self.low if options.value_scale is None else options.value_scale
        if not 0 < span < np.inf:
            return np.zeros_like(worth)
        return np.maximum((worth - self.low) / span, 0.0)

    def count(self, leaf: _Leaf, worth: float, options: MctsOptions) -> None:
        """Count a visit to the end of a way and tell every state on it what was found there."""
        self.simulations += 1
        self.see(worth)
        for state, place in reversed(leaf.way):
            state.visits[place] += 1
            if options.backup == "mean":
                state.worth[place] += (worth - state.worth[place]) / state.visits[place]
            else:
                state.worth[place] = worth
                worth = state.backed_up(options)
            following = state.states[place]
            if self.trace is not None and following is not None:
                node = self.trace.nodes[following.trace]
                node.visits, node.value = int(state.visits[place]), float(state.worth[place])

    def meet(self, found: Found) -> None:
        """Remember a whole response; the trace knows those of the tree, not those of rollouts."""
        known = self.met.get(tuple(found.path.token_ids))
        if known is None or known.trace_node < 0:
            self.met[tuple(found.path.token_ids)] = found

    def told(self, found: Found, visits: float) -> Found:
        """A response with what the search says of it."""
        assert self.prompt_value is not None
        details = {"visits": visits, "value": self.prompt_value, "simulations": self.simulations}
        return replace(found, details={name: float(each) for name, each in details.items()})


def _search(batch: Batch, options: MctsOptions) -> list[list[Found]]:
    worth_of = Valuation(options.value)
    trees = _planted(batch, worth_of, options)
    while growing := [tree for tree in trees if not tree.done]:
        _visit(
            batch,
            [(tree, leaf) for tree in growing for leaf in _descents(tree, options)],
            worth_of,
            options,
        )
        chosen = [_choose(batch, tree, options) for tree in growing]
        if any(chosen) or options.rollouts:
            _forget(batch, trees)
    if options.emit == "response":
        _return_met(batch, trees, worth_of, options)
    batch.counts["simulations"] = sum(tree.simulations for tree in trees)
    batch.counts["value_calls"] = worth_of.calls
    batch.counts["value_seconds"] = worth_of.seconds
    return [tree.result for tree in trees]


def _planted(batch: Batch, worth_of: Valuation, options: MctsOptions) -> list[_Tree]:
    """A tree behind every prompt, its root read."""
    frontier = batch.branches.open()
    starts = [start_of(batch, prompt) for prompt in range(len(batch.prompts))]
    behind = continuations(batch, frontier, starts, options.score, options.top_k)
    worths, generators = worth_of(starts), batch.generators(options.seed)
    trees = []
    for prompt, (node, start) in enumerate(zip(frontier.nodes.tolist(), starts, strict=True)):
        root = _State(node, start, worths[prompt], -1)
        root.open(behind[prompt], options, worth_of)
        trace = None if batch.traces is None else batch.traces[prompt]
        tree = _Tree(prompt, root, generators[prompt], trace)
        if options.knows_ahead and root.leads_on:
            tree.see(*root.guess)
        tree.done = not root.leads_on
        trees.append(tree)
    return trees


def _descents(tree: _Tree, options: MctsOptions) -> list[_Leaf]:
    """Go down the tree until there are enough new continuations; others are counted at once."""
    found: list[_Leaf] = []
    for _ in range(min(options.leaves, options.simulations - int(tree.root.visits.sum()))):
        leaf = _descend(tree, options)
        if leaf is None:
            break
        last, place = leaf.way[-1]
        known = last.states[place]
        if known is None:
            leaf.wait(1)
            found.append(leaf)
        else:
            tree.count(leaf, known.own, options)
    return found


def _descend(tree: _Tree, options: MctsOptions) -> _Leaf | None:
    """The way to the next continuation to visit; None where that one is waited for already."""
    state = tree.root
    way: list[tuple[_State, int]] = []
    while len(state.states):
        place = _favourite(tree, state, options)
        way.append((state, place))
        following = state.states[place]
        if following is None:
            return None if state.waiting[place] else _Leaf(way)
        state = following
    return _Leaf(way)


def _favourite(tree: _Tree, state: _State, options: MctsOptions) -> int:
    """The continuation of greatest worth plus bonus; visits that are waited for count as worst."""
    tried = state.visits + state.waiting
    worth = tree.scaled(np.where(state.visits > 0, state.worth, state.guess), options)
    counted = np.maximum(state.visits, 1)
    bonus = options.c_puct * state.prior * np.sqrt(max(1.0, tried.sum())) / (1 + tried)
    return int(np.argmax(worth * counted / (counted + state.waiting) + bonus))


def _visit(
    batch: Batch, new: list[tuple[_Tree, _Leaf]], worth_of: Valuation, options: MctsOptions
) -> None:
    """Read and value new continuations of all trees together, then count the visits."""
    if not new:
        return
    prefixes = [leaf.prefix for _, leaf in new]
    nodes = batch.branches.place(joined_moves([leaf.move for _, leaf in new]))
    going = [place for place, prefix in enumerate(prefixes) if prefix.finish is None]
    behind: dict[int, Continuations] = {}
    worths: dict[int, float] = {}
    if going:
        frontier, parents = batch.branches.read(nodes[going]), [prefixes[n] for n in going]
        found = continuations(batch, frontier, parents, options.score, options.top_k)
        behind = dict(zip(going, found, strict=True))
        if options.rollouts:
            theirs = [new[place][0] for place in going]
            means = _rolled_out(batch, frontier, theirs, parents, worth_of, options)
            worths = dict(zip(going, means, strict=True))
    asked = [place for place in range(len(new)) if place not in worths]
    worths |= zip(asked, worth_of([prefixes[place] for place in asked]), strict=True)
    for place, (tree, leaf) in enumerate(new):
        above, taken = leaf.way[-1]
        number = traced(batch, tree.prompt, above.trace, leaf.move, 0, worths[place])
        state = _State(int(nodes[place]), prefixes[place], worths[place], number)
        above.states[taken] = state
        if place in behind:
            state.open(behind[place], options, worth_of)
        else:
            state.found = whole_response(batch, state.node, state.prefix, state.own, number)
            tree.meet(state.found)
            if tree.trace is not None:
                tree.trace.nodes[number].fate = "finished"
        leaf.wait(-1)
        tree.count(leaf, state.own, options)


def _rolled_out(
    batch: Batch,
    frontier: Frontier,
    trees: list[_Tree],
    parents: list[ScoredPrefix],
    worth_of: Valuation,
    options: MctsOptions,
) -> list[float]:
    """The mean worth of samples from each row of the frontier; its score where none gets on."""
    count = options.rollouts
    room = batch.rules.decoding.max_new_tokens
    steps = min(room, options.rollout_tokens or room)
    drawn = np.concatenate([tree.chances.random((count, steps)) for tree in trees])
    chances = torch.from_numpy(drawn)

    def pick(allowed: Tensor, walkers: Sequence[int], step: int) -> Tensor:
        wanted = chances[list(walkers), step].view(len(allowed), -1)
        tokens, _ = drawn_tokens(allowed, wanted.to(allowed.device))
        return tokens.flatten()

    arrivals = walk(batch, frontier, parents, options.score, pick, count, steps)
    means = []
    for row, tree in enumerate(trees):
        mine = [each for each in arrivals[row * count : (row + 1) * count] if each is not None]
        worths = worth_of([each.prefix for each in mine])
        for each, worth in zip(mine, worths, strict=True):
            if each.prefix.finish is not None:
                tree.meet(whole_response(batch, each.node, each.prefix, worth))
        means.append(float(np.mean(worths)) if mine else parents[row].score)
    return means


def _choose(batch: Batch, tree: _Tree, options: MctsOptions) -> bool:
    """Choose tokens, or end the search, where the root has its visits; say whether it had."""
    chose = False
    while not tree.done and tree.root.visits.sum() >= options.simulations:
        chose = True
        if tree.prompt_value is None:
            tree.prompt_value = tree.root.backed_up(options)
        if options.emit == "response":
            tree.done = True
        else:
            _emit(batch, tree, options)
    return chose


def _emit(batch: Batch, tree: _Tree, options: MctsOptions) -> None:
    """Go on from the chosen continuation of the root; the rest of the tree is given up."""
    old = tree.root
    place = _chosen(tree, old, options)
    if place is None:
        tree.done = True
        return
    state = old.states[place]
    assert state is not None
    if tree.trace is not None:
        for given_up in (each for each in old.states if each is not None and each is not state):
            for each in _below(given_up):
                if each.found is None:
                    tree.trace.nodes[each.trace].fate = "pruned"
    response = list(state.prefix.response_ids)
    batch.tell(tree.prompt, len(response), response, float(old.worth[place]))
    tree.root = state
    if state.found is not None:
        tree.result = [tree.told(state.found, float(old.visits[place]))]
        tree.done = True


def _chosen(tree: _Tree, state: _State, options: MctsOptions) -> int | None:
    """A continuation by its visits; of equally many the one of greatest worth. None: dead ends."""
    leads = np.array([each is not None and each.leads_on for each in state.states])
    visits = np.where(leads, state.visits, 0.0)
    if not visits.any():
        return None
    if options.temperature == 0:
        best = visits == visits.max()
        return int(np.argmax(np.where(best, state.worth, -np.inf)))
    shares = (visits / visits.max()) ** (1 / options.temperature)
    reached = np.cumsum(shares) / shares.sum()
    place = int(np.searchsorted(reached, tree.chances.random(), side="right"))
    return min(place, int(np.flatnonzero(shares)[-1]))


def _below(state: _State) -> Iterator[_State]:
    """A state and all that were visited behind it."""
    waiting = [state]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += [each for each in one.states if each is not None]


def _forget(batch: Batch, trees: list[_Tree]) -> None:
    """Let the branches go that no search can come back to."""
    needed = [tree for tree in trees if not (tree.done and (tree.result or tree.met))]
    nodes = [each.node for tree in needed for each in _below(tree.root) if each.found is None]
    if nodes:
        batch.branches.retain(torch.tensor(nodes))


def _return_met(
    batch: Batch, trees: list[_Tree], worth_of: Valuation, options: MctsOptions
) -> None:
    """Rank the whole responses that were met; where there is none, finish what was visited most."""
    _finish_greedily(batch, [tree for tree in trees if not tree.met], worth_of, options)
    for tree in trees:
        visits = {
            each.prefix.response_ids: float(above.visits[place])
            for above in _below(tree.root)
            for place, each in enumerate(above.states)
            if each is not None and each.found is not None
        }
        ranked = sorted(tree.met.items(), key=lambda each: -each[1].score)
        tree.result = [
            tree.told(found, visits.get(token_ids, 0.0))
            for token_ids, found in ranked[: options.num_return_sequences]
        ]


def _finish_greedily(
    batch: Batch, trees: list[_Tree], worth_of: Valuation, options: MctsOptions
) -> None:
    ends = []
    for tree in trees:
        state = tree.root
        while (place := _chosen(tree, state, replace(options, temperature=0.0))) is not None:
            following = state.states[place]
            assert following is not None
            state = following
        if len(state.states):
            ends.append((tree, state))
    arrivals = finish_greedily(batch, [(state.behind, 0) for _, state in ends], options.score)
    for (tree, _), arrival in zip(ends, arrivals, strict=True):
        if arrival is not None:
            (worth,) = worth_of([arrival.prefix])
            tree.meet(whole_response(batch, arrival.node, arrival.prefix, worth))
