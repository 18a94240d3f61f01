"""The lower, frozen layers of a model, computed once for each pack that comes again.

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

    An output is known again by its input states and by the layout of the trees, which are all that
    it depends on while the weights stay as they are. Calls without a layout (generation) go
    through the layers as ever.
    """

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
        key = _digest(hidden_states, tree.segment, tree.prompt, tree.positions)
        if key not in self._known:
            self._known[key] = self._through(hidden_states, *args, tree=tree, **kwargs)
        return self._known[key]

    def _through(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
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


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().cpu().numpy().data)
    return digest.digest()
