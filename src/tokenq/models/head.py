"""From hidden states to log-probabilities of given tokens without a `[tokens, vocabulary]` tensor.

The LM head runs over chunks of positions; only one chunk of logits is alive at a time, in the
forward and in the backward pass, and the softmax is taken in fp32 (fp64 stays fp64).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tokenq.errors import UserError

CHUNK = 512
"""Positions whose logits exist at the same time (x vocabulary x 4 bytes)."""

_ROWS = 16
"""Rows of a chunk that the softmax sweeps together: small enough to stay in the cache."""


class TokenLogps(NamedTuple):
    """Log-probabilities of N given tokens and what the same pass over the vocabulary tells.

    logps:     [N] log pi(token), nats, differentiable
    taken:     [N] the token's logit, as the softmax is given it, differentiable
    entropy:   [N] entropy of the predicted distribution, nats
    correct:   [N] bool, the token is the most probable one
    logits:    [N] mean logit over the vocabulary
    collision: [N] log sum_a pi(a)^2, nats; None unless asked for
    kl:        [N] KL(pi_ref || pi) over the vocabulary, nats, differentiable in the policy; None
               without a reference
    ref_logps: [N] log pi_ref(token), nats; None without a reference

    Those not called differentiable carry no gradient.
    """

    logps: Tensor
    taken: Tensor
    entropy: Tensor
    correct: Tensor
    logits: Tensor
    collision: Tensor | None = None
    kl: Tensor | None = None
    ref_logps: Tensor | None = None


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


@dataclass(frozen=True, eq=False)
class Predictions:
    """A fixed model's next-token distributions at N positions, kept as small as they can be.

    head:   the model's head
    hidden: [N, H] the states it reads, without gradient
    """

    head: Head
    hidden: Tensor

    def logits(self, part: slice) -> Tensor:
        """Return the logits [n, V] of a part of the positions, in fp32 or better, no gradient."""
        with torch.no_grad():
            return self.head.logits(self.hidden[part])


@dataclass(frozen=True, eq=False)
class Extras:
    """What a pass over the vocabulary shall tell besides; nothing of it costs a second pass.

    collision: whether to compute `TokenLogps.collision`
    reference: the reference at the same N positions; gives `TokenLogps.kl` and `.ref_logps`
    """

    collision: bool = False
    reference: Predictions | None = None


NO_EXTRAS = Extras()


def token_logps_of(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    chunk: int = CHUNK,
    extras: Extras = NO_EXTRAS,
) -> TokenLogps:
    """Return the log-probabilities of `targets` [N] after `hidden` [N, H]; see the module's head.

    A plain linear head uses a hand-written backward (exact; tested against autograd); any other
    module, such as an adapted one, is recomputed chunk by chunk. Raises UserError where policy and
    reference have vocabularies of different sizes.
    """
    if type(head.module) is nn.Linear:
        outputs = _LinearHead.apply(
            hidden,
            head.module.weight,
            head.module.bias,
            targets,
            head.scale,
            head.softcap,
            chunk,
            extras,
        )
        return TokenLogps(*outputs)
    return _joined(
        [
            TokenLogps(
                *checkpoint(
                    _module_logps,
                    head,
                    hidden[part],
                    targets[part],
                    part,
                    extras,
                    use_reentrant=False,
                )
            )
            for part in _chunks(len(hidden), chunk)
        ]
    )


def vocabulary_logps(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return log pi(. | state) over the whole vocabulary, [n, V] fp32, for hidden states [n, H].

    The caller chooses n: this tensor is as large as it says.
    """
    return torch.log_softmax(Head.of(model).logits(hidden), dim=-1)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Number of tokens that the model's head scores."""
    weight: Any = Head.of(model).module.weight
    return int(weight.shape[0])


