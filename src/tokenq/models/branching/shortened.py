"""A model of which only the first tokens count: large and small siblings pad their heads apart."""

from collections.abc import Mapping

from torch import Tensor

from tokenq.models.branching.step_model import StepModel
from tokenq.models.branching.tree import TokenTree


def same_length(models: Mapping[str, StepModel]) -> dict[str, StepModel]:
    """The models, all with the tokens that the shortest of their heads has."""
    shortest = min(model.vocabulary for model in models.values())
    return {
        name: model if model.vocabulary == shortest else ShortenedModel(model, shortest)
        for name, model in models.items()
    }


class ShortenedModel:
    """A :class:`StepModel` that shows the first `vocabulary` tokens of another one.

    Log-probabilities stay those of the whole head, padding rows included, as when the model
    generates: they sum to a little less than 1. Raises ValueError for more tokens than it has.
    """

    def __init__(self, model: StepModel, vocabulary: int) -> None:
        if not 0 < vocabulary <= model.vocabulary:
            raise ValueError(f"vocabulary is {vocabulary}; accepted: 1 to {model.vocabulary}")
        self.model = model
        self.vocabulary = vocabulary
        ends: tuple[int, ...] = getattr(model, "eos_token_ids", ())
        self.eos_token_ids = tuple(token for token in ends if token < vocabulary)

    def open(self, tree: TokenTree) -> Tensor:
        """See :class:`StepModel`."""
        return self.model.open(tree)[:, : self.vocabulary]

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """See :class:`StepModel`."""
        return self.model.read(tree, nodes)[:, : self.vocabulary]

    def retain(self, tree: TokenTree) -> None:
        """See :class:`StepModel`."""
        self.model.retain(tree)

    def close(self) -> None:
        """See :class:`StepModel`."""
        self.model.close()
