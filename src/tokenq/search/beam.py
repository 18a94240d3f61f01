"""Beam search over the score of a response, with the definitions of `transformers`.

By eqs. 12-13 of "From r to Q*" (arXiv 2404.12358), searching for the most likely response of the
optimal policy is searching for the greatest reward plus optimal value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Unpack

import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import Frontier, Moves, joined_moves
from tokenq.search.decoding import Decoding, DecodingOptions, Finish, is_number, whole
from tokenq.search.results import SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.scores import Score
from tokenq.search.target import Given, Prompt, Target

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamOptions:
    """What decides a beam search; see :func:`beam_search`."""

    num_beams: int = 5
    score: Score = field(default_factory=Score)
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int | None = None
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        whole("num_beams", self.num_beams, 1)
        wanted = self.num_return_sequences
        if wanted is not None and wanted not in range(1, self.num_beams + 1):
            raise UserError(
                f"num_return_sequences is {wanted}; accepted: 1 to {self.num_beams}, the number of "
                "beams"
            )
        if not is_number(self.length_penalty):
            raise UserError(f"length_penalty is {self.length_penalty!r}; accepted: a finite number")
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            raise UserError(
                f"early_stopping is {self.early_stopping!r}; accepted: True, False, 'never'"
            )
        if not (is_number(self.plausibility) and 0 <= self.plausibility <= 1):
            raise UserError(f"plausibility is {self.plausibility!r}; accepted: 0 to 1")

    def normalised(self, score: float, length: int) -> float:
        """The score of a response of `length` tokens that ranks it: sum / length ** penalty."""
        return score / length**self.length_penalty


def beam_search(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    num_beams: int = 5,
    max_new_tokens: int = 64,
    score: Score | str | float = "likelihood",
    *,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    num_return_sequences: int | None = None,
    plausibility: float = 0.0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Return the best responses to each prompt that a beam of `num_beams` finds, best first.

    pair_or_model:        a pair; a bare model, for prompts that are lists of token ids; or
                          {"policy": model, "reference": model}
    prompts:              texts, lists of messages, or lists of token ids
    score:                "likelihood", "log_ratio" (needs a reference), or a number between: how
                          much of the reference's log-probability is taken off
    length_penalty:       a response of n tokens is ranked by its score / n ** length_penalty; above
                          0 favours long ones where scores are negative. As in transformers; a
                          log-ratio can be positive, and then the same number favours short ones
    early_stopping:       True: stop when there are `num_beams` whole responses. False: when the
                          best open beam, at its present length, is worse than all of them. "never":
                          when it cannot become better by growing; as log-ratios can grow, a search
                          by them then ends at `max_new_tokens`
    num_return_sequences: how many of the `num_beams` responses are returned; all if None
    plausibility:         only tokens of at least so many times the probability of the likeliest
                          one; keeps log-ratio search off tokens that both models find absurd
    decoding:             see :class:`Decoding`

    Sequences and scores are those of `transformers`' `generate(num_beams=...)` for a likelihood
    score. Raises UserError for options out of range and prompts that the models cannot read.
    """
    options = BeamOptions(
        num_beams,
        Score.of(score),
        length_penalty,
        early_stopping,
        num_return_sequences,
        plausibility,
    )
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model, with_reference=options.score.needs_reference)
    check_width(target, num_beams, max_new_tokens)
    return run(target, prompts, settings, lambda batch: _search(batch, options))


def _search(batch: Batch, options: BeamOptions) -> list[list[Found]]:
    limit = options.num_return_sequences or options.num_beams
    return [[found for _, found in whole[:limit]] for (whole,) in search_groups(batch, options)]


Ranked = list[tuple[float, Found]]
"""Whole responses with the scores that rank them, best first."""


def search_groups(
    batch: Batch, options: BeamOptions, groups: int = 1, diversity_penalty: float = 0.0
) -> list[list[Ranked]]:
    """Search behind each prompt with some groups of `options.num_beams` beams each.

    At every step the groups of a prompt choose in turn; a token counts `diversity_penalty` less
    for every beam of an earlier group that goes on by it in this step. Returns what each group of
    each prompt found: at most `options.num_beams` responses.
    """
    branches = batch.branches
    frontier = branches.open()
    beams = [[_Beams(slice(p, p + 1)) for _ in range(groups)] for p in range(len(batch.prompts))]
    step = 0
    while True:
        step += 1
        gains = _gains(batch, frontier, options)
        chosen: list[Moves] = []
        for prompt, theirs in enumerate(beams):
            chosen += _step(
                batch, prompt, theirs, frontier, gains, step, options, diversity_penalty
            )
        if not chosen:
            return [[each.whole for each in theirs] for theirs in beams]
        nodes = branches.place(joined_moves(chosen))
        branches.retain(nodes)
        frontier = branches.read(nodes)
        _number_rows(beams)


