"""Setups and readings of tabular policies: every number from its definition, in float64.

The tokens of a `PrefixTree` are token ids and its prompts are prompts; nothing here shares code
with what draws and reads the probe of a real model.
"""

from collections.abc import Sequence

import numpy as np

from tokenq.mdp import PrefixTree
from tokenq.monitor.readings import (
    Array,
    Baseline,
    ForkReading,
    PairReading,
    ProbePair,
    ProbeResponse,
    ProbeSet,
    Reading,
    ResponseReading,
    SampleReading,
    SetName,
    Setup,
)

Pair = tuple[SetName, int, int, int]
"""Source, prompt, and the numbers of the chosen and the rejected response in the tree."""


def table(tree: PrefixTree, rng: np.random.Generator, scale: float = 1.0) -> Array:
    """A random policy: log-probabilities [S, A]."""
    logits = scale * rng.standard_normal((tree.states, tree.vocabulary))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def moved(policy: Array, rng: np.random.Generator, scale: float = 0.5) -> Array:
    """The policy with random changes of its logits."""
    logits = policy + scale * rng.standard_normal(policy.shape)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def along(tree: PrefixTree, steps: Array, prompt: int, response: int) -> Array:
    """[T] what `steps` [S, A] says of each token of a response."""
    mask = tree.paths.mask[response]
    return steps[tree.paths.states[prompt, response][mask], tree.paths.tokens[response][mask]]


def at_states(tree: PrefixTree, values: Array, prompt: int, response: int) -> Array:
    """[T] `values` [S] in the states that the tokens of a response are chosen in."""
    return values[tree.paths.states[prompt, response][tree.paths.mask[response]]]


def divergences(one: Array, other: Array) -> Array:
    """[S] KL(one || other), nats."""
    return (np.exp(one) * (one - other)).sum(-1)


def entropies(policy: Array) -> Array:
    """[S] nats."""
    return -(np.exp(policy) * policy).sum(-1)


def tabular_setup(
    tree: PrefixTree,
    reference: Array,
    pairs: Sequence[Pair],
    responses: Sequence[tuple[int, int]],
    beta: float = 0.5,
    *,
    apart: bool = True,
) -> Setup:
    """What a probe of these pairs holds.

    responses: (number of the pair, number of the response) that the reference has drawn
    apart:     every pair is of a prompt of its own, of which the tree's prompt is the law
    """
    texts = [
        ProbePair(
            source,
            row,
            [prompt, row] if apart else [prompt],
            list(tree.response(ours)),
            list(tree.response(theirs)),
        )
        for row, (source, prompt, ours, theirs) in enumerate(pairs)
    ]
    drawn = [
        ProbeResponse(pair, list(tree.response(number)), tree.response(number)[-1] == tree.eos)
        for pair, number in responses
    ]
    tokens, logps = split(tree, reference, pairs)
    sides = [side_states(tree, reference, pairs, side) for side in range(2)]
    prompts = [pairs[pair][1] for pair, _ in responses]
    numbers = [number for _, number in responses]
    both = list(zip(prompts, numbers, strict=True))
    baseline = Baseline(
        tokens=tokens,
        ref_logps=logps,
        ref_entropy=np.stack([side["entropy"] for side in sides]),
        ref_peak=np.stack([side["peak"] for side in sides]),
        ref_collision=np.stack([side["collision"] for side in sides]),
        ref_taken=np.stack([side["taken"] for side in sides]),
        ches=np.array([-1.0 - row for row in range(len(pairs))]),
        ches_normalised=np.array([-0.1 - row for row in range(len(pairs))]),
        ref_fork=forks(tree, reference, pairs),
        response_tokens=np.array([len(tree.response(number)) for number in numbers], dtype=float),
        response_logps=np.array([along(tree, reference, *each).sum() for each in both]),
        response_entropy=np.array(
            [at_states(tree, entropies(reference), *each).sum() for each in both]
        ),
        ref_likeness=np.array([0.1 * number for number in numbers]),
        ref_repetition=np.array([0.01 * number for number in numbers]),
    )
    ends = [] if tree.eos is None else [tree.eos]
    probe = ProbeSet(texts, drawn, tree.horizon)
    return Setup(probe, baseline, beta, "tabular", "tabular reference", ends, {})


