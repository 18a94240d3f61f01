"""Responses of a probe: drawing them, and what their tokens alone tell."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenq.models.forward import causal_lm
from tokenq.models.packing import Ids
from tokenq.models.reference import AdapterOff
from tokenq.monitor.readings import HELD_OUT, Array, ProbePair, ProbeResponse
from tokenq.search.sampling import sample

Embed = Callable[[Sequence[Ids]], Tensor]
"""Texts as token ids -> [n, D] one vector each, the nearer the more alike in meaning."""


@dataclass(frozen=True)
class Drawing:
    """How responses are drawn, at temperature 1.

    new_tokens:   most tokens of a response
    end_ids:      tokens that end one
    token_budget: tokens of prompts and responses that are drawn together; bounds memory
    """

    new_tokens: int
    end_ids: tuple[int, ...]
    seed: int
    token_budget: int


def draw(
    model: nn.Module | AdapterOff, pairs: Sequence[ProbePair], count: int, law: Drawing
) -> list[ProbeResponse]:
    """Let `model` write `count` responses.

    They answer the held-out prompts in turn, or the training prompts where there are no others;
    prompts that leave no room for so many tokens are passed over. What is drawn depends on the
    seed, the model and the prompts.
    """
    asked = _prompts(model, pairs, count, law.new_tokens)
    if not asked:
        return []
    longest = max(len(pairs[number].prompt) for number in asked) + law.new_tokens
    drawn = sample(
        model,
        [pairs[number].prompt for number in asked],
        1,
        law.new_tokens,
        seed=law.seed,
        eos_token_id=law.end_ids,
        batch_size=max(1, law.token_budget // longest),
    )
    results = [rows[0] for rows in drawn]
    return [
        ProbeResponse(number, list(result.token_ids), result.finish == "eos")
        for number, result in zip(asked, results, strict=True)
    ]


def seed_of(seed: int, step: int) -> int:
    """A seed for the samples of a step."""
    digest = hashlib.sha256(f"samples {seed} {step}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def context_of(model: nn.Module | AdapterOff) -> int | None:
    """Most tokens that a model reads, or None if it does not say."""
    inner = causal_lm(model.peft_model if isinstance(model, AdapterOff) else model)
    config: Any = inner.config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


def repetition(ids: Ids) -> float:
    """Share in [0, 1] of the 3-grams of tokens that occurred before; 0 for fewer than 3 tokens."""
    grams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class WordVectors:
    """Embeds texts without their word order: the mean of their tokens' output embeddings.

    Embeddings are taken at length 1 and weigh log((1 + D) / (1 + d)) where d of the D `texts` have
    the token: what stands in all of them says nothing.
    """

    def __init__(self, table: Tensor, texts: Sequence[Ids]) -> None:
        self._table = table
        self._total = len(texts)
        self._counts = Counter(token for text in texts for token in set(text))

    def __call__(self, texts: Sequence[Ids]) -> Tensor:
        """[n, H] in fp32; 0 for a text of which no token weighs anything."""
        return torch.stack([self._vector(list(text)) for text in texts])

    def _vector(self, text: list[int]) -> Tensor:
        rows = self._table[torch.tensor(text, device=self._table.device)].float().cpu()
        weights = [np.log((1 + self._total) / (1 + self._counts[token])) for token in text]
        directions = torch.nn.functional.normalize(rows, dim=-1)
        return (directions * torch.tensor(weights, dtype=torch.float32)[:, None]).mean(0)


def likeness(embed: Embed, pairs: Sequence[ProbePair], responses: Sequence[ProbeResponse]) -> Array:
    """[M] cosine of each response with its pair's chosen answer, less that with the rejected one.

    Vectors are taken from the mean of all answers of `pairs`: what is common to all texts would
    make all cosines alike.
    """
    if not responses:
        return np.empty(0)
    answers = embed([answer for pair in pairs for answer in (pair.chosen, pair.rejected)]).double()
    common = answers.mean(0)
    rows = 2 * torch.tensor([each.pair for each in responses])
    ours = embed([each.ids for each in responses]).double() - common
    sides = torch.cosine_similarity(
        ours[None], answers[torch.stack([rows, rows + 1])] - common, dim=-1
    )
    return (sides[0] - sides[1]).cpu().numpy()


def _prompts(
    model: nn.Module | AdapterOff, pairs: Sequence[ProbePair], count: int, new_tokens: int
) -> list[int]:
    """Numbers of the pairs whose prompts are answered: each in turn, `count` in all."""
    held_out = [number for number, pair in enumerate(pairs) if pair.source == HELD_OUT]
    limit = context_of(model)
    fitting = [
        number
        for number in held_out or range(len(pairs))
        if limit is None or len(pairs[number].prompt) + new_tokens <= limit
    ]
    return [fitting[place % len(fitting)] for place in range(count)] if fitting else []
