"""A prompt with a few answers of one step each: policies small enough to be solved exactly.

An answer is an arm, its log-probability one entry of `log_policy` [arms], float64.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tokenq.objectives import LabelledLogps, PairLogps, RankedLogps, ResponseLogps


def fit(expected_loss: Callable[[Tensor], Tensor], arms: int) -> Tensor:
    """Return the log-policy [arms] that minimises a loss of the log-policy, from uniform."""
    logits = torch.zeros(arms, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=500,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = expected_loss(logits.log_softmax(0))
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().log_softmax(0)


def responses(log_policy: Tensor, log_ref: Tensor, arms: Sequence[int]) -> ResponseLogps:
    """One response of one step a row."""
    index = torch.tensor(arms)
    mask = torch.ones(len(index), 1, dtype=torch.bool)
    return ResponseLogps(log_policy[index][:, None], mask, log_ref[index][:, None])


def pair(log_policy: Tensor, log_ref: Tensor, chosen: int, rejected: int) -> PairLogps:
    """One pair of arms."""
    better, worse = (responses(log_policy, log_ref, [arm]) for arm in (chosen, rejected))
    assert better.ref_logps is not None
    assert worse.ref_logps is not None
    return PairLogps(
        better.logps, worse.logps, better.ref_logps, worse.ref_logps, better.mask, worse.mask
    )


def compared(objective: Callable[[PairLogps], tuple[Tensor, object]], q: float) -> Tensor:
    """Return the log-policy [2] at which a pair objective ends, the first arm winning with q."""
    log_ref = torch.tensor([0.3, 0.7], dtype=torch.float64).log()

    def expected(log_policy: Tensor) -> Tensor:
        first, _ = objective(pair(log_policy, log_ref, 0, 1))
        second, _ = objective(pair(log_policy, log_ref, 1, 0))
        return q * first + (1 - q) * second

    return fit(expected, 2)


def labelled(log_policy: Tensor, log_ref: Tensor, good: Tensor) -> LabelledLogps:
    """Every arm once, good with these probabilities; mismatched answers are the arms again."""
    side = responses(log_policy, log_ref, range(len(good)))
    return LabelledLogps(side, good, side)


def ranking(log_policy: Tensor, log_ref: Tensor, order: Sequence[int]) -> RankedLogps:
    """One list of arms, the best first."""
    return RankedLogps(responses(log_policy, log_ref, order), torch.arange(len(order))[None])


def ranking_probabilities(rewards: Tensor) -> Iterator[tuple[tuple[int, ...], float]]:
    """All rankings of the arms and their Plackett-Luce probabilities, drawn one arm at a time."""
    weights = rewards.exp().tolist()
    for order in itertools.permutations(range(len(weights))):
        probability, left = 1.0, list(order)
        for arm in order:
            probability *= weights[arm] / sum(weights[other] for other in left)
            left.remove(arm)
        yield order, probability