def tabular_reading(
    tree: PrefixTree,
    reference: Array,
    policy: Array,
    pairs: Sequence[Pair],
    responses: Sequence[tuple[int, int]],
    samples: Sequence[tuple[int, int]] = (),
    step: int = 1,
    gradients: Array | None = None,
) -> Reading:
    """A probe of `policy` [S, A]; samples: as responses, drawn by the policy."""
    sides = [side_states(tree, policy, pairs, side) for side in range(2)]
    forward = divergences(reference, policy)
    backward = divergences(policy, reference)
    lost = np.stack(
        [
            [at_states(tree, forward, pair[1], pair[2 + side]).sum() for pair in pairs]
            for side in range(2)
        ]
    )
    ratio = policy - reference
    both = [(pairs[pair][1], number) for pair, number in responses]
    written = [(pairs[pair][1], number) for pair, number in samples]
    at_forks = forks(tree, policy, pairs)
    change = np.exp(at_forks) - np.exp(forks(tree, reference, pairs))
    none = np.zeros(len(pairs))
    return Reading(
        step=step,
        pairs=PairReading(
            logps=split(tree, policy, pairs)[1],
            divergence=lost,
            entropy=np.stack([side["entropy"] for side in sides]),
            peak=np.stack([side["peak"] for side in sides]),
            collision=np.stack([side["collision"] for side in sides]),
            taken=np.stack([side["taken"] for side in sides]),
            gradients=gradients,
        ),
        forks=ForkReading(
            logps=at_forks,
            other=-np.nansum(change, axis=0),
            toward=none,
            gains=[[] for _ in pairs],
        ),
        responses=ResponseReading(
            log_ratio=np.array([along(tree, ratio, *each).sum() for each in both]),
            divergence=np.array([at_states(tree, forward, *each).sum() for each in both]),
            reverse=np.array([at_states(tree, backward, *each).sum() for each in both]),
            entropy=np.array(
                [at_states(tree, entropies(policy), *each).mean() for each in both]
            ),
        ),
        samples=SampleReading(
            pair=np.array([pair for pair, _ in samples], dtype=float),
            ids=[list(tree.response(number)) for _, number in samples],
            ended=np.array([tree.response(n)[-1] == tree.eos for _, n in samples], dtype=float),
            repetition=np.array([0.02 * number for _, number in samples]),
            log_ratio=np.array([along(tree, ratio, *each).sum() for each in written]),
            divergence=np.array([at_states(tree, backward, *each).sum() for each in written]),
            likeness=np.array([0.2 * number for _, number in samples]),
        )
        if samples
        else None,
    )  # fmt: skip


def side_states(
    tree: PrefixTree, policy: Array, pairs: Sequence[Pair], side: int
) -> dict[str, Array]:
    """Means over the states of one side's answers, [N] each."""
    answers = [(pair[1], pair[2 + side]) for pair in pairs]

    def means(values: Array) -> Array:
        return np.array([at_states(tree, values, *each).mean() for each in answers])

    return {
        "entropy": means(entropies(policy)),
        "peak": means(policy.max(-1)),
        "collision": means(np.exp(2 * policy).sum(-1)),
        "taken": np.array([np.exp(along(tree, policy, *each)).mean() for each in answers]),
    }


def split(tree: PrefixTree, policy: Array, pairs: Sequence[Pair]) -> tuple[Array, Array]:
    """Tokens and summed log-probabilities by side and part, [2, 4, N] each."""
    tokens, logps = np.zeros((2, 4, len(pairs))), np.zeros((2, 4, len(pairs)))
    for row, (_, prompt, *answers) in enumerate(pairs):
        ours, theirs = (tree.response(answer) for answer in answers)
        same = [a == b for a, b in zip(ours, theirs, strict=False)]
        shared = same.index(False) if False in same else len(same)
        for side, answer in enumerate(answers):
            values = along(tree, policy, prompt, answer)
            for place, value in enumerate(values):
                last = place == len(values) - 1 and tree.response(answer)[-1] == tree.eos
                part = 3 if last else 0 if place < shared else 1 if place == shared else 2
                tokens[side, part, row] += 1
                logps[side, part, row] += value
    return tokens, logps


def forks(tree: PrefixTree, policy: Array, pairs: Sequence[Pair]) -> Array:
    """[2, N] log-probability of the first tokens that differ; nan where there is none."""
    found = np.full((2, len(pairs)), np.nan)
    for row, (_, prompt, *answers) in enumerate(pairs):
        same = [a == b for a, b in zip(*map(tree.response, answers), strict=False)]
        if False in same:
            place = same.index(False)
            for side, answer in enumerate(answers):
                found[side, row] = along(tree, policy, prompt, answer)[place]
    return found
