"""What a model says of each token of given responses: the one way in tokenq to get it."""

from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor, nn

from tokenq.models.forward import causal_lm, embedding_weight, enable_packed
from tokenq.models.head import TokenLogps
from tokenq.models.packing import Ids, pack_trees
from tokenq.models.reference import AdapterOff

TOKEN_BUDGET = 4096


def token_logps(
    model: nn.Module | AdapterOff,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    token_budget: int = TOKEN_BUDGET,
) -> list[Tensor]:
    """Return log pi(y_t | x, y_<t) of every response token: one fp32 tensor [T_i] a row, in nats.

    model:        a transformers causal LM, with or without PEFT, or an :class:`AdapterOff`
    prompts:      token ids of each row's prompt, at least one token; equal prompts are encoded once
    responses:    token ids of each row's response, at least one token, EOS included if it counts
    token_budget: input tokens of one forward; bounds memory, does not change the result

    Differentiable unless called under `torch.no_grad()`. The order is the caller's. An fp64 model
    gives fp64. Raises ValueError for an empty prompt or response.
    """
    rows = token_predictions(model, prompts, responses, token_budget=token_budget)
    return [row.logps for row in rows]


def token_predictions(
    model: nn.Module | AdapterOff,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    token_budget: int = TOKEN_BUDGET,
) -> list[TokenLogps]:
    """Return log-probability, logit and entropy of every response token: fields [T_i] a row.

    Arguments and errors as in :func:`token_logps`, which costs the same.
    """
    with model.active() if isinstance(model, AdapterOff) else nullcontext(model) as active:
        enable_packed(active)
        device = embedding_weight(causal_lm(active)).device
        found: dict[int, TokenLogps] = {}
        for pack in pack_trees(prompts, responses, token_budget):
            output: TokenLogps = active(packed=pack.to(device))
            parts = [
                [None] * len(pack.rows) if field is None else field.split(list(pack.lengths))
                for field in output
            ]
            for row, *fields in zip(pack.rows, *parts, strict=True):
                found[row] = TokenLogps(*fields)
        return [found[row] for row in range(len(prompts))]
