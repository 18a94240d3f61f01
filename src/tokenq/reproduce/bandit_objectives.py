"""Exact expectation of a registered objective over all pairs, answers or rankings of a bandit.

Each possible row is handed to the objective by itself and weighted by its probability, so nothing
is sampled. Objectives whose rows see one another get one batch with rows in proportion instead.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from tokenq.mdp.targets import PopulationLoss, PreferenceBandit
from tokenq.objectives import (
    LabelledLogps,
    PairLogps,
    RankedLogps,
    ResponseLogps,
    StepFeatures,
)

COUPLED_ROWS = 120
"""Rows of the batch that stands for the population where rows see one another."""
LIST_LENGTH = 3
"""Answers of a ranked row."""

Rows = dict[str, Tensor]
ONE_STEP = torch.ones(1, 1, dtype=torch.bool)


def population_loss(objective: Any) -> PopulationLoss:
    """Return the expected loss [N] of N problems, from log pi [N, K].

    Answers have one step. Raises ValueError for a kind of row that no bandit has.
    """
    kinds = {
        "preference": _over_pairs,
        "sft": _over_chosen,
        "unpaired": _over_labels,
        "ranked": _over_rankings,
    }
    if objective.kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {objective.kind!r}")
    rows_of = kinds[objective.kind]

    def loss(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
        return rows_of(objective, log_policy, bandit)

    return loss


def uses_reference(objective: Any) -> bool:
    """Whether the objective asks for the reference's log-probabilities."""
    return "reference" in objective.needs


def _over_pairs(objective: Any, log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    chosen, rejected = torch.tensor(list(itertools.permutations(range(bandit.answers), 2))).T
    weights = bandit.labelled_pairs[:, chosen, rejected]
    steps = _steps(log_policy, bandit)

    def one(first: Rows, second: Rows) -> Tensor:
        return _value(objective, _pair(first, second))

    if objective.couples_rows:
        index = _in_proportion(weights)
        return torch.func.vmap(one)(_take(steps, chosen[index]), _take(steps, rejected[index]))
    losses = torch.func.vmap(one)(_alone(steps, chosen), _alone(steps, rejected))
    return (weights * losses.view_as(weights)).sum(-1)


def _over_chosen(objective: Any, log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    every = _alone(_steps(log_policy, bandit), torch.arange(bandit.answers))
    losses = torch.func.vmap(lambda row: _value(objective, _response(row)))(every)
    return (bandit.chosen_law * losses.view_as(log_policy)).sum(-1)


def _over_labels(objective: Any, log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """Chosen answers are labelled good, rejected ones bad, as unpaired data from pairs are."""
    good = bandit.chosen_law / 2
    seen = good + bandit.labelled_pairs.sum(-2) / 2
    labels = torch.where(seen > 0, good / seen.clamp_min(1e-300), 0.5)
    steps = _steps(log_policy, bandit)

    def one(rows: Rows, label: Tensor) -> Tensor:
        responses = _response(rows)
        return _value(objective, LabelledLogps(responses, label, mismatched=responses))

    if objective.couples_rows:
        index = _in_proportion(seen)
        return torch.func.vmap(one)(_take(steps, index), labels.gather(1, index))
    every = _alone(steps, torch.arange(bandit.answers))
    losses = torch.func.vmap(one)(every, labels.view(-1, 1))
    return (seen * losses.view_as(seen)).sum(-1)


def _over_rankings(objective: Any, log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """Rankings of different answers drawn from the coverage."""
    orders = torch.tensor(list(itertools.permutations(range(bandit.answers), LIST_LENGTH)))
    weights = ranking_law(orders, bandit)
    ranks = torch.arange(LIST_LENGTH)[None]

    def one(rows: Rows) -> Tensor:
        return _value(objective, RankedLogps(_response(rows), ranks))

    rows = {
        name: value.view(-1, LIST_LENGTH, 1)
        for name, value in _alone(_steps(log_policy, bandit), orders.flatten()).items()
    }
    return (weights * torch.func.vmap(one)(rows).view_as(weights)).sum(-1)


def ranking_law(orders: Tensor, bandit: PreferenceBandit) -> Tensor:
    """[N, R] probability of each ordered list [R, L] of answers, the best one first.

    By repeated choice: answer i is next with a probability proportional to
    1 / sum_j odds(j over i), j running over what is left. That is Plackett-Luce for Bradley-Terry
    labels, the order itself for labels without noise, and `preferences` for lists of two.
    """
    odds = bandit.preferences.mT / bandit.preferences
    law = bandit.coverage[:, orders].prod(-1)
    for place in range(orders.shape[1] - 1):
        rest = orders[:, place:]
        between = odds[:, rest[:, :, None], rest[:, None, :]]
        choice = 1 / between.sum(-1)
        law = law * choice[..., 0] / choice.sum(-1)
    return law / law.sum(-1, keepdim=True)


def _steps(log_policy: Tensor, bandit: PreferenceBandit) -> Rows:
    """What a batch holds about each answer's only step, each [N, K]."""
    reference = bandit.reference.log()
    from_reference = (bandit.reference * (reference - log_policy)).sum(-1, keepdim=True)
    collision = torch.logsumexp(2 * log_policy.detach(), -1, keepdim=True)
    return {
        "logps": log_policy,
        "ref_logps": reference,
        "kl": from_reference.expand_as(log_policy),
        "collision": collision.expand_as(log_policy),
        "logits": log_policy,
        "rewards": bandit.reward,
    }


def _take(steps: Rows, index: Tensor) -> Rows:
    """The answers `index` [N, R] of every problem: [N, R, 1]."""
    return {name: value.gather(1, index)[..., None] for name, value in steps.items()}


def _alone(steps: Rows, answers: Tensor) -> Rows:
    """The answers [R] of every problem as batches of one row: [N * R, 1, 1]."""
    return {name: value.index_select(1, answers).reshape(-1, 1, 1) for name, value in steps.items()}


def _response(rows: Rows) -> ResponseLogps:
    """Rows [B, 1] as responses of one step."""
    mask = ONE_STEP.expand(len(rows["logps"]), 1)
    features = StepFeatures(
        kl=rows["kl"],
        collision=rows["collision"],
        logits=rows["logits"],
        rewards=rows["rewards"],
        edits=mask,
        segments=torch.zeros(len(mask), 1, dtype=torch.int64),
    )
    return ResponseLogps(rows["logps"], mask, rows["ref_logps"], features)


def _pair(chosen: Rows, rejected: Rows) -> PairLogps:
    first, second = _response(chosen), _response(rejected)
    return PairLogps(
        first.logps,
        second.logps,
        chosen["ref_logps"],
        rejected["ref_logps"],
        first.mask,
        second.mask,
        first.features,
        second.features,
    )


def _value(objective: Any, batch: object) -> Tensor:
    loss: Tensor = objective(batch)[0]
    return loss


def _in_proportion(weights: Tensor) -> Tensor:
    """[N, COUPLED_ROWS] indices that occur in proportion to `weights` [N, R], by quantiles."""
    cumulative = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    cumulative = cumulative.clone()
    cumulative[:, -1] = math.inf
    quantiles = (torch.arange(COUPLED_ROWS, dtype=weights.dtype) + 0.5) / COUPLED_ROWS
    return torch.searchsorted(cumulative, quantiles.expand(len(weights), -1).contiguous())
