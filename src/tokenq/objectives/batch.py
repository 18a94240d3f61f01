"""What an objective is given: log-probabilities of the taken steps, never token ids or models.

A step is a token, an action or a denoising step; everything here is `[B, T]`, natural log, fp32 or
better, with a boolean mask that is True on real steps. Values under a False mask are ignored.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ResponseLogps:
    """One response per row.

    logps:     [B, T] log pi(a_t | s_t) of the taken steps
    mask:      [B, T] bool
    ref_logps: [B, T] the same steps under the reference, or None where no reference is used
    """

    logps: Tensor
    mask: Tensor
    ref_logps: Tensor | None = None

    def __post_init__(self) -> None:
        _check("logps", self.logps, "mask", self.mask)
        if self.ref_logps is not None:
            _check("ref_logps", self.ref_logps, "mask", self.mask)


@dataclass(frozen=True)
class PairLogps:
    """A preferred and a dispreferred response per row; the two sides may have different widths.

    chosen, ref_chosen, chosen_mask:       [B, T_chosen]
    rejected, ref_rejected, rejected_mask: [B, T_rejected]
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_mask: Tensor
    rejected_mask: Tensor

    def __post_init__(self) -> None:
        for name in ("chosen", "ref_chosen"):
            _check(name, getattr(self, name), "chosen_mask", self.chosen_mask)
        for name in ("rejected", "ref_rejected"):
            _check(name, getattr(self, name), "rejected_mask", self.rejected_mask)
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"{len(self.chosen)} chosen rows but {len(self.rejected)} rejected")

    @property
    def chosen_side(self) -> ResponseLogps:
        """The preferred responses alone, for objectives over single responses."""
        return ResponseLogps(self.chosen, self.chosen_mask, self.ref_chosen)

    @property
    def rejected_side(self) -> ResponseLogps:
        """The dispreferred responses alone."""
        return ResponseLogps(self.rejected, self.rejected_mask, self.ref_rejected)


def _check(name: str, value: Tensor, mask_name: str, mask: Tensor) -> None:
    if value.ndim != 2 or value.shape != mask.shape:
        raise ValueError(
            f"{name} must be [B, T] like {mask_name}: got {tuple(value.shape)} and "
            f"{tuple(mask.shape)}"
        )
