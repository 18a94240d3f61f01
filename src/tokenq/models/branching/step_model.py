"""What a model must be able to do so that its next tokens can be searched."""

from typing import Protocol

from torch import Tensor

from tokenq.models.branching.tree import TokenTree


class StepModel(Protocol):
    """A model that reads a tree of tokens as it grows.

    vocabulary: number of tokens V that it gives a probability
    """

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        ...

    def open(self, tree: TokenTree) -> Tensor:
        """Read the tree's prompts; return log pi(. | prompt), [P, V] fp32 or better, nats."""
        ...

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """Read the last token of each node [R]; return log pi(. | what it ends), [R, V].

        Everything before that token has been read; nodes are in the order of their prompts.
        """
        ...

    def retain(self, tree: TokenTree) -> None:
        """The tree has forgotten nodes: let go what is known of them."""
        ...

    def close(self) -> None:
        """The tree is done with: let go of everything."""
        ...
