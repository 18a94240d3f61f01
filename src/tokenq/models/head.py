"""From hidden states to log-probabilities of given tokens without a `[tokens, vocabulary]` tensor.

The LM head runs over chunks of positions; only one chunk of logits is alive at a time, in the
forward and in the backward pass, and the softmax is taken in fp32 (fp64 stays fp64).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK = 512
"""Positions whose logits exist at the same time (x vocabulary x 4 bytes)."""

_ROWS = 16
"""Rows of a chunk that the softmax sweeps together: small enough to stay in the cache."""


class TokenLogps(NamedTuple):
    """Log-probabilities of N given tokens and what the same pass over the vocabulary tells.

    logps:   [N] log pi(token), nats, differentiable
    entropy: [N] entropy of the predicted distribution, nats
    correct: [N] bool, the token is the most probable one
    logits:  [N] mean logit over the vocabulary

    The last three carry no gradient.
    """

    logps: Tensor
    entropy: Tensor
    correct: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Head:
    """A model's LM head and what the model does to its logits afterwards.

    module:  maps hidden states [n, H] to raw logits [n, V]
    scale:   factor on the logits
    softcap: logits become `softcap * tanh(logits / softcap)`, or None
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """Read the head of a transformers causal LM."""
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        module = model.get_output_embeddings()
        if module is None:
            raise ValueError(f"{type(model).__name__} has no language-model head")
        return cls(module, scale, softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits [n, V] of hidden states [n, H], in fp32 or better."""
        return _finish(self.module(hidden), self.scale, self.softcap)


def token_logps_of(head: Head, hidden: Tensor, targets: Tensor, chunk: int = CHUNK) -> TokenLogps:
    """Return the log-probabilities of `targets` [N] after `hidden` [N, H]; see the module's head.

    A plain linear head uses a hand-written backward (exact; tested against autograd); any other
    module, such as an adapted one, is recomputed chunk by chunk.
    """
    if type(head.module) is nn.Linear:
        outputs = _LinearHead.apply(
            hidden, head.module.weight, head.module.bias, targets, head.scale, head.softcap, chunk
        )
        return TokenLogps(*outputs)
    parts = [
        checkpoint(_module_logps, head, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return TokenLogps(*(torch.cat(column) for column in zip(*parts, strict=True)))


def vocabulary_logps(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return log pi(. | state) over the whole vocabulary, [n, V] fp32, for hidden states [n, H].

    The caller chooses n: this tensor is as large as it says.
    """
    return torch.log_softmax(Head.of(model).logits(hidden), dim=-1)


def _finish(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def _module_logps(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logits = head.logits(hidden)
    logps = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(-1)
        correct = logits.argmax(-1) == targets
        mean = logits.mean(-1)
    return logps.gather(-1, targets[:, None]).squeeze(-1), entropy, correct, mean


class _LinearHead(torch.autograd.Function):
    """log softmax(scale * (h W^T + b)) at the targets, chunk by chunk.

    d logp / d logits = onehot(target) - softmax. Where all positions fit into one chunk its softmax
    is kept for the backward pass; where they do not, each chunk's logits are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.scale, ctx.softcap, ctx.chunk = scale, softcap, chunk
        keep = len(hidden) <= chunk and softcap is None and any(ctx.needs_input_grad)
        softmax = None
        parts = []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _finish(nn.functional.linear(h, weight, bias), scale, softcap)
            parts.append(_softmax_(logits, t))
            softmax = logits if keep else None
        ctx.save_for_backward(hidden, weight, bias, targets, softmax)
        outputs = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            softmax = kept
            if softmax is None:
                raw = nn.functional.linear(hidden[part], weight, bias)
                softmax = _finish(raw, ctx.scale, ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (softmax / ctx.softcap) ** 2
                _softmax_(softmax, targets[part])
            g = grad[part, None] * ctx.scale
            grad_logits = softmax.mul_(-g)
            grad_logits.scatter_add_(1, targets[part, None], g.to(grad_logits.dtype))
            if kept is None and slope is not None:
                grad_logits.mul_(slope)
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.t(), hidden[part])
            if grad_bias is not None:
                grad_bias.add_(grad_logits.sum(0))
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _softmax_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn `logits` [n, V] into their softmax in place.

    Returns the targets' log-probabilities, the entropies, whether each target is the arg max, and
    the mean logits, each [n].
    """
    columns: list[tuple[Tensor, ...]] = []
    for rows, target in zip(logits.split(_ROWS), targets.split(_ROWS), strict=True):
        mean = rows.mean(-1)
        greatest = rows.amax(-1, keepdim=True)
        rows.sub_(greatest)
        picked = rows.gather(-1, target[:, None]).squeeze(-1)
        weights = rows.exp()
        total = weights.sum(-1)
        log_total = total.log()
        moment = torch.linalg.vecdot(weights, rows) / total
        torch.div(weights, total[:, None], out=rows)
        columns.append((picked - log_total, log_total - moment, picked == 0, mean))
    logps, entropy, correct, mean = (torch.cat(c) for c in zip(*columns, strict=True))
    return logps, entropy, correct, mean
