"""The states of a token MDP: every prefix of every response to a few prompts, level by level.

Only the shape of the tree lives here, and the sums that run along it; rewards and policies are in
`token_mdp`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenq.mdp.arrays import Array, Indices


@dataclass(frozen=True)
class Paths:
    """Every response to every prompt, step by step; T = horizon.

    states: [P, R, T] state in which each token is chosen; 0 where masked
    tokens: [R, T] the same for every prompt; 0 where masked
    mask:   [R, T] bool, True on real steps
    """

    states: Indices
    tokens: Indices
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class PrefixTree:
    """The complete tree of prefixes over a vocabulary, one root per prompt.

    A state is a prompt and the tokens written so far. A response ends when EOS is chosen, and at
    the horizon whatever is chosen; what comes after is terminal, has value 0 and is not a state.
    States are numbered from the prompts down: the P prompts are states 0..P-1, then all prefixes
    of one token, and so on; within a level by prompt, then by the tokens in turn. Arrays over
    states are [..., S], over states and tokens [..., S, A], over responses [..., P, R].

    vocabulary: number of tokens A, EOS included
    horizon:    most tokens in a response, >= 1
    eos:        the token that ends a response, or None: all responses are `horizon` tokens long
    prompts:    number of prompts P, >= 1

    Raises ValueError for a tree without states or without a token to go on with.
    """

    vocabulary: int
    horizon: int
    eos: int | None = None
    prompts: int = 1

    def __post_init__(self) -> None:
        for name in ("horizon", "prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.eos is not None and not 0 <= self.eos < self.vocabulary:
            raise ValueError(f"eos must be in 0..{self.vocabulary - 1} or None, got {self.eos}")
        least = 1 if self.eos is None else 2
        if self.vocabulary < least:
            raise ValueError(f"vocabulary must be >= {least}, got {self.vocabulary}")

    @cached_property
    def words(self) -> Indices:
        """The tokens that lead to a further state, everywhere above the last level."""
        tokens = np.arange(self.vocabulary)
        return tokens if self.eos is None else np.delete(tokens, self.eos)

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """Where the states of each depth 0..horizon-1 stand."""
        sizes = [self.prompts * len(self.words) ** depth for depth in range(self.horizon)]
        ends = np.cumsum(sizes).tolist()
        return tuple(slice(end - size, end) for size, end in zip(sizes, ends, strict=True))

    @property
    def states(self) -> int:
        """Number of states S."""
        return int(self.levels[-1].stop)

    @cached_property
    def responses(self) -> int:
        """Number of responses R to one prompt."""
        return sum(self._ends(depth)[0].size for depth in range(self.horizon)) // self.prompts

    def state(self, prompt: int, tokens: tuple[int, ...] = ()) -> int:
        """Number of the state that has `tokens` written after `prompt`. ValueError if none has."""
        if not 0 <= prompt < self.prompts:
            raise ValueError(f"prompt must be in 0..{self.prompts - 1}, got {prompt}")
        if len(tokens) >= self.horizon or not set(tokens) <= set(self.words.tolist()):
            raise ValueError(
                f"tokens must be fewer than {self.horizon} of {self.words.tolist()}, got {tokens}"
            )
        number = prompt
        for token in tokens:
            number = number * len(self.words) + int(np.searchsorted(self.words, token))
        return int(self.levels[len(tokens)].start) + number

    def next_values(self, values: Array) -> Array:
        """[..., S, A] the value of the state that each token leads to, 0 where it ends.

        values: [..., S]
        """
        following = np.zeros((*values.shape, self.vocabulary))
        for level, below in zip(self.levels[:-1], self.levels[1:], strict=True):
            self._set_words(following[..., level, :], values[..., below])
        return following

    def backward(self, value: Callable[[slice, Array], Array], batch: tuple[int, ...]) -> Array:
        """[*batch, S] values made from the last level up.

        value: called with a level and the values that each of its tokens leads to
               ([*batch, n, A], 0 where it ends); returns the values [*batch, n] of the level
        """
        values = np.zeros((*batch, self.states))
        for depth in reversed(range(self.horizon)):
            level = self.levels[depth]
            following = np.zeros((*batch, level.stop - level.start, self.vocabulary))
            if depth + 1 < self.horizon:
                self._set_words(following, values[..., self.levels[depth + 1]])
            values[..., level] = value(level, following)
        return values

    def prefix_sums(self, steps: Array) -> Array:
        """[..., S] the sum of `steps` [..., S, A] on the way from the prompt to each state."""
        sums = np.zeros(steps.shape[:-1])
        for level, below in zip(self.levels[:-1], self.levels[1:], strict=True):
            reached = sums[..., level, None] + steps[..., level, :][..., self.words]
            sums[..., below] = reached.reshape(*reached.shape[:-2], -1)
        return sums

    def totals(self, steps: Array) -> Array:
        """[..., P, R] the sum of `steps` [..., S, A] over each response to each prompt."""
        states, tokens = self.last_steps
        return self.prefix_sums(steps)[..., states] + steps[..., states, tokens]

    @cached_property
    def last_steps(self) -> tuple[Indices, Indices]:
        """State [P, R] and token [R] of the last step of every response: what defines it.

        Responses come shorter ones first, then in the order of their states, then of the token.
        """
        ends = [self._ends(depth) for depth in range(self.horizon)]
        states = np.concatenate([s.reshape(self.prompts, -1) for s, _ in ends], axis=1)
        tokens = np.concatenate([t.reshape(self.prompts, -1)[0] for _, t in ends])
        return states, tokens

    @cached_property
    def paths(self) -> Paths:
        """All responses, step by step."""
        ends, tokens = self.last_steps
        shape = (self.responses, self.horizon)
        states = np.zeros((self.prompts, *shape), dtype=np.int64)
        taken = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.bool_)
        for depth in range(self.horizon):
            level = self.levels[depth]
            here = (level.start <= ends[0]) & (ends[0] < level.stop)
            mask[here, : depth + 1] = True
            taken[here, depth] = tokens[here]
            states[:, here, depth] = ends[:, here]
            for step in reversed(range(depth)):
                number = states[:, here, step + 1] - self.levels[step + 1].start
                states[:, here, step] = self.levels[step].start + number // len(self.words)
                taken[here, step] = self.words[number[0] % len(self.words)]
        return Paths(states, taken, mask)

    def response(self, index: int) -> tuple[int, ...]:
        """The tokens of response `index`."""
        return tuple(self.paths.tokens[index][self.paths.mask[index]].tolist())

    def _ends(self, depth: int) -> tuple[Indices, Indices]:
        """States and tokens [n, k] with which a response of `depth + 1` tokens can end."""
        if depth + 1 == self.horizon:
            tokens = np.arange(self.vocabulary)
        else:
            tokens = np.array([] if self.eos is None else [self.eos], dtype=np.int64)
        level = self.levels[depth]
        states = np.arange(level.start, level.stop)[:, None]
        shape = (len(states), len(tokens))
        return np.broadcast_to(states, shape), np.broadcast_to(tokens, shape)

    def _set_words(self, edges: Array, values: Array) -> None:
        """Write the values of a level's children [..., n * words] into its `edges` [..., n, A]."""
        edges[..., self.words] = values.reshape(*edges.shape[:-1], len(self.words))
