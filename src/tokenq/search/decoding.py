"""What every way of searching has in common: where texts end, what may not be said, how prompts
are taken together, and who is told of progress."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, Protocol, Self, TypedDict, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from tokenq.errors import UserError
from tokenq.models.branching.branches import Branches, Guidance

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Progress:
    """What a search has found so far for one prompt.

    prompt:    the prompt's place among the prompts that were given
    step:      tokens, or rounds of the search, until now
    token_ids: the best response so far, not yet ended as a rule
    text:      its text, or None without a tokenizer
    score:     its score so far
    """

    prompt: int
    step: int
    token_ids: list[int]
    text: str | None
    score: float


class DecodingOptions(TypedDict, total=False):
    """Keyword arguments that every search takes; see :class:`Decoding`."""

    min_new_tokens: int
    eos_token_id: int | Sequence[int] | None
    stop_strings: str | Sequence[str]
    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: Sequence[Sequence[int]]
    logits_processor: Sequence[LogitsProcessor]
    batch_size: int
    on_step: Callable[[Progress], None] | None
    trace: bool
    guidance: Guidance | None


@dataclass(frozen=True)
class Decoding:
    """Options of every search. Names and meanings are those of `transformers.GenerationConfig`.

    max_new_tokens:       most tokens of a response, the end token included
    min_new_tokens:       no end token before so many
    eos_token_id:         tokens that end a response; None: the model's own; (): none
    stop_strings:         texts that end a response; they stay in its tokens, not in its text
    repetition_penalty:   above 1: tokens of the prompt and the response become less likely
    no_repeat_ngram_size: no sequence of so many tokens twice; 0: no limit
    bad_words_ids:        sequences of tokens that may not appear; an end token alone always may
    logits_processor:     any further processors of transformers, called last. As in its beam
                          search, and here in every search, processors see log-probabilities
    batch_size:           prompts that are searched together: memory against speed
    on_step:              called after every step with the best so far of each prompt
    trace:                keep the tree that was searched, for a picture
    guidance:             a rule that makes the distribution that is searched, see
                          :mod:`tokenq.search.guidance`; None: the policy's own

    Raises UserError for numbers out of range.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    logits_processor: Sequence[LogitsProcessor] = field(default_factory=tuple)
    batch_size: int = 16
    on_step: Callable[[Progress], None] | None = None
    trace: bool = False
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("min_new_tokens", 0), ("batch_size", 1)):
            whole(name, getattr(self, name), least)
        whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens is {self.min_new_tokens}, max_new_tokens {self.max_new_tokens}; "
                "accepted: at most as many"
            )
        if not (is_number(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty!r}; accepted: above 0 (1: none)"
            )
        _check_bad_words(self.bad_words_ids)
        _check_stops(self.stop_strings)
        if self.on_step is not None and not callable(self.on_step):
            raise UserError(f"on_step is {self.on_step!r:.60}; accepted: a function of a Progress")
        if self.guidance is not None and not hasattr(self.guidance, "models"):
            raise UserError(
                f"guidance is {self.guidance!r:.60}; accepted: ProxyTuning, AlignmentAware, "
                "ValueGuided, RewardGuided, or an object like them"
            )
        given = self.logits_processor
        if given is not None and not (isinstance(given, Sequence) and all(map(callable, given))):
            raise UserError(
                f"logits_processor is {given!r:.60}; accepted: a list of processors of transformers"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        given = self.stop_strings
        return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True)
