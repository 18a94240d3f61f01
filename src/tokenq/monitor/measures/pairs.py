"""Measures of the probe's pairs: likelihood, accuracy, displacement, calibration, gradients."""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.special import expit

from tokenq.monitor.likelihood import PARTS
from tokenq.monitor.measures.registry import (
    FORWARD,
    LOGGED,
    NATS,
    ONCE,
    PER_TOKEN,
    PROBABILITY,
    REWARD,
    SHARE,
    Rows,
    View,
    define,
)
from tokenq.monitor.readings import SIDES, Array

_DPO = "DPO, 2305.18290, section 4"
_STAR = "From r to Q*, 2404.12358"
_DISPLACEMENT = "2410.08847"
_SQUEEZING = "2407.10490"
_RANKING = "2405.19534"
_PART_WORDS = {
    "shared": "the tokens that both answers begin with",
    "first": "the first token in which the answers differ",
    "later": "the tokens after the first difference",
    "end": "the end token",
}


def _right(gaps: Array) -> Array:
    """1 where the chosen answer is ahead, 0 where behind, 1/2 where level."""
    return np.heaviside(gaps, 0.5)


def _reward(side: int, view: View) -> Rows:
    return view.of_pairs(view.setup.beta * view.log_ratios[side])


def _log_probability(side: int, view: View) -> Rows:
    return view.of_pairs(view.logps[side])


def _entropy(side: int, view: View) -> Rows:
    return view.of_pairs(view.reading.pairs.entropy[side])


def _fork(side: int, view: View) -> Rows:
    before = view.setup.baseline.ref_fork[side]
    return view.of_pairs(np.exp(view.reading.forks.logps[side]) - np.exp(before))


def _beyond_kl(side: int, view: View) -> Rows:
    expected = -view.reading.pairs.divergence[side]
    return view.of_pairs(view.setup.beta * (view.log_ratios[side] - expected))


def _peak(side: int, view: View) -> Rows:
    return view.of_pairs(view.reading.pairs.peak[side] - view.setup.baseline.ref_peak[side])


def _rewards() -> None:
    for side, name in enumerate(SIDES):
        define(
            f"{name}_reward",
            f"Implicit reward of the {name} answer: beta * (log pi - log pi_ref), summed over its "
            "tokens; mean over pairs.",
            REWARD,
            f"{_STAR}, eq. 11",
            f"{LOGGED} (rewards/{name})",
            "likelihood",
            partial(_reward, side),
        )
    define(
        "margin",
        "Implicit reward of the chosen answer less that of the rejected one; mean over pairs.",
        REWARD,
        f"{_DPO}, eq. 7",
        f"{LOGGED} (rewards/margins)",
        "likelihood",
        lambda view: view.of_pairs(view.margins),
    )
    for side, name in enumerate(SIDES):
        define(
            f"{name}_logps",
            f"log pi of the {name} answer, summed over its tokens; mean over pairs.",
            NATS,
            _DPO,
            f"{LOGGED} (logps/{name})",
            "likelihood",
            partial(_log_probability, side),
        )


def _parts() -> None:
    for side, name in enumerate(SIDES):
        for part, word in enumerate(PARTS):
            define(
                f"{name}_reward_{word}",
                f"The share of the {name} answer's implicit reward that lies on "
                f"{_PART_WORDS[word]}; 0 for an answer without, so that the four add up to the "
                "whole; absent where no answer has any. Mean over pairs.",
                REWARD,
                f"{_STAR}, eq. 11; {_DISPLACEMENT}, section 4",
                FORWARD,
                "likelihood",
                partial(_part_reward, side, part),
            )


def _part_reward(side: int, part: int, view: View) -> Rows | None:
    if not view.setup.baseline.tokens[side, part, view.pairs].any():
        return None
    return view.of_pairs(view.setup.beta * view.part_log_ratios[side, part])


def _entropies() -> None:
    for side, name in enumerate(SIDES):
        define(
            f"entropy_{name}",
            f"Entropy of pi in a state of the {name} answer: mean over its states, then over "
            "pairs.",
            PER_TOKEN,
            "Shannon entropy over the whole vocabulary",
            FORWARD,
            "likelihood",
            partial(_entropy, side),
        )


def _accuracies() -> None:
    define(
        "accuracy",
        "Share of pairs whose chosen answer has the greater implicit reward; equal ones count "
        "half.",
        SHARE,
        _DPO,
        f"{LOGGED} (rewards/accuracies)",
        "accuracy",
        lambda view: view.of_pairs(_right(view.margins)),
    )
    define(
        "ranking_accuracy",
        "Share of pairs whose chosen answer is the more likely one under pi itself: sum of log pi, "
        "no reference; equal ones count half.",
        SHARE,
        f"{_RANKING}, definition of ranking accuracy",
        FORWARD,
        "accuracy",
        lambda view: view.of_pairs(_right(view.logps[0] - view.logps[1])),
    )
    define(
        "ranking_accuracy_per_token",
        "The same by log pi per token: sum divided by the answer's own number of tokens.",
        SHARE,
        f"{_RANKING}; SimPO, 2405.14734",
        FORWARD,
        "accuracy",
        lambda view: view.of_pairs(_right(np.diff(-view.logps / view.tokens, axis=0)[0])),
    )
    define(
        "ref_ranking_accuracy",
        "Share of pairs whose chosen answer is the more likely one under pi_ref; equal ones count "
        "half.",
        SHARE,
        _RANKING,
        ONCE,
        "accuracy",
        lambda view: view.of_pairs(_right(view.ref_logps[0] - view.ref_logps[1])),
    )


