"""What a model says of every token of the test texts: the numbers that signals are made from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenq.credit.sources.gradient_input import gradient_products
from tokenq.credit.vocabulary import sweep
from tokenq.data.encoding import EncodedResponse
from tokenq.models import AdapterOff
from tokenq.models.forward import causal_lm, response_states
from tokenq.models.head import Head, token_logps_of
from tokenq.models.packing import Pack, pack_trees
from tokenq.models.pair import Pair
from tokenq.reproduce.adapter_training import TOKEN_BUDGET
from tokenq.reproduce.frozen_trunk import FrozenTrunk

Facts = dict[str, list[list[float]]]
"""By name, [T_i] values of each text's tokens, in the order of the texts; nats, beta not included.

The names are those of `credit.vocabulary.StateFacts`.
"""

PAIRED = ("logps", "ref_logps", "entropy", "divergence", "policy_divergence", "ratio_variance")
"""What is kept of a trained policy and its reference."""

_DIGITS = 6


@dataclass(frozen=True)
class Reading:
    """Test texts as packed trees: texts of one prompt share it."""

    encoded: Sequence[EncodedResponse]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of each text's prompt."""
        return [each.prompt_ids for each in self.encoded]

    @property
    def responses(self) -> list[list[int]]:
        """Token ids of each text, its end token included."""
        return [each.response_ids for each in self.encoded]

    def after(self, prompt_ids: list[int]) -> "Reading":
        """The same tokens of the same texts after another prompt."""
        return Reading([replace(each, prompt_ids=prompt_ids) for each in self.encoded])

    @cached_property
    def packs(self) -> list[Pack]:
        """The forwards that it takes."""
        return pack_trees(self.prompts, self.responses, TOKEN_BUDGET)

    @torch.no_grad()
    def states(self, model: nn.Module) -> list[Tensor]:
        """[M, H] of each pack: the states from which a model predicts the responses' tokens."""
        return [response_states(causal_lm(model), pack) for pack in self.packs]

    def by_text(self, values: Sequence[Tensor]) -> list[list[float]]:
        """[M] values of each pack, as rounded lists in the order of the texts."""
        rows: list[list[float]] = [[] for _ in self.encoded]
        for pack, own in zip(self.packs, values, strict=True):
            parts = pack.for_every_row(own).split(list(pack.lengths))
            for row, part in zip(pack.rows, parts, strict=True):
                rows[row] = rounded(part)
        return rows


def read_start(model: nn.Module, reading: Reading) -> Facts:
    """`logps` and `entropy` of all texts under one model."""
    states = reading.states(model)
    head = Head.of(causal_lm(model))
    with torch.no_grad():
        scores = [
            token_logps_of(head, own, pack.targets)
            for own, pack in zip(states, reading.packs, strict=True)
        ]
    return {
        name: reading.by_text([getattr(each, name) for each in scores])
        for name in ("logps", "entropy")
    }


def read_pair(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    references: Sequence[Tensor],
) -> Facts:
    """`PAIRED` and `taken` of all texts, in one sweep over both heads.

    references: `reading.states` of the reference, whose head the policy shares
    """
    pair = Pair(policy, AdapterOff(policy), tokenizer, "policy", "reference")
    parts = [
        sweep(pair, states, reference, pack.targets, None)[0]
        for pack, states, reference in zip(
            reading.packs, reading.states(policy), references, strict=True
        )
    ]
    return {
        name: reading.by_text([getattr(each, name) for each in parts])
        for name in (*PAIRED, "taken")
    }


def rounded(values: Tensor) -> list[float]:
    """JSON numbers with as many significant digits as parts keep."""
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def gradient_input(model: nn.Module, reading: Reading) -> list[list[float]]:
    """Gradient times input of each text's log-probability, [T_i], nats.

    d log pi(y | x) / d e_t . e_t with e_t the input embedding of the response's t-th token, through
    all layers: what a first-order expansion says the whole text's log-probability owes to that
    token. It counts what the token does to those behind it, not how likely the token itself was;
    the last token, which is no input, has 0.
    """
    with _differentiable_trunk(causal_lm(model)):
        found = gradient_products(
            model, reading.prompts, reading.responses, token_budget=TOKEN_BUDGET
        )
    return [rounded(each) for each in found]


@contextmanager
def _differentiable_trunk(inner: PreTrainedModel) -> Iterator[None]:
    trunks = [module for module in inner.modules() if isinstance(module, FrozenTrunk)]
    for trunk in trunks:
        trunk.differentiable = True
    try:
        yield
    finally:
        for trunk in trunks:
            trunk.differentiable = False
