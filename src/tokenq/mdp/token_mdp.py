"""The token MDP, its exact solution by one pass from the leaves up, and the value of any policy.

Equation numbers are those of "From r to Q*" (arXiv 2404.12358). Everything is float64 and in the
units of the reward; `beta` is nats to reward. All functions take leading batch dimensions: many
MDPs over one tree, with one beta or a beta each.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from tokenq.mdp.arrays import Array, finite, log_softmax, log_sum_exp, per_edge, positive
from tokenq.mdp.bandit import Bandit
from tokenq.mdp.tree import PrefixTree


@dataclass(frozen=True, eq=False)
class Solution:
    """What is optimal under `reward - beta * KL(policy || reference)`.

    beta:       the strength of the tie to the reference, [...] or a scalar
    q:          [..., S, A] Q*, eq. 7; `beta * log pi_ref` of the token is part of it
    v:          [..., S] V*, eq. 6
    log_policy: [..., S, A] log pi*, eq. 5
    advantage:  [..., S, A] r + V*(s') - V*(s) = beta * log(pi*/pi_ref), eq. 10
    """

    beta: Array
    q: Array
    v: Array
    log_policy: Array
    advantage: Array

    @property
    def policy(self) -> Array:
        """[..., S, A] pi*(a|s)."""
        return np.exp(self.log_policy)


@dataclass(frozen=True, eq=False)
class PolicyValue:
    """What a policy earns from each state on; `v = reward - beta * kl`.

    reward: [..., S] expected sum of rewards
    kl:     [..., S] KL(policy || reference) of the rest of the response, nats
    v:      [..., S] soft value
    q:      [..., S, A] soft value of a token, `beta * log pi_ref` included as in eq. 7
    """

    reward: Array
    kl: Array
    v: Array
    q: Array


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """A language model's decision process (section 3.1), small enough to be solved exactly.

    tree:      the states and where each token leads
    reward:    [..., S, A] reward of a token in a state
    ref_logps: [..., S, A] log pi_ref(a|s), finite and normalised; broadcast against `reward`

    Raises ValueError where shapes do not fit, or the reference is not a policy with full support.
    """

    tree: PrefixTree
    reward: Array
    ref_logps: Array

    def __post_init__(self) -> None:
        edges = (self.tree.states, self.tree.vocabulary)
        for name in ("reward", "ref_logps"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape[-2:] != edges:
                raise ValueError(
                    f"{name} must be [..., {edges[0]}, {edges[1]}] (states, tokens), "
                    f"got {values.shape}"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite everywhere")
            object.__setattr__(self, name, values)
        off = np.abs(log_sum_exp(self.ref_logps)).max()
        if off > 1e-9:
            raise ValueError(f"ref_logps must be normalised, but a state sums to exp({off:.3g})")

    @classmethod
    def random(
        cls,
        tree: PrefixTree,
        rng: np.random.Generator,
        batch: tuple[int, ...] = (),
        reward_scale: ArrayLike = 1.0,
        ref_scale: ArrayLike = 1.0,
    ) -> "TokenMDP":
        """Draw rewards, and logits of the reference, from normal laws with these deviations.

        reward_scale, ref_scale: scalars, or one number per MDP of the batch
        """
        shape = (*batch, tree.states, tree.vocabulary)
        reward = per_edge(reward_scale) * rng.standard_normal(shape)
        return cls(tree, reward, log_softmax(per_edge(ref_scale) * rng.standard_normal(shape)))

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading dimensions: how many MDPs these are."""
        return np.broadcast_shapes(self.reward.shape, self.ref_logps.shape)[:-2]

    @cached_property
    def returns(self) -> Array:
        """[..., P, R] sum of the rewards of every response to every prompt."""
        return self.tree.totals(self.reward)

    def with_reward(self, reward: Array) -> "TokenMDP":
        """The same tree and reference under another reward [..., S, A]."""
        return replace(self, reward=reward)

    def solve(self, beta: ArrayLike) -> Solution:
        """Exact Q*, V* and pi* (eqs. 5-7). Raises ValueError unless every beta is > 0.

        beta: a scalar, or one number per MDP of the batch
        """
        beta = positive(beta)
        scale = beta[..., None, None]
        step = self.reward + scale * self.ref_logps
        batch = np.broadcast_shapes(self.batch, beta.shape)
        v = self.tree.backward(
            lambda level, following: (
                beta[..., None] * log_sum_exp((step[..., level, :] + following) / scale)
            ),
            batch,
        )
        following = self.tree.next_values(v)
        q = step + following
        log_policy = (q - v[..., None]) / scale
        advantage = self.reward + following - v[..., None]
        return Solution(beta, q, v, log_policy, advantage)

    def evaluate(self, log_policy: Array, beta: ArrayLike) -> PolicyValue:
        """Value of a policy [..., S, A] (log-probabilities, -inf allowed), its KL included.

        Eq. 2 is `evaluate(pi, beta).v` at the prompts; pi* of :meth:`solve` maximises it, there
        and in every state. Raises ValueError unless every beta is > 0.
        """
        beta = positive(beta)
        policy = np.exp(log_policy)
        batch = np.broadcast_shapes(self.batch, beta.shape, log_policy.shape[:-2])
        divergence = (policy * (finite(log_policy) - self.ref_logps)).sum(-1)
        expected = (policy * self.reward).sum(-1)

        def accumulated(step: Array) -> Array:
            return self.tree.backward(
                lambda level, following: (
                    step[..., level] + (policy[..., level, :] * following).sum(-1)
                ),
                batch,
            )

        reward, kl = accumulated(expected), accumulated(divergence)
        v = reward - beta[..., None] * kl
        q = self.reward + beta[..., None, None] * self.ref_logps + self.tree.next_values(v)
        return PolicyValue(reward, kl, v, q)

    def bandit(self) -> Bandit:
        """The same problem with a whole response as one action (section 3.3)."""
        return Bandit(self.returns, self.tree.totals(self.ref_logps))
