"""Small MDPs with loops, chance and discount: exact soft values, and the regret of segments.

For control, where states come back, and for the labels of contrastive preference learning (CPL,
arXiv 2310.13639). Token trees are in `token_mdp`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tokenq.mdp.arrays import Array, Indices, finite, log_softmax, log_sum_exp, positive

MOST_IMPROVEMENTS = 1000


@dataclass(frozen=True, eq=False)
class DiscountedSolution:
    """What is optimal under reward and entropy (or KL to a reference).

    q:          [S, A] `r + beta * log pi_ref + discount * E V(s')`
    v:          [S] `beta * log sum exp(q / beta)`, 0 in terminal states
    log_policy: [S, A] `(q - v) / beta`
    advantage:  [S, A] `q - v - beta * log pi_ref = beta * log(pi/pi_ref)`; without a reference it
                is the A* of CPL, `beta * log pi*`

    In terminal states policy and advantage mean nothing.
    """

    q: Array
    v: Array
    log_policy: Array
    advantage: Array


@dataclass(frozen=True, eq=False)
class Segments:
    """N stretches of k steps: states [N, k + 1], the last one where the segment ends; actions."""

    states: Indices
    actions: Indices


@dataclass(frozen=True, eq=False)
class DiscountedMDP:
    """A finite MDP that is run for ever, or until a terminal state.

    reward:     [S, A]
    transition: [S, A, S] probability of each next state
    discount:   in (0, 1]; 1 needs terminal states that every policy reaches
    ref_logps:  [S, A] log pi_ref, or None: plain maximum entropy, where the regulariser is
                `beta * H(pi)` instead of `-beta * KL(pi || pi_ref)`
    terminal:   [S] bool, or None: no state is terminal. Rewards of terminal states do not count

    Raises ValueError where shapes do not fit, the transition is no probability, or the discount is
    out of range.
    """

    reward: Array
    transition: Array
    discount: float
    ref_logps: Array | None = None
    terminal: np.ndarray | None = None

    def __post_init__(self) -> None:
        states, actions = self.reward.shape
        for name, shape in (
            ("transition", (states, actions, states)),
            ("ref_logps", (states, actions)),
            ("terminal", (states,)),
        ):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
        if (self.transition < 0).any() or np.abs(self.transition.sum(-1) - 1).max() > 1e-9:
            raise ValueError("transition must be >= 0 and sum to 1 over the next states")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")

    def solve(self, beta: float, tolerance: float = 1e-11) -> DiscountedSolution:
        """Exact optimal values by soft policy iteration, each evaluation a linear solve.

        Raises ValueError if beta is not > 0, or if no finite value exists (a discount of 1 and a
        policy that never ends).
        """
        policy = np.zeros_like(self.reward)
        for _ in range(MOST_IMPROVEMENTS):
            q = self._action_values(self.evaluate(log_softmax(policy), beta), beta)
            policy = q / beta
            v = np.where(self._ended, 0.0, beta * log_sum_exp(policy))
            residual = np.abs(self._action_values(v, beta) - q).max()
            if residual <= tolerance * max(1.0, np.abs(q).max()):
                log_policy = (q - v[:, None]) / beta
                return DiscountedSolution(q, v, log_policy, q - v[:, None] - beta * self._prior)
        raise ValueError("the MDP has no finite optimal value; accepted: a discount below 1")

    def evaluate(self, log_policy: Array, beta: float) -> Array:
        """[S] soft value of a policy [S, A] (log-probabilities, -inf allowed), by a linear solve.

        Raises ValueError if beta is not > 0, or where a policy that never ends has no value.
        """
        positive(beta)
        policy = np.where(self._ended[:, None], 0.0, np.exp(log_policy))
        step = (policy * (self.reward - beta * (finite(log_policy) - self._prior))).sum(-1)
        moves = np.einsum("sa,sat->st", policy, self.transition)
        try:
            values = np.linalg.solve(np.eye(len(step)) - self.discount * moves, step)
            return np.asarray(values, dtype=np.float64)
        except np.linalg.LinAlgError:
            raise ValueError("a policy never ends; accepted: a discount below 1") from None

    def sample_segments(
        self, policy: Array, starts: Indices, length: int, rng: np.random.Generator
    ) -> Segments:
        """Run a policy [S, A] (probabilities) for `length` steps from each start [N].

        A terminal state is not left: the remaining steps stay in it.
        """
        states, actions = [np.asarray(starts)], []
        for _ in range(length):
            here = states[-1]
            action = _draw(policy[here], rng)
            moved = _draw(self.transition[here, action], rng)
            actions.append(action)
            states.append(np.where(self._ended[here], here, moved))
        return Segments(np.stack(states, -1), np.stack(actions, -1))

    def discounted_sum(self, values: Array, segments: Segments) -> Array:
        """[N] `sum_t discount^t values[s_t, a_t]` over each segment; terminal states add 0.

        Of the reward it is the partial return, of the advantage the score of CPL.
        """
        states = segments.states[:, :-1]
        taken = np.where(self._ended[states], 0.0, values[states, segments.actions])
        weights = np.power(self.discount, np.arange(taken.shape[1]))
        result: Array = taken @ weights
        return result

    def regret(self, solution: DiscountedSolution, segments: Segments) -> Array:
        """[N] `-sum_t discount^t A*(s_t, a_t)`: what the segments lost against optimal behaviour.

        CPL (section 3) prefers the segment of lower regret:
        P = sigmoid(regret(second) - regret(first)).
        """
        return -self.discounted_sum(solution.advantage, segments)

    def outcome_regret(self, solution: DiscountedSolution, segments: Segments) -> Array:
        """[N] `V*(s_0) - sum_t discount^t r_t - discount^k V*(s_k)`: regret as the outcome had it.

        What CPL's released labels use. Where transitions are deterministic it equals
        :meth:`regret`; otherwise it differs by the luck of the transitions, which has mean 0.
        """
        start, end = segments.states[:, 0], segments.states[:, -1]
        later = self.discount ** segments.actions.shape[1] * solution.v[end]
        return solution.v[start] - self.discounted_sum(self.reward, segments) - later

    @property
    def _prior(self) -> Array:
        return np.zeros_like(self.reward) if self.ref_logps is None else self.ref_logps

    @property
    def _ended(self) -> np.ndarray:
        return np.zeros(len(self.reward), bool) if self.terminal is None else self.terminal

    def _action_values(self, v: Array, beta: float) -> Array:
        return self.reward + beta * self._prior + self.discount * (self.transition @ v)


def _draw(probabilities: Array, rng: np.random.Generator) -> Indices:
    """[N] one index from each row of [N, K]."""
    cumulative = probabilities.cumsum(-1)
    threshold: ArrayLike = rng.random((len(probabilities), 1)) * cumulative[:, -1:]
    drawn: Indices = (cumulative <= threshold).sum(-1)
    return drawn
