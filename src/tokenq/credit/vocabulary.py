"""The whole vocabulary at the positions of a response, under policy and reference, in chunks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokenq.models.forward import causal_lm, response_hidden
from tokenq.models.head import vocabulary_logps
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.packing import Ids
from tokenq.models.pair import Pair, reference_of
from tokenq.models.reference import scoring

_CHUNK_ELEMENTS = 2**23
"""Entries of one `[positions, vocabulary]` tensor; a few of them are alive at the same time."""


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood at a position.

    logp, ref_logp: natural log-probabilities there under policy and reference
    reward:         beta * (logp - ref_logp), its implicit reward
    """

    token_id: int
    token: str
    logp: float
    ref_logp: float
    reward: float


@dataclass(frozen=True)
class Survey:
    """One response and what else could have been said: `logps`, `ref_logps` [T] of its tokens in
    nats, and the best alternatives at each of its T positions."""

    logps: Tensor
    ref_logps: Tensor
    alternatives: list[list[Alternative]]


class VocabularyReader:
    """Full-vocabulary log-probabilities at the positions of one response.

    The hidden states (two of [T, H]) are computed at first use and kept; a row over the vocabulary
    is computed when asked for.
    """

    def __init__(self, pair: Pair, prompt_ids: Ids, response_ids: Ids) -> None:
        self._pair = pair
        self._ids = (prompt_ids, response_ids)

    @cached_property
    def _states(self) -> tuple[Tensor, Tensor]:
        prompt_ids, response_ids = self._ids
        policy, reference = hidden_states(self._pair, [prompt_ids], [response_ids], TOKEN_BUDGET)
        return policy[0], reference[0]

    def best(
        self, start: int, end: int, k: int, beta: float, min_probability: float
    ) -> list[list[Alternative]]:
        """The `k` best tokens at each position of `start:end`, by implicit reward."""
        states = tuple(each[start:end] for each in self._states)
        found: list[list[Alternative]] = []
        for logps, ref_logps in paired_logps(self._pair, *states):
            found += best_tokens(self._pair.tokenizer, logps, ref_logps, k, beta, min_probability)
        return found


def survey(
    pair: Pair,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    k: int,
    beta: float,
    min_probability: float,
    token_budget: int,
) -> list[Survey]:
    """Score responses and find the best alternatives at all their positions, in one forward each.

    Memory: the hidden states of all rows given, and one chunk over the vocabulary.
    """
    lengths = [len(response) for response in responses]
    states = hidden_states(pair, prompts, responses, token_budget)
    policy, reference = (torch.cat(each) for each in states)
    targets = torch.tensor([token for response in responses for token in response])
    parts: list[Tensor] = []
    alternatives: list[list[Alternative]] = []
    at = 0
    for chunk in paired_logps(pair, policy, reference):
        taken = targets[at : at + len(chunk[0]), None].to(chunk[0].device)
        parts.append(torch.cat([each.gather(1, taken) for each in chunk], dim=1).cpu())
        alternatives += best_tokens(pair.tokenizer, *chunk, k, beta, min_probability)
        at += len(taken)
    surveys = []
    at = 0
    for scores in torch.cat(parts).split(lengths):
        listed = alternatives[at : at + len(scores)]
        surveys.append(Survey(scores[:, 0].contiguous(), scores[:, 1].contiguous(), listed))
        at += len(scores)
    return surveys


def hidden_states(
    pair: Pair, prompts: Sequence[Ids], responses: Sequence[Ids], token_budget: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The states [T_i, H] that predict each response's tokens, under policy and reference."""
    sides = []
    for side in (pair.policy, reference_of(pair)):
        with scoring(side) as model:
            sides.append(response_hidden(model, prompts, responses, token_budget))
    return sides[0], sides[1]


def paired_logps(pair: Pair, policy: Tensor, reference: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log pi(. | s) and log pi_ref(. | s), each [n, V], for consecutive parts of the states.

    V: the tokens that the tokenizer knows and both models score; each model is normalised over its
    own head, padding rows included, as when it generates.
    """
    width = max(pair.tokenizer.get_vocab().values()) + 1
    for first, second in zip(*_split(pair, (policy, reference)), strict=True):
        with scoring(pair.policy) as model:
            logps = vocabulary_logps(causal_lm(model), first)
        with scoring(reference_of(pair)) as model:
            ref_logps = vocabulary_logps(causal_lm(model), second).to(logps.device)
        shared = min(width, logps.shape[1], ref_logps.shape[1])
        yield logps[:, :shared], ref_logps[:, :shared]


def best_tokens(
    tokenizer: PreTrainedTokenizerBase,
    logps: Tensor,
    ref_logps: Tensor,
    k: int,
    beta: float,
    min_probability: float,
) -> list[list[Alternative]]:
    """The `k` tokens of highest beta * (logps - ref_logps) in each row, best first.

    logps, ref_logps: [n, V], nats
    min_probability:  tokens to which the policy gives less are left out; a row may then hold fewer
                      than `k`
    """
    rewards = beta * (logps - ref_logps)
    # A token that both models exclude has no log-ratio.
    plausible = ~rewards.isnan()
    if min_probability > 0:
        plausible &= logps.exp() >= min_probability
    scored = rewards.where(plausible, torch.full_like(rewards, -torch.inf))
    best = scored.topk(min(k, scored.shape[1]), dim=1).indices
    columns = [each.gather(1, best).tolist() for each in (plausible, logps, ref_logps, rewards)]
    return [
        [
            Alternative(token, token_text(tokenizer, token), logp, ref_logp, reward)
            for token, kept, logp, ref_logp, reward in zip(*row, strict=True)
            if kept
        ]
        for row in zip(best.tolist(), *columns, strict=True)
    ]


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it reads inside a text, with its leading blank; bytes of a character by name."""
    anchor = _anchor(tokenizer)
    alone = str(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
    both = str(tokenizer.decode([*anchor, token], clean_up_tokenization_spaces=False))
    text = both.removeprefix(alone)
    if text and "�" not in text:
        return text
    return str(tokenizer.convert_ids_to_tokens(token))


def _anchor(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # Some tokenizers drop the blank of a text's first token.
    ids: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    return ids


def _split(pair: Pair, states: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    rows = causal_lm(pair.policy).get_output_embeddings().weight.shape[0]
    positions = max(1, _CHUNK_ELEMENTS // int(rows))
    return tuple(each.split(positions) for each in states)
