"""Token credit where the truth is known exactly: token MDPs small enough to be solved.

Responses earn a little at every token and lose much at a few wrong ones; a judge sees whole
responses only. What an estimator reads off the trained policy is compared with the exact advantage
of every token (what training on preferences determines), with the token's own reward (what people
mean by a wrong token), and with which tokens are wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenq.credit.estimators import (
    centred,
    partly_referenced,
    policy_centred,
    standardised,
)
from tokenq.mdp import (
    Comparisons,
    PrefixTree,
    Solution,
    TokenMDP,
    bradley_terry,
    expected_pair_loss,
)
from tokenq.mdp.arrays import Array, log_softmax
from tokenq.objectives import DPO, IPO, Hinge, PairLogps
from tokenq.objectives.base import Metrics
from tokenq.reproduce.statistics import estimate
from tokenq.reproduce.tabular import train

Scores = dict[str, Array]
"""Per signal a score of every token in every state [S, A]; positive is liked."""
Flags = NDArray[np.bool_]
Loss = Callable[[PairLogps], tuple[Tensor, Metrics]]
"""An objective for pairs."""


@dataclass(frozen=True)
class World:
    """How token MDPs are drawn, and how policies are fitted to them.

    vocabulary, horizon: the tree; token 0 ends a response
    prompts:     number of prompts, each with a tree of its own
    beta:        strength of the tie to the reference, in the objectives and in the solution
    ref_scale:   deviation of the reference's logits
    noise:       deviation of a right token's reward
    error_rate:  share of the tokens that are wrong
    error_cost:  what a wrong token loses
    pairs:       numbers of labelled pairs, drawn from the reference; a quarter of each is held out
    objectives:  names of the objectives that policies are fitted by
    iterations:  most quasi-Newton steps on sampled pairs; three times as many on the expected loss
    """

    vocabulary: int = 4
    horizon: int = 3
    prompts: int = 4
    beta: float = 0.5
    ref_scale: float = 1.0
    noise: float = 0.2
    error_rate: float = 0.2
    error_cost: float = 2.0
    pairs: tuple[int, ...] = (50, 200, 800, 3200)
    objectives: tuple[str, ...] = ("dpo", "ipo", "hinge")
    iterations: int = 200


def tabular(seed: int, world: World | None = None) -> dict[str, Any]:
    """One world: how well every estimator tells the truth about its tokens.

    Returns `truth` (correlation of the exact advantage with the reward, and its AUROC of wrong
    tokens: the best that plain credit can reach), `controls` by signal, and `arms`: by objective,
    then by number of pairs ("exact" for the expected loss), then by estimator. Each entry has

        advantage: correlation with the exact advantage, beta * log(pi* / pi_ref) (eq. 10)
        reward:    correlation with the token's own reward
        wrong:     AUROC of wrong tokens, the lowest score being the most suspicious

    A state and token count as often as the reference takes them. Correlations are None where a
    score is constant. No label of a token is seen by any estimator.
    """
    world = world or World()
    rng = np.random.default_rng(seed)
    mdp, wrong = draw(world, rng)
    exact = mdp.solve(world.beta)
    judge = _Judge(mdp, exact.advantage, wrong, visits(mdp))
    arms: dict[str, dict[str, object]] = {}
    labels = {str(count): sample_pairs(mdp, count, rng) for count in world.pairs}
    for name in world.objectives:
        objective = _objective(name, world.beta)
        arms[name] = {
            count: judge.read(
                estimates(mdp, fit_samples(objective, mdp, sample, world), world.beta)
            )
            for count, sample in labels.items()
        }
        expected = fit_expected(objective, mdp, world)
        arms[name]["exact"] = judge.read(estimates(mdp, expected, world.beta))
    return {
        "seed": seed,
        "states": mdp.tree.states,
        "wrong": float(judge.weights[wrong].sum()),
        "truth": judge.read({"advantage": exact.advantage, "reward": mdp.reward}),
        "controls": judge.read(controls(mdp, exact)),
        "arms": arms,
    }


def summary(worlds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the worlds of :func:`tabular`, with their intervals.

    A measure that a world leaves undefined is a mean over the others.
    """
    arms = {
        name: {
            count: {
                signal: _means([world["arms"][name][count][signal] for world in worlds])
                for signal in own
            }
            for count, own in counts.items()
        }
        for name, counts in worlds[0]["arms"].items()
    }
    return {
        "worlds": len(worlds),
        "wrong": float(np.mean([world["wrong"] for world in worlds])),
        "truth": _each(worlds, "truth"),
        "controls": _each(worlds, "controls"),
        "arms": arms,
    }


