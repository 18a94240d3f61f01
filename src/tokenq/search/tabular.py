"""Exact token MDPs as models to search: in float64, so that a search can be held to the truth."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tokenq.mdp.arrays import Array
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.tree import TokenTree
from tokenq.models.packing import Ids


class TabularModel:
    """A :class:`StepModel` that is a table over the states of a :class:`PrefixTree`.

    Prompt number p of the MDP is the prompt `[p]`; its tokens are those of the MDP.

    tree:       the states
    log_policy: [S, A] log pi(a|s)

    Raises ValueError for a prompt or a token that the MDP does not have.
    """

    def __init__(self, tree: PrefixTree, log_policy: Array) -> None:
        self.tree = tree
        self.log_policy = torch.from_numpy(np.asarray(log_policy, dtype=np.float64))
        if self.log_policy.shape != (tree.states, tree.vocabulary):
            raise ValueError(
                f"log_policy must be [{tree.states}, {tree.vocabulary}] (states, tokens), got "
                f"{tuple(self.log_policy.shape)}"
            )
        self.eos_token_ids = () if tree.eos is None else (tree.eos,)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.tree.vocabulary

    @property
    def readable(self) -> int:
        """Number of prompts: what may stand in one."""
        return self.tree.prompts

    def open(self, tree: TokenTree) -> Tensor:
        """See :class:`StepModel`."""
        return self.log_policy[[self.state(prompt, ()) for prompt in tree.prompts]]

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """See :class:`StepModel`."""
        states = [
            self.state(tree.prompts[int(tree.prompt(node))], tree.response(int(node)))
            for node in nodes[:, None]
        ]
        return self.log_policy[states]

    def retain(self, tree: TokenTree) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""

    def state(self, prompt: Ids, tokens: Sequence[int]) -> int:
        """Number of the state in which `tokens` have been written behind prompt `[p]`."""
        if len(prompt) != 1:
            raise ValueError(f"prompt {list(prompt)} is none of [0] to [{self.tree.prompts - 1}]")
        return self.tree.state(int(prompt[0]), tuple(tokens))


def tabular_models(tree: PrefixTree, **log_policies: Array) -> Mapping[str, TabularModel]:
    """Models to search in step: `tabular_models(tree, policy=..., reference=...)`."""
    return {name: TabularModel(tree, table) for name, table in log_policies.items()}
