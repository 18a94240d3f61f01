"""Token credit from response-level training alone: estimators, functions of per-token tensors.

The plain one is the implicit reward itself. The others take out of it what a state would give to
any token, weigh it by how much tokens differ there, or read it word by word. None sees a label of
a token. Signs and units are those of the reward: positive is liked, beta times nats but for
`standardised`. By name they are called on a `Credit`: :data:`ESTIMATORS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenq.credit.aggregation import Characters, Shares, word_units
from tokenq.errors import UserError

if TYPE_CHECKING:
    from tokenq.credit.result import Credit

_ROUNDING = 1e-10
"""Nats squared: log-ratios in single precision vary by less than this where models are equal."""


def centred(rewards: Tensor, divergences: Tensor, beta: float) -> Tensor:
    """Reward minus what the reference's own next token would earn on average, [T].

    rewards:     [T] beta * log(pi / pi_ref)
    divergences: [T] KL(pi_ref(. | s_t) || pi(. | s_t)), nats

    The average is E_{a ~ pi_ref}[beta * log(pi(a|s) / pi_ref(a|s))] = -beta * KL(pi_ref || pi)
    (2404.12358, eq. 16): at most 0, and far below it where the policy has changed its mind, so that
    every token there looks disliked. The result has mean 0 under the reference in each state. At
    the optimum it is r + V*(s') less the reference's mean of the same: what this token is worth
    compared with another draw, without the change of V* that the state itself brings. Its sum is
    not the reward of the response.
    """
    return rewards + beta * divergences


def policy_centred(rewards: Tensor, policy_divergences: Tensor, beta: float) -> Tensor:
    """Reward minus what the policy's own next token would earn on average, [T].

    policy_divergences: [T] KL(pi(. | s_t) || pi_ref(. | s_t)), nats

    The average is beta * KL(pi || pi_ref), at least 0: where training taught the policy to say
    something, and the response says something else, that much was missed.
    """
    return rewards - beta * policy_divergences


def standardised(rewards: Tensor, divergences: Tensor, variances: Tensor, beta: float) -> Tensor:
    """:func:`centred` in standard deviations of the reward under the reference, [T].

    variances: [T] of log(pi / pi_ref) under the reference, nats squared

    In a state where the two models differ on everything a large log-ratio says little; where they
    agree but for one token, a small one says much. The same statistic, of one model's log-probs, is
    the conditional probability curvature of Fast-DetectGPT (2310.05130). 0 where the models
    do not differ. It has no unit and does not add up.
    """
    deviations = beta * variances.clamp_min(0).sqrt()
    scores = centred(rewards, divergences, beta) / deviations
    return scores.where(variances > _ROUNDING, torch.zeros_like(scores))


def partly_referenced(logps: Tensor, ref_logps: Tensor, beta: float, weight: float) -> Tensor:
    """beta * (logps - weight * ref_logps): between the policy's likelihood and the reward, [T].

    weight: 1 gives the reward; 0 gives beta * log pi, which is what likelihood search adds up
            (2404.12358, eq. 13): the reward with the prior beta * log pi_ref in it

    The likelihood holds what the reference knew before training; the reward only what training
    changed. Where a wrong detail is also an unlikely one, a part of the prior helps.
    """
    return beta * (logps - weight * ref_logps)


def word_sums(values: Tensor, offsets: Sequence[Characters], text: str) -> Tensor:
    """[T] for each token the sum over its word; a token without characters keeps its own.

    offsets: (start, end) characters of each token in `text`

    Every token of a word says what the whole word is worth, whatever way it was cut. A token in two
    words has the mean of theirs, by characters. Sums over tokens count words as often as they have
    tokens.
    """
    shares = Shares.of(offsets, text, word_units(text))
    return _with_bare(shares, shares.of_units(shares.sums(values)), values)


def word_means(values: Tensor, offsets: Sequence[Characters], text: str) -> Tensor:
    """[T] for each token the mean over its word's tokens; sums over tokens are kept.

    A token without characters keeps its own value.
    """
    shares = Shares.of(offsets, text, word_units(text))
    sizes = shares.sizes()
    means = shares.sums(values) / sizes.where(sizes > 0, torch.ones_like(sizes))
    return _with_bare(shares, shares.of_units(means), values)


@dataclass(frozen=True)
class SurprisalAdjustment:
    """The part of the reward that the reference's surprisal explains: `intercept + slope * s`.

    Both models are noisy where a token is rare, and training moves rare tokens more than common
    ones whatever they mean. Fitted on other responses, the line is the reward that a token of this
    surprisal usually has; what is left is what training changed about this one.
    """

    intercept: float
    slope: float

    @classmethod
    def fit(cls, rewards: Tensor, ref_surprisals: Tensor) -> "SurprisalAdjustment":
        """Least squares over the tokens [N] of responses other than those to be read.

        Raises ValueError for fewer than two different surprisals.
        """
        x, y = ref_surprisals.double(), rewards.double()
        centred_x = x - x.mean()
        spread = float(centred_x.square().sum())
        if not spread > 0:
            raise ValueError("a line needs tokens of two different surprisals")
        slope = float((centred_x * (y - y.mean())).sum()) / spread
        return cls(float(y.mean()) - slope * float(x.mean()), slope)

    def __call__(self, rewards: Tensor, ref_surprisals: Tensor) -> Tensor:
        """[T] rewards less the line at each token's surprisal under the reference (nats)."""
        return rewards - (self.intercept + self.slope * ref_surprisals)


def average(estimates: Sequence[Tensor]) -> Tensor:
    """[T] mean of estimates of the same tokens, from several pairs, seeds or checkpoints.

    With one reference the mean of plain rewards is the reward of the policies' normalised geometric
    mean, up to one number per state; the mean of centred ones is its centred reward. Raises
    ValueError for none, or for different lengths.
    """
    if len({tuple(each.shape) for each in estimates}) != 1:
        shapes = [tuple(each.shape) for each in estimates]
        raise ValueError(f"estimates of the same tokens are averaged, not shapes {shapes}")
    return torch.stack([each.double() for each in estimates]).mean(0)


@dataclass(frozen=True)
class Estimator:
    """A way to read token credit off a `Credit`.

    needs_facts: whether it needs entropies or divergences, which take a sweep over the vocabulary
    summary:     one line for the command line and the docs
    """

    name: str
    read: Callable[["Credit"], Tensor]
    needs_facts: bool
    summary: str


def estimator(name: str) -> Estimator:
    """The estimator of a name. Raises UserError where there is none."""
    if name not in ESTIMATORS:
        raise UserError(f"estimator is {name!r}; accepted: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def _with_bare(shares: Shares, read: Tensor, values: Tensor) -> Tensor:
    return torch.where(shares.without_characters(), values.double(), read)


def _plain(credit: "Credit") -> Tensor:
    return credit.rewards


def _centred(credit: "Credit") -> Tensor:
    return centred(credit.rewards, credit.divergences, credit.beta)


def _policy_centred(credit: "Credit") -> Tensor:
    return policy_centred(credit.rewards, credit.policy_divergences, credit.beta)


def _standardised(credit: "Credit") -> Tensor:
    return standardised(credit.rewards, credit.divergences, credit.ratio_variances, credit.beta)


def _half_referenced(credit: "Credit") -> Tensor:
    return partly_referenced(credit.logps, credit.ref_logps, credit.beta, 0.5)


def _by_word(read: Callable[["Credit"], Tensor]) -> Callable[["Credit"], Tensor]:
    return lambda credit: word_sums(read(credit), credit.offsets, credit.response)


def _by_mean(read: Callable[["Credit"], Tensor]) -> Callable[["Credit"], Tensor]:
    return lambda credit: word_means(read(credit), credit.offsets, credit.response)


ESTIMATORS: dict[str, Estimator] = {
    each.name: each
    for each in (
        Estimator("plain", _plain, False, "the implicit reward: beta * log(policy / reference)"),
        Estimator(
            "centred", _centred, True, "less the reference's mean reward in the state (-beta * KL)"
        ),
        Estimator(
            "policy_centred", _policy_centred, True, "less the policy's mean reward in the state"
        ),
        Estimator(
            "standardised",
            _standardised,
            True,
            "centred, in standard deviations of the reward under the reference",
        ),
        Estimator(
            "half_referenced",
            _half_referenced,
            False,
            "beta * (log policy - half of log reference): a part of the prior is kept",
        ),
        Estimator("words", _by_word(_plain), False, "the sum of plain over the token's word"),
        Estimator("word_means", _by_mean(_plain), False, "the mean of plain over the token's word"),
        Estimator(
            "centred_words", _by_word(_centred), True, "the sum of centred over the token's word"
        ),
        Estimator(
            "policy_centred_words",
            _by_word(_policy_centred),
            True,
            "the sum of policy_centred over the token's word",
        ),
        Estimator(
            "standardised_words",
            _by_word(_standardised),
            True,
            "the sum of standardised over the token's word",
        ),
        Estimator(
            "half_referenced_words",
            _by_word(_half_referenced),
            False,
            "the sum of half_referenced over the token's word",
        ),
    )
}
"""All estimators by name; `plain` is the default everywhere."""
