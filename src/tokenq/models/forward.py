"""The packed forward of a causal language model, and the plain one where sharing is not valid.

`enable_packed(model)` teaches a model, also under PEFT, DDP or FSDP2 wrappers, to answer
`model(packed=pack)` with the log-probabilities of the pack's responses, and with what else the pass
over the vocabulary can tell: `model(packed=pack, extras=Extras(...))`.
"""

import functools
import inspect
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.attention import set_attention, use_tree_attention
from tokenq.models.head import NO_EXTRAS, Extras, Head, Predictions, TokenLogps, token_logps_of
from tokenq.models.packing import Ids, Pack, pack_trees
from tokenq.models.reference import AdapterOff, scoring

logger = logging.getLogger(__name__)

Backbone = Callable[[PreTrainedModel, Pack], Tensor]

_BACKBONE = "_tokenq_backbone"
"""Attribute that names the forward of a model that cannot share prompts; copies carry it along."""


def enable_packed(model: nn.Module) -> None:
    """Let `model(packed=pack)` return :class:`TokenLogps` in pack order. Idempotent.

    Ordinary calls are unchanged. The first call makes the choice between the packed and the plain
    forward by comparing both on a small probe (:func:`sharing_problem`); a model whose masks,
    recurrence or attention options do not allow sharing runs row by row, and a warning says so.
    """
    inner = causal_lm(model)
    if "packed" in inspect.signature(inner.forward).parameters:
        return
    _check_head(inner)
    original = inner.config._attn_implementation
    problem: str | None = "the probe did not finish"
    use_tree_attention(inner)
    try:
        problem = sharing_problem(inner)
    finally:
        if problem is not None:
            set_attention(inner, original)
    if problem is not None:
        inner.__dict__[_BACKBONE] = row_hidden
        logger.warning(
            "%s: prompts cannot be shared between responses (%s); using one plain forward per row, "
            "which is slower and exact",
            type(inner).__name__,
            problem,
        )
    inner.forward = types.MethodType(_forward_with_packs(type(inner)), inner)


def compile_layers(model: nn.Module) -> None:
    """Compile every decoder layer of `model` in place, one shared graph for any packed length.

    The first steps take longer (tens of seconds on a CPU, where a C++ compiler is needed); after
    that norms, rotary embeddings and activations run fused, which costs less time and memory.
    Raises ValueError for a model that does not name its layers (`_no_split_modules`).
    """
    inner = causal_lm(model)
    names = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(inner).__name__} does not say which modules are its layers")
    for layer in layers:
        layer.compile(dynamic=True)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model under a PEFT, DDP or compile wrapper, or `model` itself."""
    inner = getattr(model, "module", model) if not isinstance(model, PreTrainedModel) else model
    inner = getattr(inner, "_orig_mod", inner)
    get_base = getattr(inner, "get_base_model", None)
    inner = get_base() if get_base is not None else inner
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"expected a transformers causal LM, got {type(inner).__name__}")
    return inner


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """Return the [V, H] input embedding, also where PEFT wraps it; inputs belong on its device."""
    weight: Any = model.get_input_embeddings().weight
    return weight


def _forward_with_packs(cls: type[PreTrainedModel]) -> Callable[..., Any]:
    # Bound per instance with MethodType, so that a deep copy of a model binds to the copy.
    original = cls.forward

    @functools.wraps(original)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        packed: Pack | None = None,
        extras: Extras = NO_EXTRAS,
        **kwargs: Any,
    ) -> Any:
        if packed is None:
            return original(self, *args, **kwargs)
        hidden = response_states(self, packed)
        distinct = token_logps_of(Head.of(self), hidden, packed.targets, extras=extras)
        every = [None if each is None else packed.for_every_row(each) for each in distinct]
        return TokenLogps(*every)  # type: ignore[arg-type]

    parameters = inspect.signature(original).parameters
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in (("packed", None), ("extras", NO_EXTRAS))
    ]
    ordered = sorted([*parameters.values(), *added], key=lambda p: p.kind)
    forward.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    return forward


def response_states(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Return the hidden state [M, H] from which each distinct response token is predicted."""
    backbone: Backbone = model.__dict__.get(_BACKBONE, tree_hidden)
    return backbone(model, pack)


def reference_predictions(reference: nn.Module | AdapterOff, pack: Pack) -> Predictions:
    """Return what `reference` predicts at the target positions of `pack`, for `Extras`.

    One forward, no gradient, dropout or adapter. Nothing is kept in the reference: a head that
    adapters have wrapped is read with the reference's adapters whenever its logits are needed.
    """
    with scoring(reference) as model:
        enable_packed(model)
        inner = causal_lm(model)
        hidden = response_states(inner, pack.to(embedding_weight(inner).device))
    return Predictions(scoring_head(reference), hidden)


def scoring_head(reference: nn.Module | AdapterOff) -> Head:
    """Return the head of `reference`, to be used at any time, also while it is the policy's too."""
    with scoring(reference) as model:
        head = Head.of(causal_lm(model))
    if type(head.module) is not nn.Linear:
        head = replace(head, module=_ScoringHead(reference))
    return head


class _ScoringHead(nn.Module):
    """The head of a reference that shares it with the policy, as it is without the policy."""

    def __init__(self, reference: nn.Module | AdapterOff) -> None:
        super().__init__()
        self.reference = reference

    def forward(self, hidden: Tensor) -> Tensor:
        with scoring(self.reference) as model:
            logits: Tensor = causal_lm(model).get_output_embeddings()(hidden)
        return logits


