"""The tokens that branches share: a forest with a prompt at each root. Integers only, no model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenq.models.packing import Ids

_FIRST_CAPACITY = 64
_NOBODY = -1


class TokenTree:
    """Tokens behind prompts, numbered so that a model can keep what it knows of each in a table.

    Nodes 0..P-1 are the prompts. Every further node is one token and has a *slot*, `node - P`, the
    place in such tables; :meth:`retain` gives slots back, so numbers are used again. Index tensors
    are int64 and on the CPU.

    Raises ValueError for a prompt without tokens.
    """

    def __init__(self, prompts: Sequence[Ids]) -> None:
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f"prompt {number} has no tokens")
        self.prompts = [list(map(int, prompt)) for prompt in prompts]
        self.prompt_lengths = torch.tensor([len(prompt) for prompt in self.prompts])
        roots = len(self.prompts)
        self._parent = torch.full((roots,), _NOBODY)
        self._token = torch.full((roots,), _NOBODY)
        self._prompt = torch.arange(roots)
        self._depth = torch.zeros(roots, dtype=torch.long)
        # Column d - 1 of a row: the node of depth d on the way to the row's node.
        self._paths = torch.full((roots, 1), _NOBODY)
        self._free: list[int] = []
        self.active = torch.ones(roots, dtype=torch.bool)
        """[P] the prompts that still have nodes; all until :meth:`retain` says otherwise."""
        self._grow(_FIRST_CAPACITY)

    @property
    def roots(self) -> Tensor:
        """[P] the nodes of the prompts."""
        return torch.arange(len(self.prompts))

    @property
    def slots(self) -> int:
        """How many slots there are, free ones included: the length of a table over nodes."""
        return len(self._parent) - len(self.prompts)

    @property
    def used(self) -> int:
        """How many slots hold a token."""
        return self.slots - len(self._free)

    def add(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Put one token [R] behind each of the nodes `parents` [R]; return the new nodes [R]."""
        parents, tokens = parents.cpu(), tokens.cpu()
        while len(self._free) < len(parents):
            self._grow(self.slots)
        nodes = torch.tensor([self._free.pop() for _ in range(len(parents))], dtype=torch.long)
        depth = self._depth[parents] + 1
        self._parent[nodes], self._token[nodes] = parents, tokens
        self._prompt[nodes], self._depth[nodes] = self._prompt[parents], depth
        deepest = int(depth.max()) if len(depth) else 0
        if deepest > self._paths.shape[1]:
            more = max(deepest, 2 * self._paths.shape[1]) - self._paths.shape[1]
            self._paths = torch.nn.functional.pad(self._paths, (0, more), value=_NOBODY)
        self._paths[nodes] = self._paths[parents]
        self._paths[nodes, depth - 1] = nodes
        return nodes

    def retain(self, nodes: Tensor) -> None:
        """Forget every node but these, their ancestors and the prompts."""
        kept = torch.zeros(len(self._parent), dtype=torch.bool)
        kept[self._paths[nodes.cpu()].clamp_min(0)] = True  # -1 becomes a prompt, kept anyhow
        kept[: len(self.prompts)] = True
        self.active = torch.zeros(len(self.prompts), dtype=torch.bool)
        self.active[self._prompt[nodes.cpu()]] = True
        # Low numbers are given out first, so that tables stay small.
        self._free = (~kept).nonzero().squeeze(-1).flip(0).tolist()

    def paths(self, nodes: Tensor) -> Tensor:
        """[R, D] the tokens' nodes on the way to each node, its own last; -1 behind the end."""
        nodes = nodes.cpu()
        depth = int(self._depth[nodes].max()) if len(nodes) else 0
        return self._paths[nodes, :depth]

    def depth(self, nodes: Tensor) -> Tensor:
        """[R] number of tokens behind the prompt."""
        return self._depth[nodes.cpu()]

    def prompt(self, nodes: Tensor) -> Tensor:
        """[R] which prompt each node stands behind."""
        return self._prompt[nodes.cpu()]

    def parent(self, nodes: Tensor) -> Tensor:
        """[R] the node before; -1 for a prompt."""
        return self._parent[nodes.cpu()]

    def token(self, nodes: Tensor) -> Tensor:
        """[R] the last token; -1 for a prompt."""
        return self._token[nodes.cpu()]

    def response(self, node: int) -> list[int]:
        """The tokens behind the prompt, up to this node."""
        return self._token[self._paths[node, : int(self._depth[node])]].tolist()

    def sequence(self, node: int) -> list[int]:
        """The prompt's tokens and those behind it, up to this node."""
        return self.prompts[int(self._prompt[node])] + self.response(node)

    def _grow(self, more: int) -> None:
        first = len(self._parent)
        blank = torch.full((more,), _NOBODY)
        self._parent = torch.cat([self._parent, blank])
        self._token = torch.cat([self._token, blank])
        self._prompt = torch.cat([self._prompt, blank])
        self._depth = torch.cat([self._depth, torch.zeros(more, dtype=torch.long)])
        self._paths = torch.nn.functional.pad(self._paths, (0, 0, 0, more), value=_NOBODY)
        self._free = list(range(first + more - 1, first - 1, -1)) + self._free