def _finish(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def _chunks(length: int, chunk: int) -> list[slice]:
    """Consecutive parts of `chunk` positions; one empty part where there are none."""
    return [slice(start, start + chunk) for start in range(0, max(length, 1), chunk)]


def _joined(parts: Sequence[TokenLogps]) -> TokenLogps:
    columns = [None if c[0] is None else torch.cat(c) for c in zip(*parts, strict=True)]
    return TokenLogps(*columns)  # type: ignore[arg-type]


def _reference_logits(reference: Predictions | None, part: slice, logits: Tensor) -> Tensor | None:
    """The reference's logits for a part of the positions, [n, V] like the policy's `logits`."""
    if reference is None:
        return None
    theirs = reference.logits(part).to(logits)
    if theirs.shape != logits.shape:
        raise UserError(
            f"ref_model: its head scores {theirs.shape[-1]} tokens, the policy's "
            f"{logits.shape[-1]}; their KL divergence needs one vocabulary"
        )
    return theirs


def _module_logps(
    head: Head, hidden: Tensor, targets: Tensor, part: slice, extras: Extras
) -> TokenLogps:
    logits = head.logits(hidden)
    logps = torch.log_softmax(logits, dim=-1)
    index = targets[:, None]
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(-1)
        correct = logits.argmax(-1) == targets
        mean = logits.mean(-1)
        collision = torch.logsumexp(2 * logps, dim=-1) if extras.collision else None
    theirs = _reference_logits(extras.reference, part, logits)
    kl = ref_logps = None
    if theirs is not None:
        expected = torch.log_softmax(theirs, dim=-1)
        kl = (expected.exp() * (expected - logps)).sum(-1)
        ref_logps = expected.gather(-1, index).squeeze(-1)
    return TokenLogps(
        logps.gather(-1, index).squeeze(-1),
        logits.gather(-1, index).squeeze(-1),
        entropy,
        correct,
        mean,
        collision,
        kl,
        ref_logps,
    )


class _LinearHead(torch.autograd.Function):
    """log softmax(scale * (h W^T + b)) at the targets, and the KL from a reference, by chunks.

    d logp / d logits = onehot(target) - pi, d taken / d logits = onehot(target) and
    d KL(pi_ref || pi) / d logits = pi - pi_ref. Where all positions fit into one chunk its
    distributions are kept for the backward pass; where they do not, each chunk's are computed
    again.
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
        extras: Extras,
    ) -> tuple[Tensor | None, ...]:
        ctx.scale, ctx.softcap, ctx.chunk, ctx.extras = scale, softcap, chunk, extras
        keep = len(hidden) <= chunk and softcap is None and any(ctx.needs_input_grad)
        softmax = expected = None
        parts = []
        for part in _chunks(len(hidden), chunk):
            logits = _finish(nn.functional.linear(hidden[part], weight, bias), scale, softcap)
            theirs = _reference_logits(extras.reference, part, logits)
            parts.append(_softmax_(logits, targets[part], theirs, extras.collision))
            softmax, expected = (logits, theirs) if keep else (None, None)
        ctx.save_for_backward(hidden, weight, bias, targets, softmax, expected)
        out = _joined(parts)
        fixed = (out.entropy, out.correct, out.logits, out.collision, out.ref_logps)
        ctx.mark_non_differentiable(*(each for each in fixed if each is not None))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, kept, kept_expected = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        for_logp, for_taken, for_kl = _head_gradients(TokenLogps(*grads), ctx.scale)  # type: ignore[arg-type]
        for part in _chunks(len(hidden), ctx.chunk):
            softmax, expected = kept, kept_expected
            if softmax is None:
                raw = nn.functional.linear(hidden[part], weight, bias)
                softmax = _finish(raw, ctx.scale, ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (softmax / ctx.softcap) ** 2
                expected = _reference_logits(ctx.extras.reference, part, softmax)
                _softmax_(softmax, targets[part], expected, False)
            of_target = (for_logp + for_taken)[part, None]
            grad_logits = softmax.mul_((for_kl - for_logp)[part, None])
            if expected is not None:
                grad_logits.addcmul_(expected, for_kl[part, None], value=-1)
            grad_logits.scatter_add_(1, targets[part, None], of_target.to(grad_logits.dtype))
            if kept is None and slope is not None:
                grad_logits.mul_(slope)
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.t(), hidden[part])
            if grad_bias is not None:
                grad_bias.add_(grad_logits.sum(0))
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _head_gradients(grads: TokenLogps, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [N] of logps, taken and kl, each times the head's scale; 0 where there is no KL."""
    logps, taken = grads.logps * scale, grads.taken * scale
    return logps, taken, torch.zeros_like(logps) if grads.kl is None else grads.kl * scale


def _softmax_(
    logits: Tensor, targets: Tensor, reference: Tensor | None, with_collision: bool
) -> TokenLogps:
    """Turn `logits` [n, V], and the reference's if given, into their softmax in place."""
    # Mixed precision would take the sums over the vocabulary (vecdot) in half precision.
    with torch.autocast(logits.device.type, enabled=False):
        return _sweep_(logits, targets, reference, with_collision)


def _sweep_(
    logits: Tensor, targets: Tensor, reference: Tensor | None, with_collision: bool
) -> TokenLogps:
    parts = []
    for start in range(0, max(len(logits), 1), _ROWS):
        block = slice(start, start + _ROWS)
        rows, target = logits[block], targets[block, None]
        mean = rows.mean(-1)
        greatest = rows.amax(-1, keepdim=True)
        taken = rows.gather(-1, target).squeeze(-1)
        rows.sub_(greatest)
        picked = rows.gather(-1, target).squeeze(-1)
        weights = rows.exp()
        total = weights.sum(-1)
        log_total = total.log()
        moment = torch.linalg.vecdot(weights, rows) / total
        kl = ref_logps = collision = None
        if reference is not None:
            theirs = _log_softmax_(reference[block])
            ref_logps = theirs.gather(-1, target).squeeze(-1)
            ratios = theirs - rows.sub_(log_total[:, None])
            kl = torch.linalg.vecdot(theirs.exp_(), ratios)
        torch.div(weights, total[:, None], out=rows)
        if with_collision:
            collision = torch.linalg.vecdot(rows, rows).log()
        parts.append(
            TokenLogps(
                picked - log_total,
                taken,
                log_total - moment,
                picked == 0,
                mean,
                collision,
                kl,
                ref_logps,
            )
        )
    return _joined(parts)


def _log_softmax_(rows: Tensor) -> Tensor:
    """Turn logits [n, V] into log-probabilities in place, by the operations of `_softmax_`.

    Equal models then have log-ratios of exactly zero.
    """
    rows.sub_(rows.amax(-1, keepdim=True))
    return rows.sub_(rows.exp().sum(-1, keepdim=True).log())