def tree_hidden(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Hidden states [M, H] by one packed forward in which responses share their prompt."""
    # A mask with four axes counts as ready-made in transformers: none is built for the packed row.
    ready_made = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=pack.input_ids.device)
    states = model.base_model(
        input_ids=pack.input_ids[None],
        position_ids=pack.layout.positions[None],
        attention_mask=ready_made,
        use_cache=False,
        tree=pack.layout,
    ).last_hidden_state[0]
    return states[pack.target_index]


def row_hidden(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Hidden states [M, H] by plain forwards, one row at a time: nothing shared, nothing padded."""
    parts = []
    for prompt, response in unpack(pack):
        states = row_states(model, torch.cat([prompt, response]).tolist())
        parts.append(states[len(prompt) - 1 :])
    return torch.cat(parts)


def row_states(model: PreTrainedModel, ids: Ids) -> Tensor:
    """Hidden states [T, H] of one sequence by a plain forward."""
    row = torch.tensor([list(ids)], device=embedding_weight(model).device)
    states: Tensor = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
    return states


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether `enable_packed` found that responses of this model can share their prompt."""
    return _BACKBONE not in model.__dict__


def unpack(pack: Pack) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (prompt ids, response ids without the last) of each distinct response, packed order."""
    prompts = {root: (start, end) for root, start, end in _prompt_spans(pack)}
    offset = 0
    for length in pack.distinct:
        index = pack.target_index[offset : offset + length]
        start, end = prompts[int(pack.layout.prompt[index[0]])]
        yield pack.input_ids[start:end], pack.targets[offset : offset + length - 1]
        offset += length


def _prompt_spans(pack: Pack) -> Iterator[tuple[int, int, int]]:
    for start, end, _ in pack.layout.trees.tolist():
        yield int(pack.layout.segment[start]), start, end


def _check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are not its head's, as far as :class:`Head` knows them.

    Raises UserError, naming the model: wrong log-probabilities would be worse than none.
    """
    name = type(model).__name__
    if model.base_model is model:
        raise UserError(f"{name}: has no backbone apart from its head; not supported")
    weight = embedding_weight(model)
    ids = torch.arange(min(8, len(weight)), device=weight.device)[None]
    with scoring(model):
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = Head.of(model).logits(states)
        logits = model(input_ids=ids, use_cache=False).logits[0].to(ours.dtype)
    # Damaged weights, nan on both sides, are for the caller to find: the head is the same.
    difference, size = (x.nan_to_num(0.0, 0.0, 0.0).norm() for x in (ours - logits, logits))
    if difference > tolerance(weight.dtype) * size:
        raise UserError(f"{name}: changes its logits in a way that tokenq does not know")


def pad_rows(flat: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return rows of a flat [N] tensor as [B, T], zero where the [B, T] bool mask is False."""
    rows = flat.split(list(lengths))
    sizes = torch.tensor(lengths, device=flat.device)
    mask = torch.arange(int(max(lengths)), device=flat.device) < sizes[:, None]
    return pad_sequence(list(rows), batch_first=True), mask


def sharing_problem(model: PreTrainedModel) -> str | None:
    """Say why packed trees do not reproduce `model`'s plain forward, or None if they do.

    Two trees of two random responses each are scored both ways. In fp32 the hidden states must
    agree to 1e-3 of their size, in half precision to 5e-2: a leak between responses or a lost
    prompt moves them by more, also in an untrained model, because the states are compared before
    the head.
    """
    generator = torch.Generator().manual_seed(0)
    embedding = embedding_weight(model)
    size = min(model.config.get_text_config().vocab_size, len(embedding))

    def ids(n: int) -> list[int]:
        return torch.randint(size, (n,), generator=generator).tolist()

    first, second = ids(9), ids(5)
    prompts: list[Ids] = [first, first, second, second]
    pack = pack_trees(prompts, [ids(7), ids(4), ids(3), ids(6)], token_budget=1024)[0]
    pack = pack.to(embedding.device)
    with scoring(model):
        plain = row_hidden(model, pack).float()
        try:
            shared = tree_hidden(model, pack).float()
        except Exception as error:  # modelling code that we do not know may raise anything
            return f"{type(error).__name__}: {error}"
    difference = float((plain - shared).norm() / plain.norm())
    if not difference <= tolerance(next(model.parameters()).dtype):
        return f"a probe differed by {difference:.1e} of its size"
    return None


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways to the same numbers may lie apart, as a fraction of their size."""
    return 5e-2 if torch.finfo(dtype).bits <= 16 else 1e-3


def response_hidden(
    model: nn.Module, prompts: Sequence[Ids], responses: Sequence[Ids], token_budget: int = 4096
) -> list[Tensor]:
    """Return, per row, the hidden states [T_i, H] from which its response tokens are predicted."""
    enable_packed(model)
    inner = causal_lm(model)
    device = embedding_weight(inner).device
    out: list[Tensor] = [torch.empty(0)] * len(prompts)
    for pack in pack_trees(prompts, responses, token_budget):
        states = pack.for_every_row(response_states(inner, pack := pack.to(device)))
        for row, part in zip(pack.rows, states.split(list(pack.lengths)), strict=True):
            out[row] = part
    return out