def _each(worlds: Sequence[dict[str, Any]], part: str) -> dict[str, Any]:
    return {name: _means([world[part][name] for world in worlds]) for name in worlds[0][part]}


def _means(found: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    means = {}
    for name in found[0]:
        defined = [value for each in found if (value := each[name]) is not None]
        if defined:
            means[name] = estimate(defined)
    return means


def draw(world: World, rng: np.random.Generator) -> tuple[TokenMDP, Flags]:
    """An MDP, and which of its tokens are wrong, [S, A] bool. Ending a response is never wrong."""
    tree = PrefixTree(world.vocabulary, world.horizon, eos=0, prompts=world.prompts)
    shape = (tree.states, tree.vocabulary)
    wrong = rng.random(shape) < world.error_rate
    wrong[:, 0] = False
    reward = world.noise * rng.standard_normal(shape) - world.error_cost * wrong
    return TokenMDP(tree, reward, log_softmax(world.ref_scale * rng.standard_normal(shape))), wrong


def sample_pairs(mdp: TokenMDP, count: int, rng: np.random.Generator) -> Comparisons:
    """`count` pairs of different responses of the reference, each with a Bradley-Terry label."""
    likely = np.exp(mdp.tree.totals(mdp.ref_logps))
    prompts = rng.integers(mdp.tree.prompts, size=count)
    first = np.empty(count, dtype=np.int64)
    second = np.empty(count, dtype=np.int64)
    for i, prompt in enumerate(prompts):
        p = likely[prompt] / likely[prompt].sum()
        first[i] = rng.choice(p.size, p=p)
        other = np.where(np.arange(p.size) == first[i], 0.0, p)
        second[i] = rng.choice(p.size, p=other / other.sum())
    first_wins = (
        rng.logistic(size=count) < mdp.returns[prompts, first] - mdp.returns[prompts, second]
    )
    return Comparisons(
        prompts, np.where(first_wins, first, second), np.where(first_wins, second, first)
    )


def fit_samples(objective: Loss, mdp: TokenMDP, sample: Comparisons, world: World) -> Array:
    """[S, A] log-policy of least loss on the last quarter of the pairs, trained on the others.

    A few pairs can be told apart completely, by ratios without bound; the pairs held out say, from
    labels of responses alone, when to stop.
    """
    cut = max(1, (3 * len(sample.prompts)) // 4)
    kept = [_table(mdp, sample, part) for part in (slice(0, cut), slice(cut, None))]
    fit = train(objective, mdp, *kept[0], mdp.ref_logps, world.iterations)
    held_out = [_loss(objective, mdp, policy, *kept[1]) for policy in fit.policies]
    best: Array = fit.policies[int(np.argmin(held_out))]
    return best


def fit_expected(objective: Loss, mdp: TokenMDP, world: World) -> Array:
    """[S, A] log-policy of least expected loss: all pairs, drawn as the reference draws."""
    likely = np.exp(mdp.tree.totals(mdp.ref_logps))
    pairs = likely[:, :, None] * likely[:, None, :]
    labels = bradley_terry(mdp.returns)
    return train(objective, mdp, labels, pairs, mdp.ref_logps, 3 * world.iterations).log_policy


def estimates(mdp: TokenMDP, log_policy: Array, beta: float) -> Scores:
    """What the estimators of token credit say of every token in every state."""
    policy, reference = torch.as_tensor(log_policy), torch.as_tensor(mdp.ref_logps)
    ratio = policy - reference
    shared = reference.exp()
    divergence = -(shared * ratio).sum(-1, keepdim=True)
    variance = (shared * (ratio + divergence).square()).sum(-1, keepdim=True)
    policy_divergence = (policy.exp() * ratio).sum(-1, keepdim=True)
    rewards = beta * ratio
    read = {
        "plain": rewards,
        "centred": centred(rewards, divergence, beta),
        "policy_centred": policy_centred(rewards, policy_divergence, beta),
        "standardised": standardised(rewards, divergence, variance.expand_as(rewards), beta),
        "half_referenced": partly_referenced(policy, reference, beta, 0.5),
        "policy likelihood": policy,
    }
    return {name: scores.numpy() for name, scores in read.items()}


def controls(mdp: TokenMDP, exact: Solution) -> Scores:
    """Signals that no preference has taught anything, and the likelihood under the optimum."""
    depth = np.zeros(mdp.tree.states)
    for number, level in enumerate(mdp.tree.levels):
        depth[level] = number
    entropy = -(np.exp(mdp.ref_logps) * mdp.ref_logps).sum(-1)
    everywhere = np.ones_like(mdp.reward)
    return {
        "reference likelihood": mdp.ref_logps,
        "optimal likelihood": exact.log_policy,
        "reference entropy": -entropy[:, None] * everywhere,
        "position": -depth[:, None] * everywhere,
    }


def visits(mdp: TokenMDP) -> Array:
    """[S, A] probability that a token of a response of the reference is this one; sums to 1."""
    reached = np.exp(mdp.tree.prefix_sums(mdp.ref_logps))[:, None] * np.exp(mdp.ref_logps)
    weights: Array = reached / reached.sum()
    return weights


@dataclass(frozen=True, eq=False)
class _Judge:
    """Compares scores [S, A] with the truth about one MDP, weighted by the reference's visits."""

    mdp: TokenMDP
    advantage: Array
    wrong: Flags
    weights: Array

    def read(self, scores: Scores) -> dict[str, dict[str, float | None]]:
        return {
            name: {
                "advantage": correlation(score, self.advantage, self.weights),
                "reward": correlation(score, self.mdp.reward, self.weights),
                "wrong": auroc(-score, self.wrong, self.weights),
            }
            for name, score in scores.items()
        }


def correlation(first: Array, second: Array, weights: Array) -> float | None:
    """Weighted Pearson correlation; None where one of the two is constant."""
    a = first - np.average(first, weights=weights)
    b = second - np.average(second, weights=weights)
    scale = np.average(a * a, weights=weights) * np.average(b * b, weights=weights)
    if scale < 1e-20:
        return None
    return float(np.average(a * b, weights=weights) / np.sqrt(scale))


def auroc(scores: Array, truth: Flags, weights: Array) -> float | None:
    """Weighted probability that a true one scores above a false one, a tie counting half.

    None where there are not both.
    """
    order = np.argsort(scores.ravel(), kind="stable")
    sorted_scores = scores.ravel()[order]
    positive = (weights * truth).ravel()[order]
    negative = (weights * ~truth).ravel()[order]
    if not positive.sum() * negative.sum() > 0:
        return None
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_scores) > 0])
    positive, negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def _objective(name: str, beta: float) -> Loss:
    known: dict[str, Loss] = {
        "dpo": DPO(beta=beta),
        "ipo": IPO(beta=beta),
        "hinge": Hinge(beta=beta),
    }
    return known[name]


def _table(mdp: TokenMDP, sample: Comparisons, part: slice) -> tuple[Array, Array]:
    """Labels [P, R, R] and how often each pair was asked about, of a part of the sample."""
    shape = (mdp.tree.prompts, mdp.tree.responses, mdp.tree.responses)
    won = np.zeros(shape)
    np.add.at(won, (sample.prompts[part], sample.winners[part], sample.losers[part]), 1.0)
    asked = won + won.swapaxes(-1, -2)
    return won / np.maximum(asked, 1.0), asked


def _loss(objective: Loss, mdp: TokenMDP, log_policy: Array, labels: Array, asked: Array) -> float:
    def pair_loss(*row: Tensor) -> Tensor:
        chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask = row
        batch = PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask)
        return objective(batch)[0]

    policy, reference = torch.as_tensor(log_policy), torch.as_tensor(mdp.ref_logps)
    preferences, pairs = torch.as_tensor(labels), torch.as_tensor(asked)
    return float(expected_pair_loss(pair_loss, mdp.tree, policy, reference, preferences, pairs))
