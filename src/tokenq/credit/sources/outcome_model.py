"""Token rewards of a reward model of whole responses: what each further token adds to its score."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenq.credit.sources.language_model import (
    check_one_turn,
    encoded_rows,
    text_of,
    token_scores,
)
from tokenq.credit.sources.scores import RowError, TokenScores
from tokenq.data.encoding import EncodedResponse
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.outcome import load_outcome_model
from tokenq.models.reference import scoring

logger = logging.getLogger(__name__)

_PROBE_LENGTH = 12


def open_outcome_model(
    name: str | Path,
    *,
    label: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> "OutcomeModel | OutcomeEncoder":
    """The source for a reward model by name: read in one forward, or every prefix by itself.

    label: of a classifier with several labels, the one whose log-odds are the reward

    Raises UserError for a checkpoint without a trained head (see :func:`load_outcome_model`).
    """
    model, tokenizer = load_outcome_model(name, device=device, dtype=dtype)
    reader = OutcomeModel if continues_text(model) else OutcomeEncoder
    return reader(model, tokenizer, label=label, name=f"outcome model ({name})")


def continues_text(model: nn.Module) -> bool:
    """Whether the model scores every prefix of a text in one forward, with its `score` head.

    The head of a causal model reads the state of a text's last token, and the states of all its
    prefixes are there at once. A probe of random tokens decides: the head at every position must
    agree with the model's own answer to every prefix, to 1e-3 of its size (5e-2 in half
    precision). Models that look ahead, or take their answer from elsewhere, do not.
    """
    inner = causal_lm(model)
    if not isinstance(getattr(inner, "score", None), nn.Module) or inner.base_model is inner:
        return False
    config = inner.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(int(config.vocab_size), (_PROBE_LENGTH,), generator=generator).tolist()
    if config.pad_token_id is not None:
        ids[-1] = config.pad_token_id
    with scoring(model):
        [every] = _at_every_position(model, [ids])
        alone = torch.cat(_of_whole_texts(model, [ids[:end] for end in range(1, len(ids) + 1)]))
    tolerance = 5e-2 if torch.finfo(every.dtype).bits <= 16 else 1e-3
    every, alone = every.double(), alone.double()
    return bool((every - alone).norm() <= tolerance * alone.norm())


@dataclass(frozen=True)
class _Head:
    """How a reward is read off the labels' logits: the only one, or the log-odds of one of many."""

    labels: int
    label: int | None

    def __post_init__(self) -> None:
        if self.label is None and self.labels > 1:
            raise UserError(
                f"the model has {self.labels} labels; accepted: label=, 0 to {self.labels - 1}, "
                "the one whose log-odds are the reward"
            )
        if self.label is not None and not 0 <= self.label < self.labels:
            raise UserError(f"label is {self.label}; accepted: 0 to {self.labels - 1}")

    def reward(self, logits: Tensor) -> Tensor:
        """[n] from logits [n, labels]."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.labels == 1:
            return logits[:, 0]
        others = [label for label in range(self.labels) if label != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(-1)


class OutcomeModel:
    """r(x, y_<=t) - r(x, y_<t) of a causal reward model, all prefixes in one forward.

    The model is a sequence classifier on a causal backbone: `r` is its `score` head on the state of
    the last token that is not padding, as the model itself takes it. So where the padding token is
    also the end token, the end scores 0: the model never looks at it. Prefixes other than whole
    responses are texts that the model was not trained on. The scores of a response add up to
    r(x, y) - r(x), its own score less that of the prompt alone.

    label: of a classifier with several labels, the one whose log-odds are the reward

    Raises UserError for a model that does not score prefixes in one forward
    (:func:`continues_text`); :class:`OutcomeEncoder` reads those.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        name: str = "outcome model",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        if not continues_text(model):
            raise UserError(
                f"{name}: its head does not score every prefix in one forward; accepted: a "
                "sequence classifier on a causal backbone (OutcomeEncoder re-scores prefixes)"
            )
        self.name = name
        self.model = model
        self._tokenizer = tokenizer
        self._head = _Head(int(causal_lm(model).config.num_labels or 1), label)
        self._token_budget = token_budget

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: the model's own."""
        longest = _longest(self.model)
        rows = encoded_rows(self._tokenizer, prompts, responses, longest)
        texts = [[*row.prompt_ids, *row.response_ids] for row in rows]
        scores: list[Tensor] = [torch.empty(0)] * len(rows)
        with scoring(self.model):
            for batch in _batches(texts, self._token_budget):
                logits = _at_every_position(self.model, [texts[number] for number in batch])
                for number, each in zip(batch, logits, strict=True):
                    from_prompt = each[len(rows[number].prompt_ids) - 1 :]
                    scores[number] = self._head.reward(from_prompt).diff()
        return token_scores(rows, responses, scores, self.name, "reward")