def _displacement() -> None:
    for side, name in enumerate(SIDES):
        define(
            f"fork_{name}",
            "Where the two answers part, the state before the first token that differs: pi of the "
            f"{name} answer's token less pi_ref of it. Mean over pairs that part.",
            PROBABILITY,
            f"{_DISPLACEMENT}, section 4",
            FORWARD,
            "displacement",
            partial(_fork, side),
        )
    define(
        "fork_other",
        "In the same state: pi of all other tokens together less pi_ref of them. With the two "
        "above it adds up to 0.",
        PROBABILITY,
        f"{_DISPLACEMENT}, section 4",
        FORWARD,
        "displacement",
        lambda view: view.of_pairs(view.reading.forks.other),
    )
    define(
        "fork_toward",
        "The mass of fork_other by meaning: sum over the other tokens of (pi - pi_ref) * s, s = +1 "
        "where the token's output embedding has the greater cosine with the chosen token's, -1 "
        "where with the rejected one's, all less the mean embedding. Below 0: mass went to what is "
        "like the rejected answer.",
        PROBABILITY,
        f"{_DISPLACEMENT}, sections 3 and 4",
        FORWARD,
        "displacement",
        lambda view: view.of_pairs(view.reading.forks.toward),
    )
    for side, name in enumerate(SIDES):
        define(
            f"{name}_beyond_kl",
            f"beta * sum over the {name} answer's tokens of [log pi - log pi_ref + KL(pi_ref || "
            "pi) of the token's state]. What the answer lost or won beyond what the reference's "
            "own tokens lose on average in the same states: 0 in expectation if the reference "
            "wrote the answer. Mean over pairs.",
            REWARD,
            f"{_STAR}, eq. 16, state by state",
            FORWARD,
            "displacement",
            partial(_beyond_kl, side),
        )
    define(
        "excess_decline",
        "beta * log-ratio of the chosen answers per token less the same of the reference's own "
        "responses to the same prompts: each a ratio of sums. Below 0: the chosen answers fall "
        "faster than the KL identity asks of the reference's own.",
        "beta x nats a token",
        f"{_STAR}, eq. 16",
        FORWARD,
        "displacement",
        lambda view: view.beside_responses(
            view.setup.beta * view.log_ratios[0],
            view.setup.beta * view.reading.responses.log_ratio,
        ),
    )
    for side, name in enumerate(SIDES):
        define(
            f"peak_{name}",
            "Log-probability of the most probable token of each state, under pi less under pi_ref "
            f"(each its own argmax): mean over the {name} answer's states, then over pairs. Above "
            "0: pi is squeezed into its peak.",
            PER_TOKEN,
            f"{_SQUEEZING}, squeezing effect",
            FORWARD,
            "displacement",
            partial(_peak, side),
        )


def _calibration() -> None:
    define(
        "overconfidence_tokens",
        "Per token of the chosen answers: sum_a pi(a)^2 - pi(y), a ratio of sums. Its expectation "
        "is 0 if y was drawn from pi: pi then expects to give its own token sum_a pi(a)^2. Above "
        "0: pi is surer than it is right.",
        PROBABILITY,
        "the condition of strong calibration, tested with the function pi itself",
        FORWARD,
        "calibration",
        lambda view: view.of_tokens(
            view.tokens[0] * (view.reading.pairs.collision[0] - view.reading.pairs.taken[0]),
            view.tokens[0],
        ),
    )
    define(
        "ref_overconfidence_tokens",
        "The same of pi_ref: what pi started from.",
        PROBABILITY,
        "as overconfidence_tokens",
        ONCE,
        "calibration",
        lambda view: view.of_tokens(
            view.tokens[0]
            * (view.setup.baseline.ref_collision[0] - view.setup.baseline.ref_taken[0]),
            view.tokens[0],
        ),
    )
    define(
        "overconfidence_pairs",
        "sigmoid(|margin|) less 1 where the chosen answer has the greater implicit reward (1/2 "
        "where equal); mean over pairs. 0 in expectation if preferences follow the Bradley-Terry "
        "law with these margins. Above 0: margins are larger than they are right.",
        SHARE,
        f"{_DPO}, eq. 1",
        FORWARD,
        "calibration",
        lambda view: view.of_pairs(expit(np.abs(view.margins)) - _right(view.margins)),
    )


def _gradients() -> None:
    define(
        "gradient_cosine",
        "Cosine of the angle between the head's gradients of log pi(chosen) and log pi(rejected); "
        "0 where one of them is 0. Mean over pairs.",
        "cosine",
        f"{_DISPLACEMENT}, section 4; `similarity.HeadGradients`",
        "products of the head's gradients: one more pass over the head",
        "gradients",
        lambda view: _gradient_rows(view, _cosines),
    )
    define(
        "chosen_change",
        "Share of pairs with |g+|^2 - <g+, g-> < 0, g being those gradients: a step that widens "
        "the pair's margin makes its chosen answer less likely, to first order and with the head "
        "alone moving.",
        SHARE,
        f"{_DISPLACEMENT}, section 4; `similarity.HeadGradients`",
        "products of the head's gradients: one more pass over the head",
        "gradients",
        lambda view: _gradient_rows(view, lambda g: (g[0] - g[2] < 0).astype(np.float64)),
    )


def _cosines(gradients: Array) -> Array:
    size = np.sqrt(gradients[0] * gradients[1])
    return np.divide(gradients[2], size, out=np.zeros_like(size), where=size > 0)


def _gradient_rows(view: View, values: Callable[[Array], Array]) -> Rows | None:
    gradients = view.reading.pairs.gradients
    return None if gradients is None else view.of_pairs(values(gradients))


for _family in (
    _rewards,
    _parts,
    _entropies,
    _accuracies,
    _displacement,
    _calibration,
    _gradients,
):
    _family()
