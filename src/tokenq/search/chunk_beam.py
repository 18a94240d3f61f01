"""Chunk-level beam search: beams go on by sampled chunks, and a small pair says which are kept.

Weak-to-strong search (arXiv 2405.19262): the chunks come from any model, a small policy and its
reference rank what they make by its log-ratio. With one beam it is the blockwise search of
controlled decoding (arXiv 2310.17022).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import POLICY, Branches
from tokenq.search.decoding import Decoding, DecodingOptions, whole
from tokenq.search.guidance import BASE
from tokenq.search.guided import with_base
from tokenq.search.results import SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.sampling import drawn_tokens
from tokenq.search.scores import Score
from tokenq.search.steps import Arrival, mark, start_of, walk, whole_response
from tokenq.search.target import Given, Prompt, Target
from tokenq.search.values import ScoredPrefix, Valuation, Value, needs_reference
from tokenq.search.warping import Warping


@dataclass(frozen=True)
class ChunkBeamOptions:
    """What decides a chunk-level beam search; see :func:`chunk_beam_search`."""

    num_beams: int = 4
    chunks_per_beam: int = 4
    chunk_length: int = 16
    score: Score | None = field(default_factory=lambda: Score(1.0))
    value: Value | None = None
    warping: Warping = field(default_factory=Warping)
    num_return_sequences: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_beams", "chunks_per_beam", "chunk_length"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)
        wanted = self.num_return_sequences
        if wanted is not None and wanted not in range(1, self.num_beams + 1):
            raise UserError(
                f"num_return_sequences is {wanted}; accepted: 1 to {self.num_beams}, the number of "
                "beams"
            )
        if self.score is None and self.value is None:
            raise UserError("score is None; accepted: a score, or a value beside it")

    @property
    def needs_reference(self) -> bool:
        """Whether the reference must be read along."""
        scored = self.score is not None and self.score.needs_reference
        return scored or needs_reference(self.value)

    def gain(self, searched: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """What steps add to the score: by the pair, whatever they were drawn from."""
        if self.score is None:
            return torch.zeros_like(searched)
        return self.score(logps[POLICY], logps)


@dataclass(frozen=True)
class _From:
    """Search the law of one of the models."""

    name: str

    @property
    def models(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        return logps[self.name]


def chunk_beam_search(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    num_beams: int = 4,
    max_new_tokens: int = 64,
    score: Score | str | float | None = "log_ratio",
    *,
    chunks_per_beam: int = 4,
    chunk_length: int = 16,
    base: Any = None,
    value: Value | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    num_return_sequences: int | None = None,
    seed: int = 0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Keep the best of sampled chunks, again and again; return the beams at the end, best first.

    pair_or_model:   the pair that ranks; or {"policy": ..., "reference": ...}, for prompts that are
                     lists of token ids
    prompts:         texts, lists of messages, or lists of token ids
    num_beams:       beams that are kept, W of the paper
    score:           what ranks them: "log_ratio" of the pair, its "likelihood", a number between,
                     or None: nothing, the value alone
    chunks_per_beam: samples that each open beam goes on by, K; W * K at the beginning
    chunk_length:    tokens of a chunk, L
    base:            the model that chunks are drawn from, loaded, or a pair whose policy it is;
                     None: "base" of the models given by name, or else the pair's policy
    value:           added to the score, see :mod:`tokenq.search.values`; it takes prefixes
                     (`prompt_ids`, `response_ids`, `text`) and gives one number each
    temperature, top_k, top_p, min_p: the law of each token, see :class:`Warping`
    num_return_sequences: how many of the beams are returned; all if None
    seed:            decides the samples; a prompt's do not depend on the other prompts
    decoding:        see :class:`Decoding`

    One beam and chunks as long as the response make best-of-K, by the samples of `sample` of the
    same seed. Equal beams are kept once. A result's `score` is score plus value of the whole
    response. Raises UserError for options out of range, models that do not share a vocabulary, and
    prompts that the models cannot read.
    """
    options = ChunkBeamOptions(
        num_beams,
        chunks_per_beam,
        chunk_length,
        None if score is None else Score.of(score),
        value,
        Warping(temperature, top_k, top_p, min_p),
        num_return_sequences,
        seed,
    )
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model, with_reference=options.needs_reference)
    if base is not None:
        target = with_base(target, base)
    target = target.reading([POLICY] if options.score is not None else [])
    if BASE not in target.models:
        return run(target, prompts, settings, lambda batch: _search(batch, options))
    if settings.guidance is not None:
        raise UserError("base is given beside guidance; accepted: one of them")
    settings = replace(settings, guidance=_From(BASE))
    return run(target, prompts, settings, lambda batch: _search(batch, options))


@dataclass(frozen=True, eq=False)
class _Beam:
    """The beginning of a response, or all of it, at a placed node.

    worth: score plus value; trace: its node there, -1 without
    """

    node: int
    prefix: ScoredPrefix
    worth: float
    trace: int = -1


