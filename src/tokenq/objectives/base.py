"""What every objective has in common: its call, the weight of its mean, and masked sums."""

from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
Batch = TypeVar("Batch", contravariant=True)


class Objective(Protocol[Batch]):
    """A dataclass of hyper-parameters with one call: per-step log-probs in, loss and metrics out.

    The loss is a mean over `weight(batch)` terms. A batch that was cut into parts (micro-batches,
    processes) therefore has the loss `sum(weight_i * loss_i) / sum(weight_i)`, exactly.
    """

    kind: ClassVar[Literal["preference", "sft"]]
    needs_reference: ClassVar[bool]

    def __call__(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the loss (0-dim, differentiable) and detached 0-dim metrics."""
        ...

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of terms that the loss is a mean over (0-dim)."""
        ...


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum `values` [B, T] over the steps that `mask` holds: [B]. Masked NaN or inf is ignored."""
    return torch.where(mask, values, values.new_zeros(())).sum(-1)
