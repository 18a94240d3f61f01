"""From prompts to results: batches of prompts of like length, each handed to one search."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import POLICY, REFERENCE, Branches, Path
from tokenq.models.packing import Ids
from tokenq.search.decoding import Decoding, Finish, Progress, RuledGuidance, Rules
from tokenq.search.results import SearchResult, SearchResults
from tokenq.search.target import Prompt, Target
from tokenq.search.trace import Trace


@dataclass(frozen=True, eq=False)
class Found:
    """A response that a search has found, before it becomes a result.

    path:    the tokens and what was said of them
    score:   see :class:`SearchResult`
    """

    path: Path
    score: float
    finish: Finish
    details: dict[str, float]
    trace_node: int = -1


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts that are searched together.

    branches: opened behind these prompts
    rules:    where responses end
    numbers:  [P] each prompt's place among all that were given
    copies:   [P] how many equal prompts stand before it
    traces:   one a prompt, or None
    counts:   what a search counts or times, by name; summed over batches
    """

    branches: Branches
    rules: Rules
    numbers: list[int]
    copies: list[int]
    traces: list[Trace] | None
    counts: dict[str, float] = field(default_factory=dict)

    def generators(self, seed: int) -> list[np.random.Generator]:
        """[P] random numbers that depend on the seed and the prompt, not on what is searched
        beside it; equal prompts get different ones."""
        texts = [
            ",".join(map(str, (seed, copy, *prompt)))
            for prompt, copy in zip(self.prompts, self.copies, strict=True)
        ]
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return [np.random.default_rng(int.from_bytes(each[:16], "big")) for each in digests]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the prompts."""
        return self.branches.tree.prompts

    def tell(self, prompt: int, step: int, token_ids: list[int], score: float) -> None:
        """Report the best so far of prompt `prompt` of this batch, if anybody listens."""
        listener = self.rules.decoding.on_step
        if listener is not None:
            text = self.rules.text(token_ids)
            listener(Progress(self.numbers[prompt], step, token_ids, text, score))


SearchBatch = Callable[[Batch], list[list[Found]]]
"""A search: for each prompt of the batch what was found, best first."""


def run(
    target: Target,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    search: SearchBatch,
) -> SearchResults:
    """Search every prompt, in batches of prompts of like length.

    Raises UserError for prompts that the models cannot read.
    """
    guidance = decoding.guidance
    if guidance is not None:
        target = target.reading(guidance.models)
    if guidance is None and POLICY not in target.models:
        raise UserError(
            f"the models are {', '.join(map(repr, target.models))}; accepted: one of them named "
            f"'{POLICY}', which is searched"
        )
    rules = target.rules(decoding)
    encoded = target.encode(prompts, decoding.max_new_tokens)
    if isinstance(guidance, RuledGuidance):
        given = zip(map(tuple, encoded), prompts, strict=True)
        guidance = guidance.under(rules, dict(given))
    copies = _copies(encoded)
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
    rows: list[list[SearchResult]] = [[] for _ in encoded]
    traces: list[Trace | None] = [None for _ in encoded]
    counts: dict[str, float] = {}
    began = time.perf_counter()
    for start in range(0, len(order), decoding.batch_size):
        numbers = order[start : start + decoding.batch_size]
        kept = [Trace() for _ in numbers] if decoding.trace else None
        with torch.no_grad(), target.open([encoded[n] for n in numbers], guidance) as branches:
            batch = Batch(branches, rules, numbers, [copies[n] for n in numbers], kept)
            found = search(batch)
        read = {"expansions": branches.evaluations, "model_seconds": branches.seconds}
        for name, number in {**read, **batch.counts}.items():
            counts[name] = counts.get(name, 0) + number
        for place, results in enumerate(_results(target, rules, numbers, encoded, found)):
            rows[numbers[place]] = results
            if kept is not None:
                traces[numbers[place]] = _finished(kept[place], found[place], rules)
    counts["seconds"] = time.perf_counter() - began
    return SearchResults(rows, traces, counts)


def _copies(prompts: Sequence[Ids]) -> list[int]:
    """For each prompt how many equal ones stand before it."""
    seen: Counter[tuple[int, ...]] = Counter()
    copies = []
    for prompt in prompts:
        copies.append(seen[tuple(prompt)])
        seen[tuple(prompt)] += 1
    return copies


def _results(
    target: Target,
    rules: Rules,
    numbers: Sequence[int],
    encoded: Sequence[list[int]],
    found: Sequence[Sequence[Found]],
) -> list[list[SearchResult]]:
    flat = [(encoded[n], one) for n, row in zip(numbers, found, strict=True) for one in row]
    responses = [one.path.token_ids for _, one in flat]
    theirs = iter(target.ref_logps([prompt for prompt, _ in flat], responses))
    return [
        [_result(target, rules, encoded[n], one, next(theirs)) for one in row]
        for n, row in zip(numbers, found, strict=True)
    ]


def _result(
    target: Target, rules: Rules, prompt: list[int], one: Found, ref_logps: Tensor | None
) -> SearchResult:
    said = {name: each.float() for name, each in one.path.logps.items()}
    if ref_logps is not None:
        said[REFERENCE] = ref_logps
    kl = one.path.kl
    return SearchResult(
        prompt_ids=prompt,
        token_ids=one.path.token_ids,
        text=rules.text(one.path.token_ids),
        score=one.score,
        logps=one.path.searched.float(),
        model_logps=said,
        kl=None if kl is None else kl.float(),
        finish=one.finish,
        details=one.details,
        pair=target.pair if POLICY in said else None,
    )


def _traced(trace: Trace, one: Found) -> int:
    """Put a response into the trace, behind what it shares with the tree; return its last node."""
    numbers = {(node.parent, node.token): node.number for node in trace.nodes}
    theirs = one.path.logps.get(REFERENCE)
    number = -1
    for step, token in enumerate(one.path.token_ids):
        known = numbers.get((number, token))
        ref_logp = None if theirs is None else float(theirs[step])
        number = (
            trace.add(number, token, one.score, float(one.path.searched[step]), ref_logp)
            if known is None
            else known
        )
    return number


def _finished(trace: Trace, found: Sequence[Found], rules: Rules) -> Trace:
    for rank, one in enumerate(found, start=1):
        # Rollouts, and what was finished greedily, are not in the tree.
        known = one.trace_node >= 0
        trace.choose(one.trace_node if known else _traced(trace, one), rank)
    if rules.tokenizer is not None:
        for node in trace.nodes:
            node.text = str(rules.tokenizer.decode([node.token]))
    return trace
