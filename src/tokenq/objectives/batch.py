"""What an objective is given: log-probabilities of the taken steps, never token ids or models.

A step is a token, an action or a denoising step; everything here is `[B, T]`, natural log, with a
boolean mask that is True on real steps. Values under a False mask are ignored. Half-precision
inputs are brought to fp32 by every accessor; fp64 stays fp64.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepFeatures:
    """What some objectives ask of a step beside its log-probability; each `[B, T]` or None.

    kl:        KL(pi_ref(.|s_t) || pi(.|s_t)) over the whole vocabulary, nats, differentiable
    collision: log sum_a pi(a|s_t)^2 of the policy, nats, without gradient
    logits:    the policy's raw logit of the taken step (any additive constant included),
               differentiable
    rewards:   reward of the step by a model that is not being trained
    edits:     bool, the step differs from what stands in the other response of the pair
    segments:  int64, number of the turn or reasoning step that the step belongs to, from 0
    """

    kl: Tensor | None = None
    collision: Tensor | None = None
    logits: Tensor | None = None
    rewards: Tensor | None = None
    edits: Tensor | None = None
    segments: Tensor | None = None

    def require(self, name: str) -> Tensor:
        """Return the feature `name`; raises ValueError where the batch lacks it."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"the batch has no step feature {name!r}, which this objective needs")
        return value

    def check(self, mask: Tensor) -> None:
        """Raise ValueError if a feature has another shape than `mask`."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _check(field.name, value, "mask", mask)


NO_FEATURES = StepFeatures()


@dataclass(frozen=True)
class ResponseLogps:
    """One response per row.

    logps:     [B, T] log pi(a_t | s_t) of the taken steps
    mask:      [B, T] bool
    ref_logps: [B, T] the same steps under the reference, or None where no reference is used
    features:  further values of each step, see :class:`StepFeatures`
    """

    logps: Tensor
    mask: Tensor
    ref_logps: Tensor | None = None
    features: StepFeatures = NO_FEATURES

    def __post_init__(self) -> None:
        _check("logps", self.logps, "mask", self.mask)
        if self.ref_logps is not None:
            _check("ref_logps", self.ref_logps, "mask", self.mask)
        self.features.check(self.mask)

    def __len__(self) -> int:
        return len(self.logps)

    @property
    def log_probs(self) -> Tensor:
        """[B, T] log pi, 0 where masked."""
        return self.masked(self.logps)

    @property
    def log_ratios(self) -> Tensor:
        """[B, T] log pi - log pi_ref, 0 where masked. Raises ValueError without a reference."""
        if self.ref_logps is None:
            raise ValueError("the batch has no ref_logps, which this objective needs")
        return self.masked(_full(self.logps) - _full(self.ref_logps))

    @property
    def lengths(self) -> Tensor:
        """[B] number of real steps, in the type of the log-probs."""
        return self.mask.sum(-1).to(_full(self.logps).dtype)

    def feature(self, name: str) -> Tensor:
        """[B, T] the named :class:`StepFeatures` value, 0 where masked."""
        return self.masked(self.features.require(name))

    def masked(self, values: Tensor) -> Tensor:
        """[B, T] `values` with 0 where the mask is False, whatever stands there."""
        values = _full(values)
        return torch.where(self.mask, values, values.new_zeros(()))


@dataclass(frozen=True)
class PairLogps:
    """A preferred and a dispreferred response per row; the two sides may have different widths.

    chosen, ref_chosen, chosen_mask:       [B, T_chosen]
    rejected, ref_rejected, rejected_mask: [B, T_rejected]

    Without a reference `ref_chosen` and `ref_rejected` are zeros.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_mask: Tensor
    rejected_mask: Tensor
    chosen_features: StepFeatures = NO_FEATURES
    rejected_features: StepFeatures = NO_FEATURES

    def __post_init__(self) -> None:
        for name in ("chosen", "ref_chosen"):
            _check(name, getattr(self, name), "chosen_mask", self.chosen_mask)
        for name in ("rejected", "ref_rejected"):
            _check(name, getattr(self, name), "rejected_mask", self.rejected_mask)
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"{len(self.chosen)} chosen rows but {len(self.rejected)} rejected")
        self.chosen_features.check(self.chosen_mask)
        self.rejected_features.check(self.rejected_mask)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def chosen_side(self) -> ResponseLogps:
        """The preferred responses alone."""
        return ResponseLogps(self.chosen, self.chosen_mask, self.ref_chosen, self.chosen_features)

    @property
    def rejected_side(self) -> ResponseLogps:
        """The dispreferred responses alone."""
        return ResponseLogps(
            self.rejected, self.rejected_mask, self.ref_rejected, self.rejected_features
        )


