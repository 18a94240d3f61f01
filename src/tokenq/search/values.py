"""What a prefix promises: numbers that a search adds to what the prefix has scored so far.

A search over prefixes goes by `score so far + value(prefix)`, as eq. 12 of "From r to Q*"
(arXiv 2404.12358) does with `sum of r + beta log pi_ref` and V*. With the log-ratio as score the
value to add is 0: the running sum of `beta * log(pi/pi_ref)` is by itself the soft expectation,
under the reference, of what the whole response will have (Prop. 3.1 of arXiv 2412.01981).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from tokenq.errors import UserError
from tokenq.mdp.arrays import Array
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.branches import POLICY, REFERENCE
from tokenq.search.decoding import Finish, Rules
from tokenq.search.prefixes import Prefix, PrefixFunction, asked_once


# Equal and hashed as a prefix: what was said of the tokens follows from them.
@dataclass(frozen=True, eq=False)
class ScoredPrefix(Prefix):
    """A prefix, and what the search knows of it.

    score:    what the search's score gives its tokens, summed; nats
    searched: log-probability of them all under what is searched, nats
    logps:    model -> log-probability of them all, nats
    finish:   why the response ends here, or None: it can go on
    rules:    how the tokens read, where there is a tokenizer
    """

    score: float = 0.0
    searched: float = 0.0
    logps: Mapping[str, float] = field(default_factory=dict)
    finish: Finish | None = None
    rules: Rules | None = None

    @property
    def text(self) -> str | None:
        """The response so far as text; None without a tokenizer."""
        return None if self.rules is None else self.rules.text(self.response_ids)

    @property
    def log_ratio(self) -> float:
        """log pi - log pi_ref of the tokens so far, nats. UserError without a reference."""
        if REFERENCE not in self.logps or POLICY not in self.logps:
            raise UserError(
                "this value needs a policy and a reference; accepted: a pair, or {'policy': ..., "
                "'reference': ...}"
            )
        return self.logps[POLICY] - self.logps[REFERENCE]


class Value(Protocol):
    """Anything that values prefixes: `value(prefixes)` gives one number each.

    The numbers are added to `prefix.score`, in its unit. Whole responses (`prefix.finish` is set)
    are valued too: nothing is left to come there, but a judge of outcomes gives its verdict.
    """

    def __call__(self, prefixes: Sequence[ScoredPrefix], /) -> Sequence[float]:
        """One finite number a prefix, the same each time it is asked."""
        ...


@dataclass(frozen=True)
class PrefixValue:
    """`beta * sum of log(pi/pi_ref)` so far: the soft value of the prefix by the implicit reward.

    To be added to a likelihood, or taken alone (`score=None`); a search whose score is the
    log-ratio counts it already. Needs a reference.
    """

    beta: float = 1.0

    def __call__(self, prefixes: Sequence[ScoredPrefix]) -> list[float]:
        """See :class:`Value`."""
        return [self.beta * prefix.log_ratio for prefix in prefixes]


@dataclass(frozen=True, eq=False)
class TabularValue:
    """A table over the states of an exact MDP, such as V* of `TokenMDP.solve`; 0 where it ends.

    tree:   prompt number p of the MDP is the prompt `[p]`
    values: [S]
    """

    tree: PrefixTree
    values: Array

    @classmethod
    def best_to_come(cls, tree: PrefixTree, steps: Array) -> "TabularValue":
        """The greatest sum of `steps` [S, A] that can still be had from each state on."""
        return cls(
            tree,
            tree.backward(lambda level, following: (steps[level] + following).max(-1), ()),
        )

    def __call__(self, prefixes: Sequence[ScoredPrefix]) -> list[float]:
        """See :class:`Value`."""
        return [0.0 if each.finish else float(self.values[self._state(each)]) for each in prefixes]

    def _state(self, prefix: ScoredPrefix) -> int:
        return self.tree.state(prefix.prompt_ids[0], prefix.response_ids)


def needs_reference(value: Value | None) -> bool:
    """Whether a built-in value reads the reference; of a user's own nothing is known."""
    return isinstance(value, PrefixValue)


class Valuation:
    """A value that is asked for many prefixes at once, and for none of them twice.

    value: None: nothing is added to the scores

    calls, seconds: how often the value was asked and how long that took
    """

    def __init__(self, value: Value | None) -> None:
        self._value = value
        self._known: dict[ScoredPrefix, float] = {}
        self.calls = 0
        self.seconds = 0.0

    def __call__(self, prefixes: Sequence[ScoredPrefix]) -> list[float]:
        """What each prefix promises in all: its score so far and its value.

        Raises UserError where the value does not give one finite number a prefix.
        """
        if self._value is None:
            return [prefix.score for prefix in prefixes]
        new = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in self._known]
        if new:
            self._known.update(zip(new, self._ask(self._value, new), strict=True))
        return [prefix.score + self._known[prefix] for prefix in prefixes]

    def _ask(self, value: Value, prefixes: list[ScoredPrefix]) -> list[float]:
        start = time.perf_counter()
        given = asked_once(cast(PrefixFunction, value), prefixes)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return given
