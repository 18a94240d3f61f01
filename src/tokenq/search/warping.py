"""Laws to draw the next token from: temperature, top-k, top-p, min-p, as `transformers` has them.

Where the likeliest tokens already hold the nucleus, only these are sorted; the law is the same.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper
from transformers import TopPLogitsWarper as FullTopP

from tokenq.errors import UserError
from tokenq.search.decoding import is_number, whole

_SORTED = 1024
"""Likeliest tokens in which the nucleus is looked for before the whole vocabulary is sorted."""


@dataclass(frozen=True)
class Warping:
    """What is done to the law of the next token before one is drawn, in this order.

    temperature: log-probabilities are divided by it; towards 0 the likeliest token is sure
    top_k:       only the k likeliest tokens; 0: all
    top_p:       only the likeliest tokens that together reach this probability; 1: all
    min_p:       only tokens of at least so many times the probability of the likeliest; 0: all

    Raises UserError for numbers out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and self.temperature > 0):
            raise UserError(
                f"temperature is {self.temperature!r}; accepted: above 0 (greedy takes the "
                "likeliest)"
            )
        whole("top_k", self.top_k, 0)
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UserError(f"top_p is {self.top_p!r}; accepted: above 0, up to 1 (1: all tokens)")
        if not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise UserError(f"min_p is {self.min_p!r}; accepted: 0 to 1 (0: all tokens)")

    def __call__(self, logps: Tensor) -> Tensor:
        """Return the warped log-probabilities [R, V], given and returned up to a number a row.

        The greatest of each row is 0; -inf is what cannot be drawn.
        """
        # Away from 0, a small temperature would make every log-probability -inf.
        warped = logps - logps.amax(-1, keepdim=True)
        for warper in self._warpers:
            warped = warper(None, warped)
        return warped

    @cached_property
    def _warpers(self) -> list[Any]:
        chosen: list[Any] = []
        if self.temperature != 1:
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(_TopP(self.top_p))
        if self.min_p > 0:
            chosen.append(MinPLogitsWarper(self.min_p))
        return chosen


class _TopP:
    """`TopPLogitsWarper` without a sort of the whole vocabulary for every row."""

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p
        self.full = FullTopP(top_p)

    def __call__(self, input_ids: None, scores: Tensor) -> Tensor:
        """scores [R, V], log-probabilities up to a number a row -> the same, -inf outside."""
        count = min(_SORTED, scores.shape[-1])
        best, tokens = scores.topk(count, dim=-1)
        chances = (best - scores.logsumexp(-1, keepdim=True)).exp()
        reached = chances.cumsum(-1)
        inside = reached - chances < self.top_p
        inside[:, 0] = True
        warped = torch.full_like(scores, -torch.inf)
        warped.scatter_(1, tokens, best.masked_fill(~inside, -torch.inf))
        wider = (reached[:, -1] < self.top_p) & (count < scores.shape[-1])
        if bool(wider.any()):
            warped[wider] = self.full(None, scores[wider])
        return warped
