"""Every identity of the token MDP as a function that measures how far it is from holding.

Equation numbers are those of "From r to Q*" (arXiv 2404.12358). Wherever it can be done, one side
is computed by recursion over states and the other by enumerating whole responses, so that the two
cannot share a mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np

from tokenq.mdp.arrays import Array, log_softmax, per_edge
from tokenq.mdp.outcome import soft_expectation
from tokenq.mdp.preferences import bradley_terry, plackett_luce_logp
from tokenq.mdp.shaping import canonical, equivalence, inverse_bellman, shaped
from tokenq.mdp.token_mdp import Solution, TokenMDP
from tokenq.mdp.tree import PrefixTree

RANKED = 4
"""Responses in a ranking: all orders of up to this many are compared."""


@dataclass(frozen=True, eq=False)
class Case:
    """N random MDPs over one tree, each with its own beta [N], and what else identities ask for."""

    mdp: TokenMDP
    beta: Array
    rng: np.random.Generator

    @property
    def tree(self) -> PrefixTree:
        """The states."""
        return self.mdp.tree

    @cached_property
    def solution(self) -> Solution:
        """The exact optimum."""
        return self.mdp.solve(self.beta)

    @cached_property
    def logits(self) -> Array:
        """[N, S, A] random, unrelated to the reward."""
        return self.rng.normal(size=self.mdp.reward.shape) * 2.0

    @cached_property
    def potential(self) -> Array:
        """[N, S] random."""
        return self.rng.normal(size=self.solution.v.shape) * 2.0

    @cached_property
    def ref_totals(self) -> Array:
        """[N, P, R] log pi_ref of whole responses."""
        return self.tree.totals(self.mdp.ref_logps)

    @cached_property
    def log_ratio_totals(self) -> Array:
        """[N, P, R] `sum_t beta * log(pi*/pi_ref)` from the two policies."""
        ratio = self.solution.log_policy - self.mdp.ref_logps
        return self.tree.totals(per_edge(self.beta) * ratio)


def worst(difference: Array) -> Array:
    """[N] largest absolute value for each MDP."""
    return np.abs(difference).reshape(len(difference), -1).max(-1)


def over_continuations(tree: PrefixTree, steps: Array, beta: Array) -> Array:
    """[N, S] `beta * log sum exp(rest / beta)` over the responses through each state.

    steps: [N, S, A]; `rest` is their sum from the state on. By enumeration of responses.
    """
    paths = tree.paths
    beta = beta[:, None]
    totals, before = tree.totals(steps) / beta[..., None], tree.prefix_sums(steps) / beta
    totals = totals.reshape(len(totals), -1)
    highest = np.full(before.shape, -np.inf)
    mass = np.zeros(before.shape)
    visits = [
        (paths.states[..., step][:, mask].ravel(), np.tile(mask, tree.prompts))
        for step, mask in enumerate(paths.mask.T)
    ]
    row = np.arange(len(totals))[:, None]
    for states, through in visits:
        np.maximum.at(highest, (row, states), totals[:, through])
    for states, through in visits:
        np.add.at(mass, (row, states), np.exp(totals[:, through] - highest[:, states]))
    return beta * (np.log(mass) + highest - before)


def optimality(case: Case) -> Array:
    """Eq. 2: pi* attains V*; any policy falls short by beta times its KL to pi* along the way."""
    other = log_softmax(case.logits)
    value = case.mdp.evaluate(other, case.beta)
    towards = TokenMDP(case.tree, case.mdp.reward, case.solution.log_policy)
    distance = towards.evaluate(other, case.beta).kl
    gap = case.solution.v - value.v - case.beta[:, None] * distance
    attained = case.mdp.evaluate(case.solution.log_policy, case.beta).v - case.solution.v
    return np.maximum(worst(gap), worst(attained))


def policy_of_values(case: Case) -> Array:
    """Eq. 5: the product of pi*(a|s) is `pi_ref(y|x) exp(r(x,y)/beta) / Z(x)`, by enumeration."""
    by_response = case.mdp.bandit().solve(case.beta).log_policy
    by_token = case.tree.totals(case.solution.log_policy)
    return worst(np.exp(by_token) - np.exp(by_response)) + worst(
        (by_token - by_response) * per_edge(case.beta)
    )


def soft_values(case: Case) -> Array:
    """Eq. 6: V* is a soft maximum over all ways to go on, by enumeration."""
    steps = case.mdp.reward + per_edge(case.beta) * case.mdp.ref_logps
    return worst(over_continuations(case.tree, steps, case.beta) - case.solution.v)


def token_values(case: Case) -> Array:
    """Eq. 7: Q* is reward, prior and the soft maximum over what follows, by enumeration."""
    steps = case.mdp.reward + per_edge(case.beta) * case.mdp.ref_logps
    values = over_continuations(case.tree, steps, case.beta)
    return worst(steps + case.tree.next_values(values) - case.solution.q)


def reward_from_logits(case: Case) -> Array:
    """Lemma 1: random logits, the reward they imply, and its Q* are the logits again."""
    reward = inverse_bellman(case.tree, case.logits, case.mdp.ref_logps, case.beta)
    return worst(case.mdp.with_reward(reward).solve(case.beta).q - case.logits)


def reward_from_values(case: Case) -> Array:
    """Lemma 1: a reward, its Q*, and the reward that Q* implies is the first again."""
    reward = inverse_bellman(case.tree, case.solution.q, case.mdp.ref_logps, case.beta)
    return worst(reward - case.mdp.reward)


def telescoping(case: Case) -> Array:
    """The return of a response is `V*(s_0) + sum_t beta log(pi*/pi_ref)`."""
    start = case.solution.v[:, : case.tree.prompts, None]
    return worst(case.mdp.returns - start - case.log_ratio_totals)


def preferences(case: Case) -> Array:
    """Eq. 8: Bradley-Terry of the returns is the logistic of the log-ratios, for all pairs."""
    return worst(bradley_terry(case.mdp.returns) - bradley_terry(case.log_ratio_totals))


def shaped_policy(case: Case) -> Array:
    """Definition 1: a shaped reward has the same optimal policy, and V* less the potential."""
    reward = shaped(case.tree, case.mdp.reward, case.potential)
    solution = case.mdp.with_reward(reward).solve(case.beta)
    scale = per_edge(case.beta)
    policy = worst(scale * (solution.log_policy - case.solution.log_policy))
    return np.maximum(policy, worst(solution.v + case.potential - case.solution.v))


def recovered_potential(case: Case) -> Array:
    """Definition 1: the test finds the potential that a reward was shaped with."""
    reward = shaped(case.tree, case.mdp.reward, case.potential)
    found = equivalence(case.tree, case.mdp.reward, reward)
    return np.maximum(worst(found.potential - case.potential), found.error)


def advantage(case: Case) -> Array:
    """Eq. 10: `beta log(pi*/pi_ref)` is the reward shaped with V*."""
    ratio = per_edge(case.beta) * (case.solution.log_policy - case.mdp.ref_logps)
    return worst(ratio - shaped(case.tree, case.mdp.reward, case.solution.v))


def canonical_values(case: Case) -> Array:
    """Eq. 11, Theorem 1: under the reward `beta log(pi/pi_ref)` V* is 0 in every state."""
    return worst(canonical(case.mdp, case.beta).solve(case.beta).v)


def canonical_policy(case: Case) -> Array:
    """Eq. 11, Theorem 1: that reward has the same optimal policy."""
    solution = canonical(case.mdp, case.beta).solve(case.beta)
    return worst(per_edge(case.beta) * (solution.log_policy - case.solution.log_policy))


def any_policy_is_optimal(case: Case) -> Array:
    """Eq. 11: of any policy `beta log(pi/pi_ref)` is a reward under which it is optimal, V* = 0."""
    policy = log_softmax(case.logits)
    reward = per_edge(case.beta) * (policy - case.mdp.ref_logps)
    solution = case.mdp.with_reward(reward).solve(case.beta)
    return np.maximum(
        worst(solution.v), worst(per_edge(case.beta) * (solution.log_policy - policy))
    )


def canonical_pairs(case: Case) -> Array:
    """Theorem 1: the canonical reward has the same Bradley-Terry distribution."""
    other = canonical(case.mdp, case.beta).returns
    return worst(bradley_terry(case.mdp.returns) - bradley_terry(other))


def canonical_rankings(case: Case) -> Array:
    """Theorem 1: the canonical reward has the same Plackett-Luce distribution, all orders."""
    count = min(RANKED, case.tree.responses)
    some = case.rng.choice(case.tree.responses, size=count, replace=False)
    orders = np.array(list(permutations(some)))
    own = np.exp(plackett_luce_logp(case.mdp.returns[..., orders]))
    other = np.exp(plackett_luce_logp(canonical(case.mdp, case.beta).returns[..., orders]))
    return np.maximum(worst(own - other), worst(own.sum(-1) - 1.0))


def logit_shift(case: Case) -> Array:
    """Adding c(s) to the logits adds `c(s) - c(s')` to the reward and c(s_0) to every return."""
    before = inverse_bellman(case.tree, case.logits, case.mdp.ref_logps, case.beta)
    moved = case.logits + case.potential[..., None]
    after = inverse_bellman(case.tree, moved, case.mdp.ref_logps, case.beta)
    steps = worst(after - shaped(case.tree, before, -case.potential))
    start = case.potential[:, : case.tree.prompts, None]
    returns = worst(case.tree.totals(after) - case.tree.totals(before) - start)
    return np.maximum(steps, returns)


def prefix_sums(case: Case) -> Array:
    """Prefix-sum identity (2412.01981, Prop. 3.1) for a policy that has nothing to do with r."""
    ratio = per_edge(case.beta) * (log_softmax(case.logits) - case.mdp.ref_logps)
    outcomes = case.tree.totals(ratio)
    expected = soft_expectation(case.tree, case.mdp.ref_logps, outcomes, case.beta)
    return worst(case.tree.prefix_sums(ratio) - expected)


def partial_search(case: Case) -> Array:
    """Eqs. 12, 13: up to any state, reward and prior plus V* is `+V*(s_0) + sum beta log pi*`."""
    return worst(_search_values(case) - _likelihoods(case) - _start(case))


def likelihood_search(case: Case) -> Array:
    """Eqs. 12, 13: the likeliest response under pi* has the highest return and prior."""
    values = case.mdp.returns + case.beta[:, None, None] * case.ref_totals
    likeliest = case.tree.totals(case.solution.log_policy).argmax(-1)
    reached = np.take_along_axis(values, likeliest[..., None], -1)[..., 0]
    return worst(values.max(-1) - reached)


def log_ratio_search(case: Case) -> Array:
    """The response of highest log-ratio is that of highest return (without the prior)."""
    best = case.log_ratio_totals.argmax(-1)
    reached = np.take_along_axis(case.mdp.returns, best[..., None], -1)[..., 0]
    return worst(case.mdp.returns.max(-1) - reached)


def implicit_reward_under_reference(case: Case) -> Array:
    """Eq. 16: enumerated over responses it is -beta KL(pi_ref || pi), summed over states."""
    policy = log_softmax(case.logits)
    ratio = case.tree.totals(policy - case.mdp.ref_logps)
    left = case.beta[:, None] * (np.exp(case.ref_totals) * ratio).sum(-1)
    from_policy = TokenMDP(case.tree, case.mdp.reward, policy)
    kl = from_policy.evaluate(case.mdp.ref_logps, case.beta).kl[:, : case.tree.prompts]
    return np.maximum(worst(left + case.beta[:, None] * kl), worst(np.maximum(left, 0.0)))


def printed_sign(case: Case) -> Array:
    """Eq. 13 as printed, with `-V*(s_0)`: wrong by 2 V*(s_0)."""
    return worst(_search_values(case) - _likelihoods(case) + _start(case))


def printed_inverse(case: Case) -> Array:
    """Appendix A as printed: without `beta log pi_ref` the reward has another Q*."""
    full = inverse_bellman(case.tree, case.logits, case.mdp.ref_logps, case.beta)
    reward = full + per_edge(case.beta) * case.mdp.ref_logps
    return worst(case.mdp.with_reward(reward).solve(case.beta).q - case.logits)


def perturbed_reward(case: Case) -> Array:
    """A reward with one entry changed by 0.1 is no shaping: how far from every potential it is."""
    reward = case.mdp.reward.copy()
    reward[:, case.rng.integers(case.tree.states), case.rng.integers(case.tree.vocabulary)] += 0.1
    return equivalence(case.tree, case.mdp.reward, reward).error


def potential_at_endings(case: Case) -> Array:
    """A potential that differs between endings is no shaping: it changes the policy."""
    reward = shaped(case.tree, case.mdp.reward, case.potential)
    states, tokens = case.tree.last_steps
    reward[:, states, tokens] += case.rng.normal(size=(len(reward), *states.shape))
    changed = case.mdp.with_reward(reward).solve(case.beta).log_policy - case.solution.log_policy
    return worst(per_edge(case.beta) * changed)


def searches_differ(case: Case) -> Array:
    """Return lost by the likeliest response against the best one: 0 where the searches agree."""
    likeliest = case.tree.totals(case.solution.log_policy).argmax(-1)
    reached = np.take_along_axis(case.mdp.returns, likeliest[..., None], -1)[..., 0]
    return worst(case.mdp.returns.max(-1) - reached)


def _search_values(case: Case) -> Array:
    """[N, S] eq. 12 up to each state."""
    steps = case.mdp.reward + per_edge(case.beta) * case.mdp.ref_logps
    return case.tree.prefix_sums(steps) + case.solution.v


def _likelihoods(case: Case) -> Array:
    """[N, S] `sum beta log pi*` up to each state."""
    return case.beta[:, None] * case.tree.prefix_sums(case.solution.log_policy)


def _start(case: Case) -> Array:
    """[N, S] V* of the prompt that a state belongs to."""
    prompts = case.tree.prompts
    root = np.concatenate(
        [
            np.repeat(np.arange(prompts), (level.stop - level.start) // prompts)
            for level in case.tree.levels
        ]
    )
    return case.solution.v[:, root]


Measure = Callable[[Case], Array]

IDENTITIES: tuple[tuple[str, str, Measure], ...] = (
    ("pi* is optimal; others fall short by beta KL", "2", optimality),
    ("pi* from Q* = tilted reference over responses", "5", policy_of_values),
    ("V* = soft maximum over continuations", "6", soft_values),
    ("Q* = reward, prior and continuations", "7", token_values),
    ("logits to reward to Q* = logits", "Lemma 1", reward_from_logits),
    ("reward to Q* to reward", "Lemma 1", reward_from_values),
    ("return = V*(s0) + sum of log-ratios", "before 8", telescoping),
    ("Bradley-Terry from pi*", "8", preferences),
    ("shaping keeps the policy", "Def. 1", shaped_policy),
    ("the potential is found again", "Def. 1", recovered_potential),
    ("log-ratio = optimal advantage", "10", advantage),
    ("canonical reward has V* = 0", "11, Thm. 1", canonical_values),
    ("canonical reward has the same policy", "11, Thm. 1", canonical_policy),
    ("any policy is optimal for its log-ratio", "11", any_policy_is_optimal),
    ("canonical reward: same Bradley-Terry", "Thm. 1", canonical_pairs),
    ("canonical reward: same Plackett-Luce", "Thm. 1", canonical_rankings),
    ("logit shift = shaping", "after Thm. 1", logit_shift),
    ("prefix sum = soft expectation", "2412.01981, 3.1", prefix_sums),
    ("search value up to any state, +V*(s0)", "12, 13", partial_search),
    ("likelihood search = optimal-value search", "12, 13", likelihood_search),
    ("log-ratio search = highest return", "10", log_ratio_search),
    ("implicit reward under the reference", "16", implicit_reward_under_reference),
)
"""Name, equation and measure of each statement that must hold."""

FALSE_STATEMENTS: tuple[tuple[str, str, Measure], ...] = (
    ("-V*(s0), as printed", "13", printed_sign),
    ("reward without beta log pi_ref, as printed", "Lemma 1, App. A", printed_inverse),
    ("one reward changed by 0.1 is still a shaping", "Def. 1", perturbed_reward),
    ("a potential may differ between endings", "Def. 1", potential_at_endings),
    ("likelihood search = log-ratio search", "12, 13", searches_differ),
)
"""Statements that must fail: what shows that the measures can tell right from wrong."""
