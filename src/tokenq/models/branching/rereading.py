"""Branches for any causal language model: every sequence is read from its start, each time.

Slow and exact; for recurrent states and unusual caches, which cannot be shared between branches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenq.models.branching.step_model import end_tokens
from tokenq.models.branching.tree import TokenTree
from tokenq.models.forward import causal_lm, row_states
from tokenq.models.head import vocabulary_logps, vocabulary_size
from tokenq.models.packing import Ids
from tokenq.models.reference import AdapterOff, scoring


class RereadingModel:
    """A :class:`StepModel` without a cache: one plain forward of a whole sequence a node."""

    def __init__(self, model: nn.Module | AdapterOff) -> None:
        self._model = model
        with scoring(model) as active:
            inner = causal_lm(active)
            self.vocabulary = vocabulary_size(inner)
            self.eos_token_ids = end_tokens(inner)

    def open(self, tree: TokenTree) -> Tensor:
        """See :class:`StepModel`."""
        return self._behind(tree.prompts)

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """See :class:`StepModel`."""
        return self._behind([tree.sequence(node) for node in nodes.tolist()])

    def retain(self, tree: TokenTree) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""

    def _behind(self, sequences: Sequence[Ids]) -> Tensor:
        with scoring(self._model) as active:
            inner = causal_lm(active)
            states = torch.stack([row_states(inner, ids)[-1] for ids in sequences])
            return vocabulary_logps(inner, states)
