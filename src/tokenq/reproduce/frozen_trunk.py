"""The lower, frozen layers of a model, computed once for each row that comes again.

Runs that train the same few upper layers on the same rows share everything below them.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.models.packing import TreeLayout


class FrozenTrunk(nn.Module):
    """Layers that are called as one and remember their output for packed trees.

    The output of a prompt depends on its own input states, that of a response on its prompt's and
    its own, while the weights stay as they are: each is known again in whatever pack it comes. A
    pack of which all is known is not computed. (How rows are packed together moves the last digits
    of a computed output, so that a remembered one may differ by those.) Calls without a layout, as
    in generation, go through the layers as ever.

    differentiable: pass gradients to the input; nothing is remembered then, nor looked up
    """

    differentiable = False

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._known: dict[bytes, Tensor] = {}

    def forward(
        self, hidden_states: Tensor, *args: Any, tree: TreeLayout | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the states after the last layer, [1, T, H]."""
        if tree is None:
            return self._through(hidden_states, *args, **kwargs)
        # Generation hands over other objects in its place, which keep keys and values.
        if self.differentiable or not isinstance(tree, TreeLayout):
            return self._through(hidden_states, *args, tree=tree, **kwargs)
        parts = _parts(hidden_states[0], tree)
        if not all(key in self._known for _, _, key in parts):
            states = self._through(hidden_states, *args, tree=tree, **kwargs)
            for start, end, key in parts:
                # A copy: a view would keep the whole pack.
                self._known.setdefault(key, states[0, start:end].clone())
        return torch.cat([self._known[key] for _, _, key in parts])[None]

    def _through(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.set_grad_enabled(self.differentiable):
            for layer in self.layers:
                states = layer(states, *args, **kwargs)
        return states


def freeze_trunk(model: PreTrainedModel, upper: int) -> str:
    """Turn all but the `upper` last layers of a Llama-like model into a :class:`FrozenTrunk`.

    Returns the regular expression of the linear layers above it, for an adapter's
    `target_modules`.
    """
    inner: Any = model.base_model
    layers = list(inner.layers)
    if not 0 < upper < len(layers):
        raise ValueError(f"upper is {upper}; accepted: 1 to {len(layers) - 1}")
    model.requires_grad_(False)
    trunk = FrozenTrunk(layers[:-upper])
    inner.layers = nn.ModuleList([trunk, *layers[-upper:]])
    return r"model\.layers\.[1-9]\d*\.(self_attn|mlp)\.\w+_proj"


def _parts(states: Tensor, tree: TreeLayout) -> list[tuple[int, int, bytes]]:
    """(start, end, key) of every prompt and response in packed order; together they are all."""
    parts = []
    responses = iter(tree.responses.tolist())
    for start, root_end, end in tree.trees.tolist():
        parts.append((start, root_end, _digest(states[start:root_end])))
        at = root_end
        while at < end:
            at, stop = next(responses)
            key = _digest(states[start:root_end], states[at:stop])
            parts.append((at, stop, key))
            at = stop
    return parts


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(len(tensor).to_bytes(8, "little"))
        digest.update(tensor.detach().contiguous().cpu().numpy().data)
    return digest.digest()
