"""Gradient times input: how much each token's embedding moves what is said of the response."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.credit.sources.language_model import LanguageModel, token_scores
from tokenq.credit.sources.scores import TokenScores
from tokenq.data.encoding import EncodedResponse
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm, enable_packed
from tokenq.models.logps import token_logps
from tokenq.models.pair import Pair
from tokenq.models.reference import AdapterOff

Layer = Callable[[PreTrainedModel], nn.Module]


def input_embeddings(model: PreTrainedModel) -> nn.Module:
    """The layer that turns token ids into vectors."""
    layer: nn.Module = model.get_input_embeddings()
    return layer


class GradientInput:
    """e_t . dS/de_t: each token's input vector times the gradient of a number S of the response.

    S is the summed log-ratio of policy and reference times beta ("log-ratio"; each model's own
    vectors, both products added) or the policy's summed log-probability ("log-prob"), in nats. One
    backward pass a response and model. Higher is liked: to first order, S would fall by this much
    if the vector were taken away.

    It asks what *reading* a token does to the tokens after it, while a log-ratio asks how the token
    itself was predicted. So the last token, which no later one reads, scores 0, and the sum is not
    S. Simonyan et al. 2013 (gradients); Shrikumar et al. 2017, arXiv 1605.01713 (times the input).

    of:   which S
    at:   the layer whose output is the input vector, by default the embeddings. A later one for a
          model whose lower layers let no gradient through
    """

    def __init__(
        self,
        pair: Pair,
        of: Literal["log-ratio", "log-prob"] = "log-ratio",
        *,
        beta: float = 0.1,
        at: Layer = input_embeddings,
        name: str | None = None,
    ) -> None:
        if of not in ("log-ratio", "log-prob"):
            raise UserError(f"of is '{of}'; accepted: log-ratio, log-prob")
        self.name = name or f"gradient x input ({of})"
        self._policy = LanguageModel.policy_of(pair)
        self._sides = [(self._policy, 1.0)]
        self._unit = "nats"
        self._at = at
        if of == "log-ratio":
            self._sides = [(self._policy, beta), (LanguageModel.reference_of(pair), -beta)]
            self._unit = "beta x nats"

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`).

        Raises UserError as well where no gradient reaches the layer, and where the layer does not
        answer with one vector a token.
        """
        rows = self._policy.encode(prompts, responses, *(model for model, _ in self._sides))
        scores = [torch.zeros(len(row.response_ids)) for row in rows]
        for model, factor in self._sides:
            with _differentiable(model.model) as active:
                for total, row in zip(scores, rows, strict=True):
                    total += factor * self._products(active, row, model.name).cpu()
        return token_scores(rows, responses, scores, self.name, self._unit)

    def _products(self, model: nn.Module, row: EncodedResponse, name: str) -> Tensor:
        """e_t . d(log p)/d e_t of one response under one model: [T], its last entry 0."""
        with _captured(self._at(causal_lm(model))) as captured:
            [logps] = token_logps(model, [row.prompt_ids], [row.response_ids])
        vectors = captured.get("output")
        width = len(row.prompt_ids) + len(row.response_ids) - 1
        if vectors is None or vectors.shape[:-1] != (1, width):
            raise UserError(f"{self.name}: the layer does not give {name} one vector a token")
        gradient = None
        if logps.requires_grad:
            [gradient] = torch.autograd.grad(logps.sum(), [vectors], allow_unused=True)
        if gradient is None:
            raise UserError(
                f"{self.name}: no gradient of {name} reaches the layer; accepted: at=, a layer "
                "above those that run without one"
            )
        products = (gradient.float() * vectors.detach().float()).sum(-1)[0, len(row.prompt_ids) :]
        return torch.cat([products, products.new_zeros(1)])


@contextmanager
def _differentiable(model: nn.Module | AdapterOff) -> Iterator[nn.Module]:
    """The model in eval mode, its weights without gradients, activations with; later as before."""
    with model.active() if isinstance(model, AdapterOff) else nullcontext(model) as active:
        enable_packed(active)
        in_training = [module for module in active.modules() if module.training]
        trainable = [weight for weight in active.parameters() if weight.requires_grad]
        active.eval()
        for weight in trainable:
            weight.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield active
        finally:
            for weight in trainable:
                weight.requires_grad_(True)
            for module in in_training:
                module.training = True


@contextmanager
def _captured(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The layer's output, made a leaf of the graph, under `output` once it has run."""
    found: dict[str, Tensor] = {}

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        found["output"] = output.detach().requires_grad_()
        return found["output"]

    handle = layer.register_forward_hook(replace)
    try:
        yield found
    finally:
        handle.remove()
