"""Rules that make the searched distribution out of what models, rewards and values say.

All are `base(a|s) * exp(strength * advantage(s, a))`, normalised in every state: eq. 15 of "From r
to Q*" (arXiv 2404.12358), of which eq. 14 is the case that a preference-tuned pair is the critic.
Any search takes one: `beam_search(..., guidance=ProxyTuning(0.5))`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import POLICY, REFERENCE, Branches
from tokenq.search.beam import plausible
from tokenq.search.decoding import Asked, Rules, is_number, whole
from tokenq.search.prefixes import Prefix, PrefixFunction, asked_once
from tokenq.search.values import PrefixValue, ScoredPrefix

BASE = "base"
"""Name of the model that a pair guides, if that is neither of the pair's own."""

TextReward = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]
"""Prompts as they were given (token ids: as text) and responses so far -> one number each."""


@dataclass(frozen=True)
class ProxyTuning:
    """`base * (policy / reference) ** strength`: a pair guides a model of the same vocabulary.

    Eq. 14 of arXiv 2404.12358, with the exponent on the log-ratio, which is A*/beta of the beta
    that the pair was trained with. Also known as emulated fine-tuning (2310.12962), proxy tuning
    (2401.08565) and, with the pair's own reference as base, decoding-time realignment (2402.02992).

    strength: 0 is the base; 1, with the reference as base, is the policy; in the last step, and so
              where a response is one token, s with the reference as base is exactly the policy of
              beta / s. Before the last step it is not: the rule normalises every state by itself
    base:     name of the guided model: "base", or "reference" or "policy" of the pair itself
    """

    strength: float = 1.0
    base: str = BASE

    def __post_init__(self) -> None:
        _check_strength("strength", self.strength)

    @property
    def models(self) -> tuple[str, ...]:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        return tuple(dict.fromkeys((POLICY, REFERENCE, self.base)))

    def __call__(self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        base = logps[self.base]
        if not self.strength:
            return torch.log_softmax(base, -1)
        tilted = base + self.strength * _log_ratio(logps).to(base)
        return torch.log_softmax(tilted.masked_fill(base == -torch.inf, -torch.inf), -1)


@dataclass(frozen=True)
class AlignmentAware:
    """`policy / reference` among the tokens that the policy finds plausible (arXiv 2509.26169).

    alpha: only tokens of at least so many times the probability of the policy's likeliest one. 1
           leaves that one, 0 leaves all

    Greedy search under it is the paper's decoding; to sum log-ratios along beams take
    `beam_search(score="log_ratio", plausibility=alpha)`, which does not normalise each state.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not (is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise UserError(f"alpha is {self.alpha!r}; accepted: 0 to 1")

    @property
    def models(self) -> tuple[str, ...]:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        return (POLICY, REFERENCE)

    def __call__(self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        absurd = plausible(logps[POLICY], self.alpha) == -torch.inf
        return torch.log_softmax(_log_ratio(logps).masked_fill(absurd, -torch.inf), -1)


@dataclass(frozen=True, eq=False)
class ValueGuided:
    """`base * exp(strength * value(prefix with the token))` over the base's likeliest tokens.

    Eq. 15 of arXiv 2404.12358; controlled decoding (2310.17022). With the reference as base, the
    soft value of prefixes under it (`sum of rewards so far + V*`) and strength 1 / beta this is the
    optimal policy of beta, exactly.

    value:    takes prefixes, gives one number each; see :mod:`tokenq.search.values`. What the
              models say of each prefix comes with it (`logps`); `score` and `searched` are 0, as
              these are only being made
    strength: nats for one unit of the value
    top_k:    so many of the base's likeliest tokens are valued, and only these may come; None: all,
              which asks for the whole vocabulary at every step
    base:     name of the model that is guided
    """

    value: PrefixFunction
    strength: float = 1.0
    top_k: int | None = 10
    base: str = POLICY
    rules: Rules | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_strength("strength", self.strength)
        _check_top_k(self.top_k)

    @property
    def models(self) -> tuple[str, ...]:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        if isinstance(self.value, PrefixValue):
            return tuple(dict.fromkeys((POLICY, REFERENCE, self.base)))
        return (self.base,)

    def under(self, rules: Rules, asked: Asked) -> Self:
        """See :class:`~tokenq.search.decoding.RuledGuidance`."""
        return replace(self, rules=rules)

    def __call__(self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        base = logps[self.base]
        rows, tokens = likeliest(base, self.top_k)
        prefixes = _prefixes(branches, nodes, logps, rows, tokens, self.rules)
        return _tilted(base, rows, tokens, asked_once(self.value, prefixes), self.strength)


@dataclass(frozen=True, eq=False)
class RewardGuided:
    """`base * exp(weight * reward(prompt, response so far with the token))`, as ARGS (2402.01694).

    reward: takes prompts and texts of responses, gives one number each: a reward model or a gold
            function of `tokenq.judges`, or any other. Texts are without special tokens
    weight: nats for one unit of the reward
    top_k:  so many of the base's likeliest tokens are judged, and only these may come
    base:   name of the model that is guided

    Needs a tokenizer, so a pair; for rewards of token ids there is :class:`ValueGuided`.
    """

    reward: TextReward
    weight: float = 1.0
    top_k: int = 10
    base: str = POLICY
    rules: Rules | None = field(default=None, repr=False)
    asked: Asked = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise UserError(
                f"reward is {self.reward!r:.60}; accepted: a function of prompts and responses"
            )
        _check_strength("weight", self.weight)
        _check_top_k(self.top_k)

    @property
    def models(self) -> tuple[str, ...]:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        return (self.base,)

    def under(self, rules: Rules, asked: Asked) -> Self:
        """See :class:`~tokenq.search.decoding.RuledGuidance`.

        Raises UserError where there is no tokenizer.
        """
        if rules.tokenizer is None:
            raise UserError(
                "a reward of texts needs a tokenizer; accepted: a pair that has one, or "
                "ValueGuided, whose value takes token ids"
            )
        return replace(self, rules=rules, asked=asked)

    def __call__(self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~tokenq.models.branching.branches.Guidance`."""
        base = logps[self.base]
        rows, tokens = likeliest(base, self.top_k)
        prefixes = _prefixes(branches, nodes, {}, rows, tokens, self.rules)
        rewards = asked_once(self._rewards, prefixes, "reward")
        return _tilted(base, rows, tokens, rewards, self.weight)

    def _rewards(self, prefixes: Sequence[Prefix]) -> Sequence[float]:
        assert self.rules is not None
        texts = [self.rules.text(prefix.response_ids) or "" for prefix in prefixes]
        return self.reward([self._prompt(prefix.prompt_ids) for prefix in prefixes], texts)

    def _prompt(self, ids: tuple[int, ...]) -> Any:
        given = self.asked.get(ids)
        if isinstance(given, str) or (given and isinstance(given[0], Mapping)):
            return given
        assert self.rules is not None
        assert self.rules.tokenizer is not None
        return str(self.rules.tokenizer.decode(list(ids)))


def likeliest(logps: Tensor, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Rows and tokens [N] each of the `top_k` likeliest tokens of every row of [R, V]; None: all.

    Tokens that are excluded (-inf) are not among them.
    """
    if top_k is None:
        rows, tokens = (logps > -torch.inf).nonzero(as_tuple=True)
        return rows, tokens
    best = logps.topk(min(top_k, logps.shape[-1]), dim=-1)
    rows, places = (best.values > -torch.inf).nonzero(as_tuple=True)
    return rows, best.indices[rows, places]


def _prefixes(
    branches: Branches,
    nodes: Tensor,
    logps: Mapping[str, Tensor],
    rows: Tensor,
    tokens: Tensor,
    rules: Rules | None,
) -> list[ScoredPrefix]:
    """What rows [N] of nodes [R] become by tokens [N]; with what the models `logps` [R, V] say."""
    tree = branches.tree
    asked = [tuple(tree.prompts[number]) for number in tree.prompt(nodes).tolist()]
    written = [tuple(tree.response(node)) for node in nodes.tolist()]
    said: dict[str, list[float]] = {
        name: (branches.total(nodes, name)[rows.cpu()] + each[rows, tokens].cpu()).tolist()
        for name, each in logps.items()
    }
    prefixes = []
    for place, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
        response = (*written[row], token)
        prefixes.append(
            ScoredPrefix(
                asked[row],
                response,
                logps={name: sums[place] for name, sums in said.items()},
                finish=None if rules is None else rules.finish(response),
                rules=rules,
            )
        )
    return prefixes


def _tilted(
    base: Tensor, rows: Tensor, tokens: Tensor, values: Sequence[float], strength: float
) -> Tensor:
    """[R, V] base at the given places plus strength * values, normalised; -inf elsewhere."""
    tilted = torch.full_like(base, -torch.inf)
    worth = torch.tensor(values, dtype=base.dtype, device=base.device)
    tilted[rows, tokens] = base[rows, tokens] + strength * worth
    return torch.log_softmax(tilted, -1)


def _log_ratio(logps: Mapping[str, Tensor]) -> Tensor:
    """[R, V] log(policy / reference); -inf for a token that either of them excludes."""
    ours, theirs = logps[POLICY], logps[REFERENCE]
    excluded = (ours == -torch.inf) | (theirs == -torch.inf)
    return (ours - theirs).masked_fill(excluded, -torch.inf)


def _check_strength(name: str, strength: float) -> None:
    if not (is_number(strength) and strength >= 0):
        raise UserError(f"{name} is {strength!r}; accepted: 0 or more")


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None:
        whole("top_k", top_k, 1)
