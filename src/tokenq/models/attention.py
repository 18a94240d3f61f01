"""Attention over packed prefix trees, plugged into transformers' attention interface.

CPU: the flash kernel block by block (prompt; responses on their prompt; each response on itself),
merged exactly, so that no mask is built and no masked pair is computed. CUDA: FlexAttention with
the tree as a block mask. Score capping or a sliding window that bites: a masked product per tree.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenq.errors import UserError
from tokenq.models.packing import TreeLayout

_PREFIX = "tokenq_tree_over_"
_BASES = ("eager", "sdpa")
_KNOWN_OPTIONS = {
    # what transformers passes along and what changes nothing here
    "is_causal",
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "cache_position",
}

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Reading(Protocol):
    """Attention that is not within a packed row alone, such as to a cache."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """query [1, H, T, D], key, value [1, H_kv, T, D] of layer `layer` -> [1, T, H, D]."""
        ...


class UnsupportedAttention(NotImplementedError):
    """This model's attention asks for something that packed trees do not honour."""


# --- CPU: exact block attention -------------------------------------------------------------------


@torch.library.custom_op("tokenq::tree_attention", mutates_args=())
def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, trees: Tensor, responses: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend within each tree of a packed row.

    query: [1, H, T, D]; key, value: [1, H_kv, T, D] with H a multiple of H_kv
    trees, responses: spans as in :class:`TreeLayout`

    Returns the output as [1, T, H, D] and the log-sum-exp of the scores, [1, T, H].
    """
    out, lse = _empty_outputs(query)
    out_h, lse_h = out.transpose(1, 2), lse.transpose(1, 2)
    for start, end in _causal_spans(trees, responses):
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        out_h[:, :, start:end], lse_h[:, :, start:end] = _flash(q, k, v, 0.0, True, scale=scale)
    for prompt_start, prompt_end, end in _trees_with_responses(trees):
        k, v = (x[:, :, prompt_start:prompt_end] for x in (key, value))
        part, part_lse = _flash(query[:, :, prompt_end:end], k, v, 0.0, False, scale=scale)
        own, own_lse = out_h[:, :, prompt_end:end], lse_h[:, :, prompt_end:end]
        merged = torch.logaddexp(own_lse, part_lse)
        own.mul_((own_lse - merged).exp_().unsqueeze(-1))
        own.add_(part * (part_lse - merged).exp_().unsqueeze(-1))
        own_lse.copy_(merged)
    return out, lse


@tree_attention.register_fake
def _(query, key, value, trees, responses, scale):  # type: ignore[no-untyped-def]
    return _empty_outputs(query)


@torch.library.custom_op("tokenq::tree_attention_backward", mutates_args=())
def tree_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    trees: Tensor,
    responses: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`tree_attention` for query, key and value, each [1, T, heads, D].

    Every block is differentiated with the *merged* output and log-sum-exp: the softmax weights of a
    block are `exp(score - lse)` and `rowsum(grad * out)` is common to all blocks of a row, so the
    block gradients simply add up.
    """
    grads = [
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format)
        for x in (query, key, value)
    ]
    grad_q, grad_k, grad_v = (g.transpose(1, 2) for g in grads)
    grad_h, out_h, lse_h = grad.transpose(1, 2), out.transpose(1, 2), lse.transpose(1, 2)
    for start, end in _causal_spans(trees, responses):
        at = (slice(None), slice(None), slice(start, end))
        dq, dk, dv = _flash_backward(
            grad_h[at], query[at], key[at], value[at], out_h[at], lse_h[at], 0.0, True, scale=scale
        )
        grad_q[at], grad_k[at], grad_v[at] = dq, dk, dv
    for prompt_start, prompt_end, end in _trees_with_responses(trees):
        at = (slice(None), slice(None), slice(prompt_end, end))
        of = (slice(None), slice(None), slice(prompt_start, prompt_end))
        dq, dk, dv = _flash_backward(
            grad_h[at], query[at], key[of], value[of], out_h[at], lse_h[at], 0.0, False, scale=scale
        )
        grad_q[at] += dq
        grad_k[of] += dk
        grad_v[of] += dv
    return grads[0], grads[1], grads[2]


@tree_attention_backward.register_fake
def _(grad, query, key, value, out, lse, trees, responses, scale):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.transpose(1, 2).shape) for x in (query, key, value))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, trees, responses, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, trees, responses)


def _backward(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse, trees, responses = ctx.saved_tensors
    grads = tree_attention_backward(grad, query, key, value, out, lse, trees, responses, ctx.scale)
    return (*(g.transpose(1, 2) for g in grads), None, None, None)


tree_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _empty_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    _, heads, length, width = query.shape
    lse_dtype = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(1, length, heads, width),
        query.new_empty(1, length, heads, dtype=lse_dtype),
    )


def _causal_spans(trees: Tensor, responses: Tensor) -> list[list[int]]:
    return trees[:, :2].tolist() + responses.tolist()