@dataclass(eq=False)
class _Candidates:
    """Continuations of a group's beams, best first. K of them.

    moves:  the tokens
    scores: sums up to and with the token
    trace:  numbers of their trace nodes; -1 without a trace
    """

    moves: Moves
    scores: list[float]
    trace: list[int]


@dataclass(eq=False)
class _Beams:
    """The state of one group of a prompt's beams: the open ones and the best whole responses.

    rows:   of the frontier where the open beams stand
    scores: of the open beams, best first
    trace:  their trace nodes
    whole:  at most `num_beams` responses with their ranking scores, best first
    best:   score and tokens of what is best at the last step, for whoever watches
    """

    rows: slice
    scores: list[float] = field(default_factory=lambda: [0.0])
    trace: list[int] = field(default_factory=lambda: [-1])
    whole: Ranked = field(default_factory=list)
    done: bool = False
    best: tuple[float, list[int]] = (0.0, [])


def _gains(batch: Batch, frontier: Frontier, options: BeamOptions) -> Tensor:
    """[R, V] what each token behind each row of the frontier adds to the score."""
    allowed = batch.rules.allowed(batch.branches, frontier.nodes, frontier.searched)
    if options.plausibility > 0:
        allowed = plausible(allowed, options.plausibility)
    return options.score(allowed, frontier.logps)


def _step(
    batch: Batch,
    prompt: int,
    groups: list[_Beams],
    frontier: Frontier,
    gains: Tensor,
    step: int,
    options: BeamOptions,
    diversity_penalty: float,
) -> list[Moves]:
    """One token more for each open group of a prompt; returns the moves of those that go on."""
    chosen: list[Moves] = []
    taken = torch.empty(0, dtype=torch.long)
    stepping = [beams for beams in groups if not beams.done]
    for beams in stepping:
        so_far = torch.tensor(beams.scores, dtype=gains.dtype, device=gains.device)
        totals = gains[beams.rows] + so_far[:, None]
        if diversity_penalty:
            counts = torch.bincount(taken, minlength=totals.shape[1])
            totals -= diversity_penalty * counts.to(totals)
        candidates = _continuations(batch, prompt, beams, frontier, totals, options)
        going_on = _divide(batch, prompt, beams, candidates, step, options)
        taken = torch.cat([taken, going_on.tokens])
        if not beams.done:
            chosen.append(going_on)
    told = [beams.best for beams in stepping if beams.best[1]]
    if told:
        score, token_ids = max(told, key=lambda best: best[0])
        batch.tell(prompt, step, token_ids, score)
    return chosen


def _number_rows(beams: list[list[_Beams]]) -> None:
    """Say where the open beams stand in a frontier that holds them all in turn."""
    start = 0
    for each in (each for theirs in beams for each in theirs if not each.done):
        each.rows = slice(start, start + len(each.scores))
        start += len(each.scores)


def _continuations(
    batch: Batch,
    prompt: int,
    beams: _Beams,
    frontier: Frontier,
    totals: Tensor,
    options: BeamOptions,
) -> _Candidates:
    """The best continuations of some beams, one more beam's worth than end tokens take.

    totals: [rows of the beams, V] scores up to and with each token
    """
    keep = max(2, 1 + len(batch.rules.eos)) * options.num_beams
    flat = totals.flatten()
    best = torch.topk(flat, min(keep, len(flat)))
    possible = best.values > -torch.inf
    values, index = best.values[possible], best.indices[possible]
    rows = torch.div(index, totals.shape[1], rounding_mode="floor")
    moves = frontier.moves(beams.rows.start + rows, index % totals.shape[1])
    trace = _traced(batch, prompt, beams.trace, rows.tolist(), moves, values)
    return _Candidates(moves, values.tolist(), trace)


