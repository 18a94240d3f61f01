"""What a model must be able to do so that its next tokens can be searched."""

from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from tokenq.models.branching.tree import TokenTree


class StepModel(Protocol):
    """A model that reads a tree of tokens as it grows.

    vocabulary: number of tokens V that it gives a probability

    A search of it ends responses with the tokens of its `eos_token_ids`, where it has any.
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

        Everything before that token has been read.
        """
        ...

    def retain(self, tree: TokenTree) -> None:
        """The tree has forgotten nodes: let go what is known of them."""
        ...

    def close(self) -> None:
        """The tree is done with: let go of everything."""
        ...


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """The end tokens of a model's generation settings, or else of its configuration."""
    for holder in (model.generation_config, model.config.get_text_config()):
        given: Any = getattr(holder, "eos_token_id", None)
        if given is not None:
            return (given,) if isinstance(given, int) else tuple(given)
    return ()
