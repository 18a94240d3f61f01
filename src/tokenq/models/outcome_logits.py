"""What a reward model says of tokenised texts: of whole ones, of every prefix in one forward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.forward import causal_lm
from tokenq.models.reference import scoring

_PROBE_LENGTH = 12


@dataclass(frozen=True)
class RewardHead:
    """How a reward is read off the labels' logits: the only one, or the log-odds of one of many.

    label: the one whose log-odds are the reward. Raises UserError where it must be named and is not
    """

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
        [every] = logits_at_every_position(model, [ids])
        alone = torch.cat(
            logits_of_whole_texts(model, [ids[:end] for end in range(1, len(ids) + 1)])
        )
    tolerance = 5e-2 if torch.finfo(every.dtype).bits <= 16 else 1e-3
    every, alone = every.double(), alone.double()
    return bool((every - alone).norm() <= tolerance * alone.norm())


def logits_at_every_position(model: nn.Module, texts: Sequence[list[int]]) -> list[Tensor]:
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


def logits_of_whole_texts(
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


def length_batches(texts: Sequence[list[int]], token_budget: int) -> Iterator[list[int]]:
    """Numbers of texts of similar lengths, at most `token_budget` padded tokens together."""
    batch: list[int] = []
    for number in sorted(range(len(texts)), key=lambda at: len(texts[at])):
        if batch and len(texts[number]) * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def longest_text(model: nn.Module) -> int | None:
    """The most tokens that the model reads, or None where it does not say."""
    config = causal_lm(model).config.get_text_config()
    longest: int | None = getattr(config, "max_position_embeddings", None)
    # RoBERTa counts positions from behind its padding token's.
    if longest is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        longest -= int(config.pad_token_id) + 1
    return longest
