"""The same on token MDPs: tuning is exact, the loss is the expected one, nothing is sampled.

With p_c the law of the chosen answers, what training does to their implicit reward is

    E_{p_c}[beta log pi/pi_ref] = beta (KL(p_c || pi_ref) - KL(p_c || pi)),

so it falls if and only if training moves the policy away from p_c, and can rise by at most
beta KL(p_c || pi_ref). After exact tuning on the chosen answers that room is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenq.mdp import PrefixTree, TokenMDP, bradley_terry
from tokenq.mdp.arrays import Array, log_sum_exp
from tokenq.objectives import DPO
from tokenq.reproduce.experiment import Run
from tokenq.reproduce.likelihood_decline.settings import ARMS, CHOSEN, NONE, OTHER, REJECTED
from tokenq.reproduce.tabular import divergence, train

BETAS = (0.1, 1.0)
_SPREAD = 0.6
"""Standard deviation of a token's reward."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A base policy that both answers of a pair are drawn from, and Bradley-Terry labels.

    mdp:         rewards, and the base policy as its reference
    weights:     [1, R, R] probability that the first and the second answer make a pair
    preferences: [1, R, R] that the first is chosen
    other:       [S, A] log-probabilities of another policy, which has nothing to do with the pairs
    """

    mdp: TokenMDP
    weights: Array
    preferences: Array
    other: Array

    @classmethod
    def random(cls, seed: int) -> "Problem":
        """Rewards and policies from normal laws; three words and an end token, at most 3 tokens."""
        rng = np.random.default_rng(seed)
        tree = PrefixTree(vocabulary=4, horizon=3, eos=0)
        mdp = TokenMDP.random(tree, rng, reward_scale=_SPREAD)
        other = TokenMDP.random(tree, rng).ref_logps
        law = np.exp(tree.totals(mdp.ref_logps))
        weights = law[:, :, None] * law[:, None, :] * (1.0 - np.eye(tree.responses))
        return cls(mdp, weights / weights.sum(), bradley_terry(mdp.returns), other)

    @property
    def chosen_law(self) -> Array:
        """[1, R] probability that an answer is the chosen one of a pair."""
        return np.asarray((2.0 * self.weights * self.preferences).sum(2))

    @property
    def rejected_law(self) -> Array:
        """[1, R] that it is the rejected one."""
        return np.asarray((2.0 * self.weights * self.preferences).sum(1))

    def reference(self, arm: str) -> Array:
        """[S, A] the start of an arm: the base policy, or tuned without error on what it names."""
        return {
            CHOSEN: lambda: policy_of(self.mdp, self.chosen_law),
            NONE: lambda: self.mdp.ref_logps,
            OTHER: lambda: self.other,
            REJECTED: lambda: policy_of(self.mdp, self.rejected_law),
        }[arm]()


def policy_of(mdp: TokenMDP, law: Array) -> Array:
    """[S, A] log-probabilities of the one token policy whose responses have the law [P, R]."""
    states, tokens = mdp.tree.last_steps
    reward = np.zeros_like(mdp.reward)
    reward[states, tokens] = np.log(law) - mdp.tree.totals(mdp.ref_logps)
    return mdp.with_reward(reward).solve(1.0).log_policy


def followed(seed: int, arm: str, beta: float, iterations: int) -> dict[str, Any]:
    """DPO from an arm's start on the exact expected loss, followed at every step of the descent.

    Returns, in the units of the reward:
    chosen, rejected, margin: [n] expected implicit rewards under the laws of the answers
    expected, minus_beta_kl:  [n] under the reference; and the divergence, over states
    room:          beta KL(p_c || pi_ref), the most that chosen can rise by
    end:           chosen where the loss is least: E_{p_c}[r] - beta log E_ref[exp(r / beta)]
    identity_error, room_error: the largest deviations from the two identities
    falls_as_told: whether, at every step, chosen is below 0 just where the policy is farther from
                   the chosen law than the reference was
    """
    problem = Problem.random(seed)
    tree, start = problem.mdp.tree, problem.reference(arm)
    mdp = TokenMDP(tree, problem.mdp.reward, start)
    fit = train(DPO(beta=beta), mdp, problem.preferences, problem.weights, start.copy(), iterations)
    chosen_law, rejected_law = problem.chosen_law[0], problem.rejected_law[0]
    ref_law = np.exp(tree.totals(start)[0])
    target = policy_of(problem.mdp, problem.chosen_law)
    rewards = beta * (tree.totals(fit.policies) - tree.totals(start))[:, 0]
    chosen, rejected, expected = (rewards @ law for law in (chosen_law, rejected_law, ref_law))
    minus_kl = np.array([-beta * divergence(mdp, start, own) for own in fit.policies])
    room = beta * divergence(mdp, target, start)
    away = np.array([beta * divergence(mdp, target, own) for own in fit.policies])
    returns = mdp.returns[0]
    end = float(chosen_law @ returns - beta * log_sum_exp(np.log(ref_law) + returns / beta))
    # Within rounding of 0 neither side has a sign.
    clear = np.abs(chosen) > 1e-12
    return {
        "chosen": chosen.tolist(),
        "rejected": rejected.tolist(),
        "margin": (chosen - rejected).tolist(),
        "expected": expected.tolist(),
        "minus_beta_kl": minus_kl.tolist(),
        "room": room,
        "end": end,
        "identity_error": float(np.abs(expected - minus_kl).max()),
        "room_error": float(np.abs(chosen - (room - away)).max()),
        "falls_as_told": bool(((chosen < 0) == (away > room))[clear].all()),
    }


def tabular(run: Run, problems: int, iterations: int) -> dict[str, Any]:
    """All arms at both betas: curves averaged over problems, and in how many chosen falls.

    fallen:    problems in which chosen is below 0 at the last step
    highest:   the most that chosen was above 0 at any step, mean over problems
    room, end: as in :func:`followed`, means; steps: problems times steps that were looked at
    """
    found: dict[str, Any] = {}
    for beta in BETAS:
        arms = {}
        for arm in ARMS:
            facts = {
                "arm": arm,
                "beta": beta,
                "problems": problems,
                "iterations": iterations,
                "spread": _SPREAD,
            }

            def make(arm: str = arm, beta: float = beta) -> dict[str, Any]:
                return {"paths": [followed(n, arm, beta, iterations) for n in range(problems)]}

            part = run.part(f"exact-{beta:g}-{arm.replace(' ', '-')}", facts, make)
            arms[arm] = _together(part["paths"], iterations)
        found[f"{beta:g}"] = arms
    every = [arm for arms in found.values() for arm in arms.values()]
    return {
        "problems": problems,
        "betas": found,
        "identity_error": max(arm["identity_error"] for arm in every),
        "room_error": max(arm["room_error"] for arm in every),
        "falls_as_told": all(arm["falls_as_told"] for arm in every),
        "steps": sum(arm["steps"] for arm in every),
    }


def _together(paths: Sequence[Mapping[str, Any]], iterations: int) -> dict[str, Any]:
    names = ("chosen", "rejected", "margin", "expected", "minus_beta_kl")

    def curve(name: str) -> list[float]:
        # A descent that has arrived stays where it is.
        rows = [[*p[name], *[p[name][-1]] * (iterations + 1 - len(p[name]))] for p in paths]
        return [float(mean) for mean in np.mean(rows, axis=0)]

    return {
        "curves": {name: curve(name) for name in names},
        "fallen": sum(path["chosen"][-1] < 0 for path in paths),
        "highest": float(np.mean([max(path["chosen"]) for path in paths])),
        "room": float(np.mean([path["room"] for path in paths])),
        "end": float(np.mean([path["end"] for path in paths])),
        "identity_error": max(path["identity_error"] for path in paths),
        "room_error": max(path["room_error"] for path in paths),
        "falls_as_told": all(path["falls_as_told"] for path in paths),
        "steps": sum(len(path["chosen"]) for path in paths),
    }
