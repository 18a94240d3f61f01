"""The whole vocabulary at the positions of a response, under policy and reference, in chunks.

One sweep over the two heads tells the log-probs of the tokens that stand there, what each state is
like (entropies, divergence, normaliser), and the best alternatives. No tensor is larger than a
chunk of positions times the vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.forward import causal_lm, response_hidden
from tokenq.models.head import Head
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.packing import Ids
from tokenq.models.pair import Pair, reference_of
from tokenq.models.reference import scoring

_CHUNK_ELEMENTS = 2**23
"""Entries of one `[positions, vocabulary]` tensor of logits; two of them are alive at a time."""

_ROWS = 16
"""Rows of a chunk that are swept together on a CPU: small enough to stay in its cache."""


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


@dataclass(frozen=True, eq=False)
class StateFacts:
    """The T positions of a response as both models see them; every field is [T], on the CPU.

    logps, ref_logps:  log-probs of the token that stands there, under policy and reference
    entropy:           of the policy's next-token distribution
    ref_entropy:       of the reference's
    divergence:        KL(pi_ref(. | s_t) || pi(. | s_t)), minus the mean of log(pi / pi_ref) under
                       the reference
    policy_divergence: KL(pi(. | s_t) || pi_ref(. | s_t)), its mean under the policy
    ratio_variance:    its variance under the reference, nats squared
    normaliser:        logsumexp of the policy's logits
    taken:             the policy's logit of the token that stands there: logps + normaliser

    All in nats, beta not included, but for the last two, whose zero is the network's own. Each
    model is normalised over its own head, padding rows included, as when it generates; divergences
    and variance count the tokens that both heads score.
    """

    logps: Tensor
    ref_logps: Tensor
    entropy: Tensor
    ref_entropy: Tensor
    divergence: Tensor
    policy_divergence: Tensor
    ratio_variance: Tensor
    normaliser: Tensor
    taken: Tensor


@dataclass(frozen=True, eq=False)
class Survey(StateFacts):
    """One response, and the best alternatives at each of its T positions if they were wanted."""

    alternatives: list[list[Alternative]]


@dataclass(frozen=True)
class Search:
    """Which alternatives are looked for: the `k` tokens of highest implicit reward.

    min_probability: tokens to which the policy gives less are left out; a position may then have
                     fewer than `k`
    """

    k: int
    beta: float
    min_probability: float = 0.0


class VocabularyReader:
    """Full-vocabulary log-probabilities at the positions of one response.

    The hidden states (two of [T, H]) are computed at first use and kept; a row over the vocabulary
    is computed when asked for, by the heads as they are then. Heads that say something else by
    then, because training went on, are refused: UserError.
    """

    def __init__(self, pair: Pair, prompt_ids: Ids, response_ids: Ids) -> None:
        self._pair = pair
        self._ids = (prompt_ids, response_ids)

    @property
    def pair(self) -> Pair:
        """The models that are read."""
        return self._pair

    @cached_property
    def _states(self) -> tuple[Tensor, Tensor]:
        prompt_ids, response_ids = self._ids
        policy, reference = hidden_states(self._pair, [prompt_ids], [response_ids], TOKEN_BUDGET)
        return policy[0], reference[0]

    @cached_property
    def facts(self) -> StateFacts:
        """What both models say at every position, in one sweep over the vocabulary."""
        policy, reference = self._states
        facts, _ = sweep(self._pair, policy, reference, torch.tensor(self._ids[1]), None)
        return facts

    def logps(self, position: int) -> tuple[Tensor, Tensor]:
        """log pi(. | s) and log pi_ref(. | s) at one position: [V] each, in nats.

        V: the tokens that the tokenizer knows and both models score.
        """
        there = slice(position, position + 1)
        states = (each[there] for each in self._states)
        [(logps, ref_logps)] = paired_logps(self._pair, *states)
        token = self._ids[1][position]
        self._check(there, logps=logps[:, token], ref_logps=ref_logps[:, token])
        return logps[0].cpu(), ref_logps[0].cpu()

    def best(
        self, start: int, end: int, k: int, beta: float, min_probability: float
    ) -> list[list[Alternative]]:
        """The `k` best tokens at each position of `start:end`, by implicit reward."""
        policy, reference = (each[start:end] for each in self._states)
        targets = torch.tensor(self._ids[1][start:end])
        search = Search(k, beta, min_probability)
        facts, found = sweep(self._pair, policy, reference, targets, search)
        self._check(slice(start, end), **vars(facts))
        return found

    def _check(self, part: slice, **now: Tensor) -> None:
        """Raise UserError where the heads no longer say what :attr:`facts` holds."""
        head = causal_lm(self._pair.policy).get_output_embeddings().weight
        # Half precision rounds logits of 32 and more to a quarter.
        tolerance = 0.5 if torch.finfo(head.dtype).bits <= 16 else 1e-3
        for name in ("logps", "ref_logps"):
            then = getattr(self.facts, name)[part]
            if not torch.allclose(now[name].cpu(), then, 1e-4, tolerance, equal_nan=True):
                raise UserError(
                    "the weights of a model have changed since this credit was computed; accepted: "
                    "credit of the models as they are, tokenq.credit(...) once more"
                )


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

    k: 0 looks for none

    Memory: the hidden states of all rows given, and two chunks over the vocabulary.
    """
    lengths = [len(response) for response in responses]
    policy, reference = map(torch.cat, hidden_states(pair, prompts, responses, token_budget))
    targets = torch.tensor([token for response in responses for token in response])
    search = Search(k, beta, min_probability) if k else None
    facts, found = sweep(pair, policy, reference, targets, search)
    names = [field.name for field in fields(StateFacts)]
    surveys, at = [], 0
    for length in lengths:
        part = slice(at, at + length)
        row = {name: getattr(facts, name)[part].clone() for name in names}
        surveys.append(Survey(**row, alternatives=found[part]))
        at += length
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


