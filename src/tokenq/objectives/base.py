"""What every objective has in common: its call, what it asks for, and the sums it is built from."""

import math
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Metrics = dict[str, Tensor]
Kind = Literal["sft", "preference", "unpaired", "ranked"]
Need = Literal[
    "reference", "mismatched", "kl", "collision", "logits", "rewards", "edits", "segments"
]
"""`reference`: ref_logps. `mismatched`: see `LabelledLogps`. The others: see `StepFeatures`."""

NOTHING: frozenset[Need] = frozenset()
REFERENCE: frozenset[Need] = frozenset({"reference"})

BatchT = TypeVar("BatchT", contravariant=True)


class Objective(Protocol[BatchT]):
    """A dataclass of hyper-parameters with one call: per-step log-probs in, loss and metrics out.

    The loss is a mean over `weight(batch)` terms. A batch that was cut into parts (micro-batches,
    processes) therefore has the loss `sum(weight_i * loss_i) / sum(weight_i)`, exactly, unless
    `couples_rows`: then a term depends on other rows of the batch (a sort, a batch mean), and the
    trainer hands over the rows of one device batch together.

    kind: the batch it is called with: "sft" ResponseLogps, "preference" PairLogps, "unpaired"
          LabelledLogps, "ranked" RankedLogps.
    """

    kind: ClassVar[Kind]
    couples_rows: ClassVar[bool]

    @property
    def needs(self) -> frozenset[Need]:
        """What the batch must hold beside the policy's log-probs."""
        ...

    def __call__(self, batch: BatchT) -> tuple[Tensor, Metrics]:
        """Return the loss (0-dim, differentiable) and detached 0-dim metrics."""
        ...

    def weight(self, batch: BatchT) -> Tensor:
        """Return the number of terms that the loss is a mean over (0-dim)."""
        ...


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum `values` [B, T] over the steps that `mask` holds: [B]. Masked NaN or inf is ignored."""
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return torch.where(mask, values, values.new_zeros(())).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B, T] over the steps that `mask` holds: [B]. 0 for an empty row."""
    return masked_sum(values, mask) / mask.sum(-1).clamp_min(1)


def batch_mean(values: Tensor) -> Tensor:
    """Mean of [N] terms, 0-dim; 0 where there are none."""
    return values.sum() / max(1, values.numel())


def smoothed_sigmoid(logit: Tensor, label_smoothing: float) -> Tensor:
    """`-(1-e) log sigmoid(logit) - e log sigmoid(-logit)`: labels flipped with probability e.

    Any shape.
    """
    kept = (1 - label_smoothing) * logsigmoid(logit)
    return -kept - label_smoothing * logsigmoid(-logit)


def reward_metrics(chosen: Tensor, rejected: Tensor) -> Metrics:
    """Means of the rewards [B] of both sides, their margin, and how often chosen is ahead.

    Names as TRL has them.
    """
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": batch_mean(chosen),
        "rewards/rejected": batch_mean(rejected),
        "rewards/margins": batch_mean(chosen - rejected),
        "rewards/accuracies": batch_mean((chosen > rejected).to(chosen.dtype)),
    }


def require_positive(**values: float) -> None:
    """Raise ValueError for the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be > 0, got {value}")


def require_within(low: float, high: float, **values: float) -> None:
    """Raise ValueError for the first value outside [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")


def require_label_smoothing(value: float) -> None:
    """Raise ValueError if `value` is not a probability below one half of a flipped label."""
    if not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {value}")


def require_not_negative(**values: float) -> None:
    """Raise ValueError for the first value that is not a finite number of at least 0."""
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be >= 0, got {value}")


def require_one_of(accepted: tuple[str, ...], **values: str) -> None:
    """Raise ValueError for the first value that is not among the accepted names."""
    for name, value in values.items():
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