def _trees_with_responses(trees: Tensor) -> list[list[int]]:
    return [span for span in trees.tolist() if span[1] < span[2]]


# --- masked product: score capping, sliding windows -----------------------------------------------


def masked_tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """The same attention as a masked product per tree, with `softcap` and sliding `window`.

    Shapes as in :func:`tree_attention`; returns [1, T, H, D]. Memory: one tree's scores.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    outs = []
    for start, _, end in layout.trees.tolist():
        scores = query[:, :, start:end] @ key[:, :, start:end].transpose(-1, -2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        visible = _part(layout, start, end).dense_mask(window)
        scores = scores.masked_fill(~visible, float("-inf"))
        weights = torch.softmax(
            scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)
        )
        outs.append(weights.to(value.dtype) @ value[:, :, start:end])
    return torch.cat(outs, dim=2).transpose(1, 2)


def _part(layout: TreeLayout, start: int, end: int) -> TreeLayout:
    return replace(
        layout,
        segment=layout.segment[start:end],
        prompt=layout.prompt[start:end],
        positions=layout.positions[start:end],
    )


# --- CUDA: FlexAttention --------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@functools.lru_cache(maxsize=4)
def tree_block_mask(layout: TreeLayout, window: int | None) -> BlockMask:
    """Return the layout as a FlexAttention block mask; the newest few are kept for all layers."""
    segment, prompt, positions = layout.segment, layout.prompt, layout.positions
    limit = window if window is not None else layout.longest + 1

    def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = (segment[q] == segment[k]) | (prompt[q] == segment[k])
        return (q >= k) & same & (positions[q] - positions[k] < limit)

    length = len(segment)
    return create_block_mask(visible, None, None, length, length, device=str(segment.device))


def flex_tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """The same attention through FlexAttention; compiled on CUDA. Returns [1, T, H, D]."""

    def cap(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    attend: Any = _compiled_flex() if query.is_cuda else flex_attention
    out = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=tree_block_mask(layout, window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def attend_layout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    scale: float,
    softcap: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Attend within a packed row by the kernel that fits device and options; [1, T, H, D].

    Shapes as in :func:`tree_attention`; `sliding_window` may be 0 or wider than any row.
    """
    window = sliding_window if sliding_window and sliding_window < layout.longest else None
    if query.is_cuda:
        return flex_tree_attention(query, key, value, layout, scale, softcap, window)
    if softcap is None and window is None:
        return tree_attention(query, key, value, layout.trees, layout.responses, scale)[0]
    return masked_tree_attention(query, key, value, layout, scale, softcap, window)


# --- the plug into transformers -------------------------------------------------------------------


def use_tree_attention(model: PreTrainedModel) -> None:
    """Make `model` attend by tree when it is called with `tree=layout`, and as before when not.

    The model's own implementation must be eager or sdpa; another one (flash attention) is replaced
    by sdpa for its ordinary calls too.
    """
    base = model.config._attn_implementation
    if base.startswith(_PREFIX):
        return
    set_attention(model, _PREFIX + (base if base in _BASES else "sdpa"))


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Name the attention implementation of `model` and its parts, without further checks."""
    for part in model.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = implementation


def _register(base: str) -> None:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        tree: TreeLayout | Reading | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if tree is None:
            if sliding_window is not None:
                options["sliding_window"] = sliding_window
            if softcap is not None:
                options["softcap"] = softcap
            return _base_attention(base, module)(
                module,
                query,
                key,
                value,
                attention_mask,
                scaling=scaling,
                dropout=dropout,
                **options,
            )
        unknown = [k for k, v in options.items() if v is not None and k not in _KNOWN_OPTIONS]
        if unknown:
            raise UnsupportedAttention(f"attention options {', '.join(sorted(unknown))}")
        if dropout:
            raise UserError(
                "attention dropout cannot be packed: leave disable_dropout on, or set the model's "
                "attention dropout to 0"
            )
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        # Under autocast the rotary embedding leaves queries and keys in fp32, values in half.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if isinstance(tree, TreeLayout):
            return attend_layout(query, key, value, tree, scale, softcap, sliding_window), None
        layer: Any = getattr(module, "layer_idx", None)
        if layer is None:
            raise UnsupportedAttention("layers without a number (layer_idx)")
        return tree.attend(layer, query, key, value, scale, softcap, sliding_window or None), None

    def mask(*args: Any, **kwargs: Any) -> Any:
        return ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **kwargs)

    AttentionInterface.register(_PREFIX + base, attention)
    AttentionMaskInterface.register(_PREFIX + base, mask)


def _base_attention(base: str, module: nn.Module) -> Callable[..., Any]:
    if base == "eager":
        # Every modelling file has an eager function of its own, under this name.
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    registered: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[base]
    return registered


for _base in _BASES:
    _register(_base)
