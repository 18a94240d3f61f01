"""Weights of tokens and of pairs: length desensitisation (LD-DPO) and on-policy weights (WPO)."""

import torch
from torch import Tensor

from tokenq.objectives.base import masked_mean
from tokenq.objectives.batch import PairLogps, ResponseLogps


def desensitised(
    batch: PairLogps, chosen: Tensor, rejected: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Multiply per-step values [B, T] by alpha beyond the length of the pair's shorter response.

    "Length Desensitization in Direct Preference Optimization" (Liu et al., arXiv 2409.06411): the
    log-probability of the longer response is that of its first `l` tokens plus alpha times that of
    the rest, with l = min(|y_w|, |y_l|). Policy and reference are treated alike, as in TRL. Lengths
    count unmasked steps.
    """
    shared = torch.minimum(batch.chosen_mask.sum(-1), batch.rejected_mask.sum(-1))

    def weighted(values: Tensor, mask: Tensor) -> Tensor:
        beyond = mask.cumsum(-1) > shared[:, None]
        return torch.where(beyond, alpha * values, values)

    return weighted(chosen, batch.chosen_mask), weighted(rejected, batch.rejected_mask)


def on_policy_weights(batch: PairLogps) -> Tensor:
    """Weight [B] of each pair, without gradient: w(chosen) * w(rejected), with

        w(y) = exp( mean_t log pi(y_t|s_t) - log sum_a pi(a|s_t)^2 )

    eq. 2 of "WPO: Enhancing RLHF with Weighted Preference Optimization" (Zhou et al., arXiv
    2406.11827), the weights aligned to samples of the policy: the sum is the mean probability of a
    token drawn from it. An empty response has the weight 1.
    """
    return (_log_weight(batch.chosen_side) + _log_weight(batch.rejected_side)).exp()


def _log_weight(side: ResponseLogps) -> Tensor:
    return masked_mean(side.log_probs.detach() - side.feature("collision").detach(), side.mask)
