"""Measures of responses: those that the reference wrote once, and the policy's own of now."""

from collections.abc import Callable
from functools import partial

import numpy as np

from tokenq.monitor.measures.registry import (
    FORWARD,
    NATS,
    ONCE,
    PER_TOKEN,
    REWARD,
    SAMPLING,
    SHARE,
    TOKENS,
    Rows,
    View,
    define,
    per_token,
)
from tokenq.monitor.readings import Array, SampleReading

_STAR = "From r to Q*, 2404.12358"
_OURS = "own definition"
_WHERE = (
    "Mean over the held-out prompts (training prompts where there are none) of the mean over "
    "their responses."
)


def _of_responses(view: View, values: Array) -> Rows:
    return Rows(values, view.response_prompts)


def _of_baseline(values: Callable[[View], Array], view: View) -> Rows:
    return _of_responses(view, values(view))


def _similarity(name: str, view: View) -> Rows:
    return view.of_pairs(getattr(view.setup.baseline, name))


def _identity() -> None:
    define(
        "expected_reward",
        "Implicit reward of responses that the reference wrote: beta * (log pi - log pi_ref), "
        f"summed over their tokens. {_WHERE}",
        REWARD,
        f"{_STAR}, eq. 16, left side",
        FORWARD,
        "identity",
        lambda view: _of_responses(view, view.setup.beta * view.reading.responses.log_ratio),
        trained=False,
    )
    define(
        "minus_beta_kl",
        "-beta * KL(pi_ref || pi) in the states of the same responses, over the whole vocabulary, "
        f"summed over each response. {_WHERE}",
        REWARD,
        f"{_STAR}, eq. 16, right side",
        FORWARD,
        "identity",
        lambda view: _of_responses(view, -view.setup.beta * view.reading.responses.divergence),
        trained=False,
    )
    define(
        "identity_gap",
        "The first less the second, response by response: 0 in expectation, whatever pi is. If "
        "not, the responses were not drawn from this reference at temperature 1, or "
        f"log-probabilities are wrong. {_WHERE}",
        REWARD,
        f"{_STAR}, eq. 16",
        FORWARD,
        "identity",
        lambda view: _of_responses(
            view,
            view.setup.beta
            * (view.reading.responses.log_ratio + view.reading.responses.divergence),
        ),
        trained=False,
    )
    define(
        "kl_ref_policy",
        "KL(pi_ref || pi) of whole responses: summed over the states of the reference's own "
        f"responses. {_WHERE}",
        NATS,
        "chain rule of the KL divergence",
        FORWARD,
        "identity",
        lambda view: _of_responses(view, view.reading.responses.divergence),
        trained=False,
    )
    define(
        "kl_policy_ref",
        "KL(pi || pi_ref) of whole responses: summed over the states of the policy's own samples. "
        "Mean over prompts of the mean over their samples.",
        NATS,
        "chain rule of the KL divergence; what training pays beta for",
        SAMPLING,
        "identity",
        lambda view: _of_samples(view, lambda samples: samples.divergence),
        trained=False,
    )
    define(
        "kl_reverse_states",
        "KL(pi || pi_ref) summed over the states of the reference's responses: known without "
        "samples, and a lower estimate where pi has moved to states that the reference avoids. "
        f"{_WHERE}",
        NATS,
        _OURS,
        FORWARD,
        "identity",
        lambda view: _of_responses(view, view.reading.responses.reverse),
        trained=False,
    )
    define(
        "entropy_responses",
        "Entropy of pi in a state of the reference's responses: mean over states of a response. "
        f"{_WHERE}",
        PER_TOKEN,
        "Shannon entropy over the whole vocabulary",
        FORWARD,
        "likelihood",
        lambda view: _of_responses(view, view.reading.responses.entropy),
        trained=False,
    )


def _of_samples(view: View, values: Callable[[SampleReading], Array]) -> Rows | None:
    samples = view.reading.samples
    if samples is None:
        return None
    return Rows(values(samples), view.prompts[samples.pair.astype(np.int64)])