def _divide(
    batch: Batch,
    prompt: int,
    beams: _Beams,
    candidates: _Candidates,
    step: int,
    options: BeamOptions,
) -> Moves:
    """Put candidates that end a response among the whole ones; return those that go on."""
    tree = batch.branches.tree
    ends: list[Finish | None] = []
    for parent, token in zip(
        candidates.moves.parents.tolist(), candidates.moves.tokens.tolist(), strict=True
    ):
        ends.append(batch.rules.finish([*tree.response(parent), token]))
    for place, finish in enumerate(ends[: options.num_beams]):
        if finish is not None:
            _finish(batch, prompt, beams, candidates, place, finish, step, options)
    going = [place for place, finish in enumerate(ends) if finish is None][: options.num_beams]
    beams.scores = [candidates.scores[place] for place in going]
    beams.trace = [candidates.trace[place] for place in going]
    _mark(batch, prompt, candidates, ends, set(going))
    beams.done = not going or _is_done(beams, step, batch, options)
    if going and not beams.done:
        best = [
            *tree.response(int(candidates.moves.parents[going[0]])),
            int(candidates.moves.tokens[going[0]]),
        ]
        beams.best = (options.normalised(beams.scores[0], step), best)
    elif beams.whole:
        score, found = beams.whole[0]
        beams.best = (score, found.path.token_ids)
    return candidates.moves.at(torch.tensor(going, dtype=torch.long))


def _finish(
    batch: Batch,
    prompt: int,
    beams: _Beams,
    candidates: _Candidates,
    place: int,
    finish: Finish,
    step: int,
    options: BeamOptions,
) -> None:
    score = options.normalised(candidates.scores[place], step)
    if len(beams.whole) == options.num_beams and score <= beams.whole[-1][0]:
        return
    node = batch.branches.place(candidates.moves.at(torch.tensor([place])))
    found = Found(batch.branches.path(int(node)), score, finish, {}, candidates.trace[place])
    beams.whole.append((score, found))
    beams.whole.sort(key=lambda each: -each[0])
    del beams.whole[options.num_beams :]


def _is_done(beams: _Beams, step: int, batch: Batch, options: BeamOptions) -> bool:
    """Whether no open beam can, by the rule of `early_stopping`, become one of the best."""
    if len(beams.whole) < options.num_beams:
        return False
    if options.early_stopping is True:
        return True
    length = step
    if options.early_stopping == "never":
        if options.score.needs_reference:
            return False
        if options.length_penalty > 0:
            length = batch.rules.decoding.max_new_tokens
    return options.normalised(beams.scores[0], length) <= beams.whole[-1][0]


def plausible(logps: Tensor, share: float) -> Tensor:
    """Log-probabilities [R, V], -inf where below `share` of the likeliest token's probability."""
    least = logps.amax(-1, keepdim=True) + torch.log(torch.tensor(share, dtype=logps.dtype))
    return logps.masked_fill(logps < least, -torch.inf)


def _traced(
    batch: Batch, prompt: int, parents: list[int], rows: list[int], moves: Moves, values: Tensor
) -> list[int]:
    if batch.traces is None:
        return [-1] * len(rows)
    theirs = moves.logps.get("reference")
    trace = batch.traces[prompt]
    return [
        trace.add(
            parents[row],
            int(moves.tokens[place]),
            float(values[place]),
            float(moves.searched[place]),
            None if theirs is None else float(theirs[place]),
        )
        for place, row in enumerate(rows)
    ]


def _mark(
    batch: Batch,
    prompt: int,
    candidates: _Candidates,
    ends: list[Finish | None],
    going: set[int],
) -> None:
    if batch.traces is None:
        return
    nodes = batch.traces[prompt].nodes
    for place, finish in enumerate(ends):
        fate = "finished" if finish is not None else "open" if place in going else "pruned"
        nodes[candidates.trace[place]].fate = fate  # type: ignore[assignment]


def check_width(target: Target, num_beams: int, max_new_tokens: int) -> None:
    size = next(iter(target.models.values())).vocabulary
    if max_new_tokens < 64 and num_beams > size**max_new_tokens:
        raise UserError(
            f"num_beams is {num_beams}; accepted: up to {size**max_new_tokens}, the number of "
            f"responses of {max_new_tokens} tokens"
        )
