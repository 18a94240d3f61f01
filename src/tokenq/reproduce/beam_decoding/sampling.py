"""Plain samples of a policy, each prompt read once."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tokenq.models.branching.branches import POLICY, Branches
from tokenq.models.branching.cached import step_model
from tokenq.reproduce.beam_decoding.decoding import Answer

_ROWS = 160


def sampled(
    model: PreTrainedModel,
    starts: Sequence[list[int]],
    samples: int,
    new_tokens: int,
    eos: int,
    seed: int,
) -> list[list[Answer]]:
    """`samples` answers to each start, at temperature 1.

    eos: the token that ends an answer
    """
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(starts)), key=lambda at: len(starts[at]))
    found: list[list[Answer]] = [[] for _ in starts]
    size = max(1, _ROWS // samples)
    for begin in range(0, len(order), size):
        numbers = order[begin : begin + size]
        with Branches({POLICY: step_model(model)}, [starts[at] for at in numbers]) as branches:
            answers = _batch(branches, len(numbers), samples, new_tokens, eos, generator)
        for number, own in zip(numbers, answers, strict=True):
            found[number] = own
    return found


def _batch(
    branches: Branches,
    prompts: int,
    samples: int,
    new_tokens: int,
    eos: int,
    generator: torch.Generator,
) -> list[list[Answer]]:
    tokens: list[list[int]] = [[] for _ in range(prompts * samples)]
    logps = [0.0] * len(tokens)
    frontier = branches.open()
    rows = torch.arange(prompts).repeat_interleave(samples)
    going = list(range(len(tokens)))
    for _ in range(new_tokens):
        drawn = torch.multinomial(frontier.searched[rows].exp(), 1, generator=generator)[:, 0]
        moves = frontier.moves(rows, drawn)
        for number, token, logp in zip(going, drawn.tolist(), moves.searched.tolist(), strict=True):
            tokens[number].append(token)
            logps[number] += logp
        kept = (drawn != eos).nonzero()[:, 0]
        going = [going[at] for at in kept.tolist()]
        if not going or len(tokens[going[0]]) == new_tokens:
            break
        nodes = branches.place(moves.at(kept))
        branches.retain(nodes)
        frontier = branches.read(nodes)
        rows = torch.arange(len(going))
    answers = [Answer(ids, ids[-1] == eos, logp) for ids, logp in zip(tokens, logps, strict=True)]
    return [answers[at : at + samples] for at in range(0, len(answers), samples)]