def _search(batch: Batch, options: ChunkBeamOptions) -> list[list[Found]]:
    worth_of = Valuation(options.value)
    most = batch.rules.decoding.max_new_tokens
    width = options.num_beams * options.chunks_per_beam
    chances = [each.random((width, most)) for each in batch.generators(options.seed)]
    frontier = batch.branches.open()
    beams = [
        [_Beam(int(node), start_of(batch, prompt), 0.0)]
        for prompt, node in enumerate(frontier.nodes.tolist())
    ]
    count = width
    for start in range(0, most, options.chunk_length):
        going = [(p, beam) for p, theirs in enumerate(beams) for beam in _open(theirs)]
        if not going:
            break
        if start:
            frontier = batch.branches.read(torch.tensor([beam.node for _, beam in going]))
        drawn = np.concatenate(list(_chances(beams, chances, count, start, options)))
        arrivals = walk(
            batch,
            frontier,
            [beam.prefix for _, beam in going],
            options.gain,
            _Draw(torch.from_numpy(drawn), options.warping),
            count,
            options.chunk_length,
        )
        for prompt in {prompt for prompt, _ in going}:
            rows = [row for row, (theirs, _) in enumerate(going) if theirs == prompt]
            reached = [
                (going[row][1], arrival)
                for row in rows
                for arrival in arrivals[row * count : (row + 1) * count]
                if arrival is not None
            ]
            beams[prompt] = _kept(batch, prompt, beams[prompt], reached, worth_of, options)
        kept = [beam.node for theirs in beams for beam in theirs]
        if kept:
            batch.branches.retain(torch.tensor(kept))
        count = options.chunks_per_beam
    batch.counts["value_calls"] = worth_of.calls
    batch.counts["value_seconds"] = worth_of.seconds
    limit = options.num_return_sequences or options.num_beams
    return [
        [
            whole_response(batch, beam.node, beam.prefix, beam.worth, beam.trace)
            for beam in theirs[:limit]
        ]
        for theirs in beams
    ]


def _open(beams: Sequence[_Beam]) -> list[_Beam]:
    return [beam for beam in beams if beam.prefix.finish is None]


def _chances(
    beams: Sequence[Sequence[_Beam]],
    chances: Sequence[np.ndarray],
    count: int,
    start: int,
    options: ChunkBeamOptions,
) -> Iterator[np.ndarray]:
    """[open beams * count, L] of each prompt: numbers that decide the next chunks."""
    for theirs, numbers in zip(beams, chances, strict=True):
        yield numbers[: len(_open(theirs)) * count, start : start + options.chunk_length]


@dataclass(frozen=True, eq=False)
class _Draw:
    """Chooses the tokens of samples by uniform numbers [N, L], one a walker and step."""

    chances: Tensor
    warping: Warping

    def __call__(self, allowed: Tensor, walkers: Sequence[int], step: int) -> Tensor:
        wanted = self.chances[list(walkers), step].view(len(allowed), -1)
        tokens, _ = drawn_tokens(self.warping(allowed), wanted.to(allowed.device))
        return tokens.flatten()


def _kept(
    batch: Batch,
    prompt: int,
    before: Sequence[_Beam],
    reached: Sequence[tuple[_Beam, Arrival]],
    worth_of: Valuation,
    options: ChunkBeamOptions,
) -> list[_Beam]:
    """The best of what the chunks made and of the beams that had ended, each once."""
    worths = worth_of([arrival.prefix for _, arrival in reached])
    ended = [beam for beam in before if beam.prefix.finish is not None]
    made: dict[tuple[int, ...], _Beam] = {beam.prefix.response_ids: beam for beam in ended}
    for (beam, arrival), worth in zip(reached, worths, strict=True):
        if arrival.prefix.response_ids not in made:
            number = _trace_chunk(batch, prompt, beam, arrival, worth)
            made[arrival.prefix.response_ids] = _Beam(arrival.node, arrival.prefix, worth, number)
    best = sorted(made.values(), key=lambda beam: -beam.worth)
    for beam in best[options.num_beams :]:
        mark(batch, prompt, beam.trace, "pruned")
    if best:
        response = list(best[0].prefix.response_ids)
        longest = max(len(beam.prefix.response_ids) for beam in best)
        batch.tell(prompt, longest, response, best[0].worth)
    return best[: options.num_beams]


def _trace_chunk(batch: Batch, prompt: int, beam: _Beam, arrival: Arrival, worth: float) -> int:
    """Put the tokens of a chunk into the trace, its last with the score; return its number."""
    if batch.traces is None:
        return -1
    trace, path = batch.traces[prompt], batch.branches.path(arrival.node)
    theirs = path.logps.get("reference")
    number = beam.trace
    for step in range(len(beam.prefix.response_ids), len(path.token_ids)):
        ref_logp = None if theirs is None else float(theirs[step])
        number = trace.add(
            number, path.token_ids[step], worth, float(path.searched[step]), ref_logp
        )
    if arrival.prefix.finish is not None:
        trace.nodes[number].fate = "finished"
    return number