class Rules:
    """A :class:`Decoding` for one model: what ends a response, and what may come next.

    eos:       the end tokens
    tokenizer: to find stop strings; needed only for these
    """

    decoding: Decoding
    eos: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        if self.decoding.stops and self.tokenizer is None:
            raise UserError("stop_strings need a tokenizer; accepted: a pair that has one")

    @cached_property
    def processors(self) -> LogitsProcessorList:
        """The processors that the options ask for; the user's own come after them."""
        given = self.decoding
        chosen: list[Any] = []
        if given.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(given.repetition_penalty))
        if given.no_repeat_ngram_size:
            chosen.append(NoRepeatNGramLogitsProcessor(given.no_repeat_ngram_size))
        banned = [list(each) for each in given.bad_words_ids if list(each) not in self._ends]
        if banned:
            chosen.append(NoBadWordsLogitsProcessor(banned))
        return LogitsProcessorList(chosen)

    def finish(self, token_ids: Sequence[int]) -> Finish | None:
        """Why a response ends with its last token, or None if it goes on; its earlier tokens, asked
        in their time, did not end it."""
        if token_ids[-1] in self.eos:
            return "eos"
        if self.decoding.stops and self._stops(token_ids):
            return "stop"
        return "length" if len(token_ids) >= self.decoding.max_new_tokens else None

    def text(self, token_ids: Sequence[int]) -> str | None:
        """The response as text, without special tokens and without a stop string at its end."""
        if self.tokenizer is None:
            return None
        text = self._decoded(token_ids)
        at = self._stopped_at(text)
        return text if at is None else text[:at]

    def allowed(self, branches: Branches, nodes: Tensor, logps: Tensor) -> Tensor:
        """Process log-probabilities [R, V] of what follows `nodes` [R]; the given ones stay."""
        decoding = self.decoding
        if not (self.processors or decoding.min_new_tokens or decoding.logits_processor):
            return logps
        logps = logps.clone()
        _process(branches, nodes, logps, self.processors)
        if self.eos and decoding.min_new_tokens:
            young = (branches.tree.depth(nodes) < decoding.min_new_tokens).to(logps.device)
            ends = torch.tensor(self.eos, device=logps.device)
            logps[:, ends] = logps[:, ends].masked_fill(young[:, None], -torch.inf)
        _process(branches, nodes, logps, LogitsProcessorList(decoding.logits_processor or ()))
        return logps

    @property
    def _ends(self) -> list[list[int]]:
        return [[token] for token in self.eos]

    def _stops(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token; only tokens that hold the last character
        of one make it worth reading the whole text."""
        last = token_ids[-1]
        if last not in self._stopping:
            # Twice, as some tokenizers drop a space where a text begins.
            text = self._decoded([last, last])
            ends = {stop[-1] for stop in self.decoding.stops}
            self._stopping[last] = "\ufffd" in text or any(end in text for end in ends)
        return self._stopping[last] and self._stopped_at(self._decoded(token_ids)) is not None

    @cached_property
    def _stopping(self) -> dict[int, bool]:
        """Token -> whether a stop string can end in it."""
        return {}

    def _decoded(self, token_ids: Sequence[int]) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _stopped_at(self, text: str) -> int | None:
        found = [text.find(stop) for stop in self.decoding.stops]
        return min((at for at in found if at >= 0), default=None)


def _process(
    branches: Branches, nodes: Tensor, logps: Tensor, processors: LogitsProcessorList
) -> None:
    """Change logps [R, V] in place; rows of equal length go to the processors together."""
    if not processors:
        return
    tree = branches.tree
    lengths = tree.prompt_lengths[tree.prompt(nodes)] + tree.depth(nodes)
    for length in lengths.unique():
        rows = (lengths == length).nonzero().squeeze(-1)
        ids = [tree.sequence(node) for node in nodes[rows].tolist()]
        at = rows.to(logps.device)
        given: Any = torch.tensor(ids, device=logps.device)
        logps[at] = processors(given, logps[at])


Asked = Mapping[tuple[int, ...], Any]
"""Token ids of a prompt -> the prompt as it was given."""


@runtime_checkable
class RuledGuidance(Protocol):
    """A guidance that must know how tokens read and where responses end."""

    @property
    def models(self) -> Sequence[str]:
        """The names of the models that it looks at."""
        ...

    def under(self, rules: Rules, asked: Asked) -> Self:
        """The same guidance for one run of a search."""
        ...

    def __call__(self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        ...


def _check_bad_words(given: Any) -> None:
    known = isinstance(given, Sequence) and all(isinstance(each, Sequence) for each in given)
    if not known or not all(isinstance(token, Integral) for each in given for token in each):
        raise UserError(
            f"bad_words_ids is {given!r:.60}; accepted: a list of lists of tokens, such as [[5, 6]]"
        )
    if any(not each for each in given):
        raise UserError("bad_words_ids holds an empty sequence; accepted: at least one token")


def _check_stops(given: Any) -> None:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(each, str) for each in texts):
        raise UserError(f"stop_strings is {given!r:.60}; accepted: a text, or a list of texts")
    if any(not each for each in texts):
        raise UserError("stop_strings holds an empty text; accepted: at least one character")


def is_number(value: Any) -> bool:
    """Whether an option is a finite number."""
    return isinstance(value, Real) and math.isfinite(value)


def at_least(name: str, value: float, least: float) -> None:
    """Raise UserError where an option is smaller than it may be."""
    if not isinstance(value, Real) or not least <= value < math.inf:
        raise UserError(f"{name} is {value!r}; accepted: {least} or more")


def whole(name: str, value: int, least: int) -> None:
    """Raise UserError where an option is no whole number, or smaller than it may be."""
    if not isinstance(value, Integral):
        raise UserError(f"{name} is {value!r}; accepted: a whole number, {least} or more")
    at_least(name, value, least)
