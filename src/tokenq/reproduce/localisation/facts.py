"""What a model says of every token of the test texts: the numbers that signals are made from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.data.encoding import EncodedResponse
from tokenq.models.forward import causal_lm, reference_predictions
from tokenq.models.head import NO_EXTRAS, Extras, Head, Predictions, token_logps_of
from tokenq.models.packing import Pack, pack_trees
from tokenq.reproduce.adapter_training import TOKEN_BUDGET
from tokenq.reproduce.frozen_trunk import FrozenTrunk

Facts = dict[str, list[list[float]]]
"""By name, [T_i] values of each text's tokens, in the order of the texts.

logps, ref_logps: log pi(y_t | s_t) of policy and reference, nats
entropy:          of the policy's next-token distribution, nats
divergence:       KL(pi_ref(. | s_t) || pi(. | s_t)), nats
taken:            the policy's raw logit of the token
"""

DIGITS = 5


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

    @cached_property
    def packs(self) -> list[Pack]:
        """The forwards that it takes."""
        return pack_trees(self.prompts, self.responses, TOKEN_BUDGET)

    def predictions(self, model: nn.Module) -> list[Predictions]:
        """What a model predicts everywhere, as a reference for :func:`read`; no gradient."""
        return [reference_predictions(model, pack) for pack in self.packs]


@torch.no_grad()
def read(
    model: nn.Module, reading: Reading, references: Sequence[Predictions] | None = None
) -> Facts:
    """Facts of all texts under `model`; `ref_logps` and `divergence` only with `references`."""
    names = {"logps": "logps", "entropy": "entropy", "taken": "taken"}
    if references is not None:
        names |= {"ref_logps": "ref_logps", "divergence": "kl"}
    facts: Facts = {name: [[] for _ in reading.encoded] for name in names}
    for number, pack in enumerate(reading.packs):
        extras = NO_EXTRAS if references is None else Extras(reference=references[number])
        scores = model(packed=pack, extras=extras)
        for name, field in names.items():
            _place(facts[name], pack, getattr(scores, field))
    return facts


def _place(rows: list[list[float]], pack: Pack, values: Tensor) -> None:
    for row, part in zip(pack.rows, values.split(list(pack.lengths)), strict=True):
        rows[row] = rounded(part)


def rounded(values: Tensor) -> list[float]:
    """JSON numbers with as many digits as parts keep."""
    return [round(value, DIGITS) for value in values.tolist()]


def gradient_input(model: nn.Module, reading: Reading) -> list[list[float]]:
    """Gradient times input of each text's log-probability, [T_i], nats.

    d log pi(y | x) / d e_t . e_t with e_t the input embedding of the response's t-th token, through
    all layers: what a first-order expansion says the whole text's log-probability owes to that
    token. It counts what the token does to those behind it, not how likely the token itself was;
    the last token, which is no input, has 0.
    """
    inner = causal_lm(model)
    rows: list[list[float]] = [[] for _ in reading.encoded]
    for pack in reading.packs:
        with torch.no_grad():
            embedded = inner.get_input_embeddings()(pack.input_ids)[None]
        embedded.requires_grad_(True)
        with _differentiable_trunk(inner):
            hidden = _states(inner, embedded, pack)
            total = token_logps_of(Head.of(inner), hidden, pack.targets).logps.sum()
            [slope] = torch.autograd.grad(total, embedded)
        products = (slope * embedded.detach()).sum(-1)[0]
        spans = iter(pack.layout.responses.tolist())
        distinct = []
        for length in pack.distinct:
            start, end = next(spans) if length > 1 else (0, 0)
            distinct.append(torch.cat([products[start:end], products.new_zeros(1)]))
        _place(rows, pack, pack.for_every_row(torch.cat(distinct)))
    return rows


def _states(inner: PreTrainedModel, embedded: Tensor, pack: Pack) -> Tensor:
    """As `models.forward.tree_hidden`, from given input embeddings [1, T, H]."""
    ready_made = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    output: Any = inner.base_model(
        inputs_embeds=embedded,
        position_ids=pack.layout.positions[None],
        attention_mask=ready_made,
        use_cache=False,
        tree=pack.layout,
    )
    states: Tensor = output.last_hidden_state[0]
    return states[pack.target_index]


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
