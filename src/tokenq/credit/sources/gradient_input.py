"""Gradient times input: how much each token's embedding moves what is said of the response."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.credit.sources.language_model import LanguageModel, token_scores
from tokenq.credit.sources.scores import TokenScores
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm, embedding_weight, enable_packed
from tokenq.models.packing import Ids, Pack, pack_trees
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
    backward pass a model and token budget. Higher is liked: to first order, S would fall by this
    much if the vector were taken away.

    It asks what *reading* a token does to the tokens after it, while a log-ratio asks how the token
    itself was predicted. So the last token, which no later one reads, scores 0, and the sum is not
    S. Simonyan et al. 2013 (gradients); Shrikumar et al. 2017, arXiv 1605.01713 (times the input).

    of:           which S
    at:           the layer whose output is the input vector, by default the embeddings. A later one
                  for a model whose lower layers let no gradient through
    token_budget: input tokens of one forward and backward, whose activations are all kept
    """

    def __init__(
        self,
        pair: Pair,
        of: Literal["log-ratio", "log-prob"] = "log-ratio",
        *,
        beta: float = 0.1,
        at: Layer = input_embeddings,
        name: str | None = None,
        token_budget: int = 512,
    ) -> None:
        if of not in ("log-ratio", "log-prob"):
            raise UserError(f"of is '{of}'; accepted: log-ratio, log-prob")
        self.name = name or f"gradient x input ({of})"
        self._policy = LanguageModel.policy_of(pair)
        self._sides = [(self._policy, 1.0)]
        self._unit = "nats"
        self._at = at
        self._token_budget = token_budget
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
        ids = [row.prompt_ids for row in rows], [row.response_ids for row in rows]
        scores = [torch.zeros(len(row.response_ids)) for row in rows]
        for model, factor in self._sides:
            try:
                parts = gradient_products(
                    model.model, *ids, at=self._at, token_budget=self._token_budget, name=model.name
                )
            except UserError as error:
                raise UserError(f"{self.name}: {error}") from error
            for score, part in zip(scores, parts, strict=True):
                score += factor * part
        return token_scores(rows, responses, scores, self.name, self._unit)


def gradient_products(
    model: nn.Module | AdapterOff,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    at: Layer = input_embeddings,
    token_budget: int,
    name: str = "the model",
) -> list[Tensor]:
    """e_t . d(log p(y | x))/d e_t of each response's tokens, [T_i] each on the CPU; 0 for the last.

    at, token_budget: as in :class:`GradientInput`; name: of the model, for messages

    Raises UserError where no gradient reaches the layer, and where the layer does not answer with
    one vector a token.
    """
    rows = [
        (tuple(prompt), tuple(answer)) for prompt, answer in zip(prompts, responses, strict=True)
    ]
    # Equal rows would be counted twice in one sum.
    distinct = list(dict.fromkeys(rows))
    contexts, answers = ([row[side] for row in distinct] for side in (0, 1))
    found: dict[tuple[Ids, Ids], Tensor] = {}
    with _differentiable(model) as active:
        for pack in pack_trees(contexts, answers, token_budget):
            parts = _products(active, pack, at, name).cpu().split(list(pack.lengths))
            found |= {distinct[row]: part for row, part in zip(pack.rows, parts, strict=True)}
    return [found[row] for row in rows]


def _products(model: nn.Module, pack: Pack, at: Layer, name: str) -> Tensor:
    """e_t . d(log p)/d e_t of the tokens [N] of a pack of distinct rows; 0 for each last one.

    No response sees another one, so that the gradient of the sum of all is each one's own.
    """
    inner = causal_lm(model)
    with _captured(at(inner)) as vectors:
        logps = model(packed=pack.to(embedding_weight(inner).device)).logps
    places = _input_places(pack, [each.shape[:-1] for each in vectors])
    if places is None:
        raise UserError(f"the layer does not give {name} one vector a token")
    gradients: Sequence[Tensor | None] = [None]
    if logps.requires_grad:
        gradients = torch.autograd.grad(logps.sum(), vectors, allow_unused=True)
    products = []
    for gradient, vector in zip(gradients, vectors, strict=True):
        if gradient is None:
            raise UserError(
                f"no gradient of {name} reaches the layer; accepted: at=, a layer above those that "
                "run without one"
            )
        products.append((gradient.float() * vector.detach().float()).sum(-1)[0])
    found = torch.cat(products)
    last = torch.tensor([place is None for place in places], device=found.device)
    index = torch.tensor([place or 0 for place in places], device=found.device)
    return found[index].masked_fill(last, 0.0)


def _input_places(pack: Pack, shapes: Sequence[tuple[int, ...]]) -> list[int | None] | None:
    """Where each token of a pack is read among the layer's vectors; None for a last token.

    shapes: of the layer's outputs: one for a whole packed tree, or one for each response that ran
            by itself. None in all where they are something else.
    """
    trees, places = len(pack.input_ids), pack.target_index.tolist()
    starts = np.cumsum([0, *pack.distinct])[:-1].tolist()
    found: list[int | None] = []
    if list(shapes) == [(1, trees)]:
        for start, length in zip(starts, pack.distinct, strict=True):
            # The state of a token predicts the one that follows.
            found += [*places[start + 1 : start + length], None]
        return found
    widths = [shape[-1] for shape in shapes]
    if len(widths) != len(pack.distinct) or any(len(shape) != 2 for shape in shapes):
        return None
    for end, length in zip(np.cumsum(widths).tolist(), pack.distinct, strict=True):
        found += [*range(end - length + 1, end), None]
    return found


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
def _captured(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The layer's outputs, made leaves of the graph, in the order of its calls."""
    found: list[Tensor] = []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        found.append(output.detach().requires_grad_())
        return found[-1]

    handle = layer.register_forward_hook(replace)
    try:
        yield found
    finally:
        handle.remove()