class OutcomeEncoder:
    """r(x, y_<=t) - r(x, y_<t) of a reward model that has to read every prefix by itself.

    For bidirectional encoders. Prompt and response are its two texts, joined by the tokenizer; a
    prefix of the response is cut by tokens and closed as the whole is. The closing tokens are part
    of every prefix, so that there is no score of an end; the scores add up to r(x, y) less the
    score of an empty response. A response of T tokens costs T + 1 forwards, batched.

    label: of a classifier with several labels, the one whose log-odds are the reward
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        name: str = "outcome model",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self.name = name
        self.model = model
        self._tokenizer = tokenizer
        self._head = _Head(int(causal_lm(model).config.num_labels or 1), label)
        self._token_budget = token_budget

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: the model's own.

        Raises RowError for prompts that are messages: an encoder has no turns.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
        pairs = zip(prompts, responses, strict=True)
        texts = [self._encode(number, *pair) for number, pair in enumerate(pairs)]
        with scoring(self.model):
            scores = [self._rewards(text).diff() for text in texts]
        rows = [EncodedResponse(text.ids, text.response_ids, False, text.offsets) for text in texts]
        return token_scores(rows, responses, scores, self.name, "reward")

    def _rewards(self, text: "_TwoTexts") -> Tensor:
        """[T + 1] rewards of the prefixes with 0 to T tokens of the response."""
        prefixes = list(text.prefixes())
        rewards: list[Tensor] = [torch.empty(0)] * len(prefixes)
        for batch in _batches([ids for ids, _ in prefixes], self._token_budget):
            ids, types = ([prefixes[at][side] for at in batch] for side in (0, 1))
            for at, logits in zip(batch, _of_whole_texts(self.model, ids, types), strict=True):
                rewards[at] = self._head.reward(logits)
        return torch.cat(rewards)

    def _encode(self, number: int, prompt: str | Messages, response: str | Messages) -> "_TwoTexts":
        if not self._tokenizer.is_fast:
            raise UserError(
                f"the tokenizer of {self.name} gives no character offsets; accepted: a fast "
                "tokenizer (tokenizer.json)"
            )
        check_one_turn(number, response)
        if not isinstance(prompt, str):
            raise RowError(
                number, f"the prompt is messages, {self.name} reads two texts; accepted: text"
            )
        encoding = self._tokenizer(
            prompt, text_of(response), return_offsets_mapping=True, return_token_type_ids=True
        )
        sides = encoding.sequence_ids()
        place = [at for at, side in enumerate(sides) if side == 1]
        if not place:
            raise RowError(number, "the response has no token; accepted: a text that is not empty")
        longest = _longest(self.model)
        if longest is not None and len(sides) > longest:
            raise RowError(
                number,
                f"prompt and response have {len(sides)} tokens; accepted: {longest}, what the "
                "model reads",
            )
        return _TwoTexts(
            ids=encoding["input_ids"],
            types=encoding["token_type_ids"],
            response=range(place[0], place[-1] + 1),
            offsets=[encoding["offset_mapping"][at] for at in place],
        )


@dataclass(frozen=True)
class _TwoTexts:
    """A joined prompt and response: ids and types of all tokens, where the response's are."""

    ids: list[int]
    types: list[int]
    response: range
    offsets: list[tuple[int, int]]

    @property
    def response_ids(self) -> list[int]:
        return self.ids[self.response.start : self.response.stop]

    def prefixes(self) -> Iterator[tuple[list[int], list[int]]]:
        """Ids and types with the first 0, 1, ... tokens of the response, closed as the whole is."""
        for end in range(self.response.start, self.response.stop + 1):
            yield tuple(  # type: ignore[misc]
                [*each[:end], *each[self.response.stop :]] for each in (self.ids, self.types)
            )


def _at_every_position(model: nn.Module, texts: Sequence[list[int]]) -> list[Tensor]:
    """The head's logits [T_i, labels] after every token of each text, in one forward.

    Rows are padded on the right, where a causal model does not look.
    """
    inner = causal_lm(model)
    ids, mask = _padded(inner, texts)
    states = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    logits = inner.score(states.last_hidden_state)  # type: ignore[operator]
    pad = inner.config.get_text_config().pad_token_id
    found = []
    for row, text in zip(logits, texts, strict=True):
        at = torch.arange(len(text), device=row.device)
        if pad is not None:
            # The model takes the last token that is not padding, or the first where all are.
            real = torch.tensor([token != pad for token in text], device=row.device)
            at = (at * real).cummax(0).values
        found.append(row[at])
    return found


def _of_whole_texts(
    model: nn.Module, texts: Sequence[list[int]], types: Sequence[list[int]] | None = None
) -> list[Tensor]:
    """The model's own logits [1, labels] of each text; `types` tell two texts apart."""
    inner = causal_lm(model)
    found: list[Tensor] = []
    for batch in [range(len(texts))] if _can_pad(inner) else [[at] for at in range(len(texts))]:
        ids, mask = _padded(inner, [texts[at] for at in batch])
        options = {}
        if types is not None and getattr(inner.config, "type_vocab_size", 0) > 1:
            rows = [torch.tensor(types[at]) for at in batch]
            options["token_type_ids"] = pad_sequence(rows, batch_first=True).to(ids.device)
        found += model(input_ids=ids, attention_mask=mask, **options).logits.split(1)
    return found


def _can_pad(model: PreTrainedModel) -> bool:
    return model.config.get_text_config().pad_token_id is not None


def _padded(model: PreTrainedModel, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, [B, T], padded on the right, where the model's weights are."""
    pad = model.config.get_text_config().pad_token_id or 0
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones(len(text), dtype=torch.long) for text in texts], True)
    return ids.to(model.device), mask.to(model.device)


def _batches(texts: Sequence[list[int]], token_budget: int) -> Iterator[list[int]]:
    """Numbers of texts of similar lengths, at most `token_budget` padded tokens together."""
    batch: list[int] = []
    for number in sorted(range(len(texts)), key=lambda at: len(texts[at])):
        if batch and len(texts[number]) * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _longest(model: nn.Module) -> int | None:
    config = causal_lm(model).config.get_text_config()
    longest: int | None = getattr(config, "max_position_embeddings", None)
    # RoBERTa counts positions from behind its padding token's.
    if longest is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        longest -= int(config.pad_token_id) + 1
    return longest