def sweep(
    pair: Pair, policy: Tensor, reference: Tensor, targets: Tensor, search: Search | None
) -> tuple[StateFacts, list[list[Alternative]]]:
    """Read N positions over the whole vocabulary, once: facts [N], and alternatives if wanted.

    policy, reference: [N, H] the states from which both models predict
    targets:           [N] the tokens that stand there

    Alternatives are tokens that the tokenizer knows and both models score.
    """
    known = max(pair.tokenizer.get_vocab().values()) + 1
    parts: list[StateFacts] = []
    alternatives: list[list[Alternative]] = []
    at = 0
    for logits, ref_logits in _paired_logits(pair, policy, reference):
        target = targets[at : at + len(logits), None].to(logits.device)
        at += len(logits)
        rows = _ROWS if logits.device.type == "cpu" else len(logits)
        for block in (slice(start, start + rows) for start in range(0, len(logits), rows)):
            facts, logps, ref_logps = _read_(logits[block], ref_logits[block], target[block])
            parts.append(facts)
            if search is not None:
                best = best_tokens(logps[:, :known], ref_logps[:, :known], search)
                alternatives += _listed(pair.tokenizer, best, len(facts.logps))
    return _joined(parts), alternatives


def paired_logps(pair: Pair, policy: Tensor, reference: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log pi(. | s) and log pi_ref(. | s), each [n, V], for consecutive parts of the states.

    V: the tokens that the tokenizer knows and both models score; each model is normalised over its
    own head, padding rows included, as when it generates.
    """
    known = max(pair.tokenizer.get_vocab().values()) + 1
    for logits, ref_logits in _paired_logits(pair, policy, reference):
        shared = min(known, logits.shape[1], ref_logits.shape[1])
        yield logits.log_softmax(-1)[:, :shared], ref_logits.log_softmax(-1)[:, :shared]


@dataclass(frozen=True, eq=False)
class BestTokens:
    """M tokens found at n positions, ordered by position and then from the best down.

    row: [M] the position; token_id [M]; logp, ref_logp, reward [M], as in `Alternative`
    """

    row: NDArray[np.int64]
    token_id: NDArray[np.int64]
    logp: NDArray[np.float64]
    ref_logp: NDArray[np.float64]
    reward: NDArray[np.float64]


def best_tokens(logps: Tensor, ref_logps: Tensor, search: Search) -> BestTokens:
    """The `search.k` tokens of highest beta * (logps - ref_logps) in each row.

    logps, ref_logps: [n, V], nats
    """
    row, token = _candidates(logps, ref_logps, search)
    logp, ref_logp = (each[row, token].double().cpu().numpy() for each in (logps, ref_logps))
    rows, ids = row.cpu().numpy(), token.cpu().numpy()
    reward = search.beta * (logp - ref_logp)
    order = np.lexsort((ids, -reward, rows))
    ordered = rows[order]
    better = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, side="left")
    order = order[better < search.k]
    return BestTokens(rows[order], ids[order], logp[order], ref_logp[order], reward[order])


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it reads inside a text, with its leading blank; bytes of a character by name."""
    known = _TOKEN_TEXTS.setdefault(tokenizer, {})
    if token not in known:
        known[token] = _token_text(tokenizer, token)
    return known[token]


_TOKEN_TEXTS: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, str]] = WeakKeyDictionary()
"""Texts that were asked for: a data set asks for the same few thousand again and again."""


def _token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
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