_DRIFT: tuple[tuple[str, str, str, Callable[[SampleReading], Array], Callable[[View], Array]], ...]
_DRIFT = (
    (
        "tokens",
        "Number of tokens, the end token included, at most the probe's `new_tokens`",
        TOKENS,
        lambda samples: np.array([len(ids) for ids in samples.ids], dtype=np.float64),
        lambda view: view.setup.baseline.response_tokens,
    ),
    (
        "repetition",
        "Share of the 3-grams of tokens that occurred before in the same text",
        SHARE,
        lambda samples: samples.repetition,
        lambda view: view.setup.baseline.ref_repetition,
    ),
    (
        "ended",
        "Share of texts that ended by themselves and were not cut at the probe's `new_tokens`",
        SHARE,
        lambda samples: samples.ended,
        lambda view: np.array([r.ended for r in view.setup.probe.responses], dtype=np.float64),
    ),
    (
        "likeness",
        "Likeness to the chosen answer less likeness to the rejected one, see "
        "`readings.SampleReading`",
        "difference of cosines",
        lambda samples: samples.likeness,
        lambda view: view.setup.baseline.ref_likeness,
    ),
)


def _drift() -> None:
    for name, words, unit, of_samples, of_responses in _DRIFT:
        define(
            f"sample_{name}",
            f"{words}: of texts that pi wrote in this probe, at temperature 1. Mean over prompts "
            "of the mean over their samples.",
            unit,
            _OURS,
            SAMPLING,
            "drift",
            partial(_of_samples, values=of_samples),
            trained=False,
        )
        define(
            f"ref_{name}",
            f"The same of the responses that the reference wrote before training. {_WHERE}",
            unit,
            _OURS,
            ONCE,
            "drift",
            partial(_of_baseline, of_responses),
            trained=False,
        )


def _reference() -> None:
    define(
        "start_gap",
        "|log pi - log pi_ref| of an answer, summed over its tokens within, before the first step: "
        "mean over the two answers of a pair, then over pairs. Only in the reading of step 0; "
        "above 0 if training did not start from its reference.",
        NATS,
        f"{_STAR}, eq. 11",
        FORWARD,
        "reference",
        lambda view: (
            view.of_pairs(np.abs(view.log_ratios).mean(0)) if view.reading.step == 0 else None
        ),
    )
    define(
        "sft_gap",
        "-log pi_ref per token of the chosen answers, less the entropy of pi_ref per token of its "
        "own responses to the same prompts: each a ratio of sums. 0 in expectation if the "
        "reference wrote the chosen answers, as SFT on them should make it.",
        PER_TOKEN,
        "cross-entropy less entropy is KL(author || pi_ref)",
        ONCE,
        "reference",
        lambda view: view.beside_responses(
            -view.ref_logps[0], view.setup.baseline.response_entropy
        ),
    )
    define(
        "sft_surprise",
        "-log pi_ref of the chosen answer's tokens less the entropy of pi_ref in the same states, "
        "per token: a ratio of sums. 0 in expectation if the reference wrote the answers; needs no "
        "responses and does not depend on how long they are.",
        PER_TOKEN,
        "cross-entropy less entropy, state by state",
        ONCE,
        "reference",
        lambda view: view.of_tokens(
            -view.ref_logps[0] - view.tokens[0] * view.setup.baseline.ref_entropy[0],
            view.tokens[0],
        ),
    )
    define(
        "ref_entropy",
        "Entropy of pi_ref per token of its own responses: a ratio of sums.",
        PER_TOKEN,
        "Shannon entropy over the whole vocabulary",
        ONCE,
        "reference",
        lambda view: per_token(
            view.setup.baseline.response_entropy,
            view.setup.baseline.response_tokens,
            view.response_prompts,
        ),
        trained=False,
    )
    for name, words in (
        ("ches", "sums"),
        ("ches_normalised", "means"),
    ):
        define(
            name,
            f"<h+, h-> - <h+, h+> with h the {words} over an answer's tokens of the reference's "
            "last hidden states; mean over pairs. The higher (nearer to 0), the more alike the two "
            "answers are to the model, and the more of the chosen one's mass is expected to leave.",
            "squared length of hidden states",
            "2410.08847, definition of CHES",
            ONCE,
            "gradients",
            partial(_similarity, name),
        )


for _family in (_identity, _drift, _reference):
    _family()