@dataclass(frozen=True)
class LabelledLogps:
    """Single responses, each called good or bad by itself.

    responses:  B responses
    labels:     [B] probability in [0, 1] that the response is good; bool for plain labels
    mismatched: B answers to other prompts, scored after this row's prompt: what KTO estimates its
                KL point from, or None where no objective asks for it
    """

    responses: ResponseLogps
    labels: Tensor
    mismatched: ResponseLogps | None = None

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.responses),):
            raise ValueError(
                f"labels must be [{len(self.responses)}], got {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class RankedLogps:
    """Several responses to one prompt per row, in a known order of quality.

    answers: K responses per row, rows first: its tensors are [B * K, T], answer k of row b at
             b * K + k. An absent answer (a shorter list) is fully masked.
    ranks:   [B, K] int64, 0 the best; equal ranks are ties; -1: the answer is absent
    """

    answers: ResponseLogps
    ranks: Tensor

    def __post_init__(self) -> None:
        if self.ranks.ndim != 2 or self.ranks.numel() != len(self.answers):
            raise ValueError(
                f"ranks must be [B, K] with B * K = {len(self.answers)} answers, "
                f"got {tuple(self.ranks.shape)}"
            )

    def __len__(self) -> int:
        return len(self.ranks)

    def per_answer(self, values: Tensor) -> Tensor:
        """[B * K] values of single answers as [B, K]."""
        return values.view(self.ranks.shape)

    def pairs(self) -> PairLogps:
        """All pairs of one row whose ranks differ, the better answer chosen; no ties, no absent."""
        better, worse = self.pair_indices()
        chosen, rejected = _take(self.answers, better), _take(self.answers, worse)
        zeros = torch.zeros_like
        return PairLogps(
            chosen.logps,
            rejected.logps,
            zeros(chosen.logps) if chosen.ref_logps is None else chosen.ref_logps,
            zeros(rejected.logps) if rejected.ref_logps is None else rejected.ref_logps,
            chosen.mask,
            rejected.mask,
            chosen.features,
            rejected.features,
        )

    def pair_indices(self) -> tuple[Tensor, Tensor]:
        """Indices [P] into the answers: the better and the worse of every pair."""
        first, second = self.ranks[:, :, None], self.ranks[:, None, :]
        row, i, j = ((first >= 0) & (first < second)).nonzero(as_tuple=True)
        width = self.ranks.shape[1]
        return row * width + i, row * width + j


Batch = ResponseLogps | PairLogps | LabelledLogps | RankedLogps
"""What the trainer hands to an objective, by its `kind`."""


def _take(answers: ResponseLogps, index: Tensor) -> ResponseLogps:
    features = {
        field.name: None if value is None else value[index]
        for field in fields(StepFeatures)
        for value in [getattr(answers.features, field.name)]
    }
    return ResponseLogps(
        answers.logps[index],
        answers.mask[index],
        None if answers.ref_logps is None else answers.ref_logps[index],
        StepFeatures(**features),
    )


def _full(values: Tensor) -> Tensor:
    """Half precision to fp32; all other types as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _check(name: str, value: Tensor, mask_name: str, mask: Tensor) -> None:
    if value.ndim != 2 or value.shape != mask.shape:
        raise ValueError(
            f"{name} must be [B, T] like {mask_name}: got {tuple(value.shape)} and "
            f"{tuple(mask.shape)}"
        )