def _paired_logits(
    pair: Pair, policy: Tensor, reference: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both models' logits, each [n, V] over its own head, for consecutive positions."""
    rows = causal_lm(pair.policy).get_output_embeddings().weight.shape[0]
    positions = max(1, _CHUNK_ELEMENTS // int(rows))
    parts = (each.split(positions) for each in (policy, reference))
    for first, second in zip(*parts, strict=True):
        with scoring(pair.policy) as model:
            logits = Head.of(causal_lm(model)).logits(first)
        with scoring(reference_of(pair)) as model:
            ref_logits = Head.of(causal_lm(model)).logits(second).to(logits.device)
        yield logits, ref_logits


def _read_(logits: Tensor, ref_logits: Tensor, target: Tensor) -> tuple[StateFacts, Tensor, Tensor]:
    """Facts [n], and both models' logits [n, V] turned into log-probabilities in place.

    target: [n, 1]
    """
    taken = logits.gather(1, target)
    ours, theirs = _Softmax.of_(logits), _Softmax.of_(ref_logits)
    entropy, ref_entropy = ours.entropy(logits), theirs.entropy(ref_logits)
    # The same operations on both sides: equal models have log-ratios of exactly zero.
    logps, ref_logps = logits.sub_(ours.log_total), ref_logits.sub_(theirs.log_total)
    shared = min(logps.shape[1], ref_logps.shape[1])
    ratios = logps[:, :shared] - ref_logps[:, :shared]
    ref_mean = _expectation(theirs.weights[:, :shared], ratios) / theirs.total
    policy_mean = _expectation(ours.weights[:, :shared], ratios) / ours.total
    # A second moment about the mean keeps its digits where the models are nearly equal.
    squares = ratios.sub_(ref_mean).square_()
    variance = _expectation(theirs.weights[:, :shared], squares) / theirs.total
    variance = variance.where(ref_mean.isfinite(), torch.inf)
    columns = (
        logps.gather(1, target),
        ref_logps.gather(1, target),
        entropy,
        ref_entropy,
        -ref_mean,
        policy_mean,
        variance,
        ours.greatest + ours.log_total,
        taken,
    )
    return StateFacts(*(column.squeeze(1) for column in columns)), logps, ref_logps


@dataclass(frozen=True, eq=False)
class _Softmax:
    """Of n rows: their greatest logit, total and log_total of exp(logit - greatest), each [n, 1],
    and these exponentials themselves, [n, V]."""

    greatest: Tensor
    weights: Tensor
    total: Tensor
    log_total: Tensor

    @classmethod
    def of_(cls, logits: Tensor) -> "_Softmax":
        """Read rows of logits, which are shifted in place to a greatest of 0."""
        greatest = logits.amax(1, keepdim=True)
        weights = logits.sub_(greatest).exp()
        total = weights.sum(1, keepdim=True)
        return cls(greatest, weights, total, total.log())

    def entropy(self, shifted: Tensor) -> Tensor:
        """[n, 1] nats, of the rows that :meth:`of_` has shifted."""
        return self.log_total - _expectation(self.weights, shifted) / self.total


def _expectation(weights: Tensor, values: Tensor) -> Tensor:
    """[n, 1] sums of weights times values, where a weight of 0 silences a value that is none."""
    sums = torch.linalg.vecdot(weights, values)[:, None]
    if bool(sums.isnan().any()):
        sums = torch.where(weights > 0, weights * values, 0.0).sum(1, keepdim=True)
    return sums


def _candidates(logps: Tensor, ref_logps: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """Rows and tokens [M] each, the best of every row among them."""
    shared = min(logps.shape[1], ref_logps.shape[1])
    logps, ref_logps = logps[:, :shared], ref_logps[:, :shared]
    if search.min_probability > 0:
        # At most 1 / min_probability tokens of a row: nothing has to be ranked over all of it.
        row, token = (logps >= math.log(search.min_probability)).nonzero(as_tuple=True)
        return row, token
    ratios = logps - ref_logps
    # A token that both models exclude has no log-ratio.
    ratios.masked_fill_(none := ratios.isnan(), -torch.inf)
    best = ratios.topk(min(search.k, shared), dim=1).indices
    row, place = (~none.gather(1, best)).nonzero(as_tuple=True)
    return row, best[row, place]


def _listed(
    tokenizer: PreTrainedTokenizerBase, best: BestTokens, rows: int
) -> list[list[Alternative]]:
    listed: list[list[Alternative]] = [[] for _ in range(rows)]
    columns = (best.row, best.token_id, best.logp, best.ref_logp, best.reward)
    for row, token, *scores in zip(*(column.tolist() for column in columns), strict=True):
        listed[row].append(Alternative(token, token_text(tokenizer, token), *scores))
    return listed


def _joined(parts: Sequence[StateFacts]) -> StateFacts:
    columns = ([getattr(part, field.name) for part in parts] for field in fields(StateFacts))
    return StateFacts(*(torch.cat(column).cpu() for column in columns))
