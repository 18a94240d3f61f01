"""Likelihoods that fall: as they must, from one side alone, or in tokens that both share."""

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.displacement import chosen_fall, excess_excluded
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.looks import Array, held, interval
from tokenq.monitor.findings.tracks import (
    log_ratio,
    margin,
    name_of,
    pair_track,
    response_track,
    setup_of,
    watched,
)
from tokenq.monitor.findings.wording import evidence, said
from tokenq.monitor.readings import History, Reading

LEAST_FALL = 0.5
"""Nats that chosen answers must have lost before it is worth a word."""
LEAST_SHARED = 0.5
"""Nats that the tokens which both answers begin with must lose beyond what the identity asks."""


def expected_decline(history: History) -> Finding | None:
    """Chosen rewards are negative, and no more so than KL(ref || pi) asks for."""
    setup = setup_of(history)
    source = watched(setup)
    found = held(chosen_fall(history, source), LEAST_FALL)
    if found is None or not excess_excluded(history, source):
        return None
    beta, last = setup.beta, history.readings[-1]
    asked = interval(pair_track(history, source, lambda r: r.pairs.divergence[0]).rows[-1])
    own = interval(response_track(history, lambda r: r.responses.log_ratio).rows[-1])
    return Finding(
        "expected_decline",
        "note",
        found.since,
        "Chosen rewards are negative, as the divergence from the reference asks for",
        f"At step {last.step} {name_of(source)} chosen answers have lost "
        f"{said(found.interval)} nats, a reward of {-beta * found.interval.mean:.3f}. A policy as "
        f"far from its reference must lose {said(asked)} nats on what the reference itself writes "
        f"in these states; the log-ratio of the reference's own responses is {said(own)}.",
        "In expectation over the reference's own responses the implicit reward is "
        "-beta KL(ref || pi): 0 at the start and negative ever after (eq. 16 of 2404.12358). After "
        "SFT on chosen answers the reference writes like them, so theirs falls with it.",
        [],
        ["likelihood/chosen_reward", "likelihood/minus_beta_kl", "likelihood/expected_reward"],
        evidence(found, f"fall of log pi(chosen), {name_of(source)} pairs", "nats"),
    )


def rejected_side_only(history: History) -> Finding | None:
    """Both answers lose while the margin grows: the margin comes from the rejected side alone."""
    setup = setup_of(history)
    source = watched(setup)
    fall = held(chosen_fall(history, source), LEAST_FALL)
    growth = held(pair_track(history, source, lambda r: margin(setup, r)), LEAST_FALL)
    if fall is None or growth is None:
        return None
    since, last = max(fall.since, growth.since), history.readings[-1]
    lost = interval(pair_track(history, source, lambda r: log_ratio(setup, r, 1)).rows[-1])
    return Finding(
        "rejected_side_only",
        "note",
        since,
        "The margin grows from the rejected side alone: both answers become less likely",
        f"At step {last.step} chosen answers have lost {said(fall.interval)} nats and rejected "
        f"ones {said(lost, -1)}; the margin is {said(growth.interval)} nats "
        f"({name_of(source)} pairs).",
        "The loss sees the difference of the two alone, and a small probability is pushed down "
        "with less effort than a large one is pushed up (2404.04626). The mass goes to what "
        "neither answer says: whether that is harmless is for the divergence to tell and for the "
        "samples to show.",
        [advice.SFT_TERM, advice.DPOP],
        ["likelihood/chosen_reward", "likelihood/rejected_reward", "likelihood/margin"],
        evidence(growth, f"margin, {name_of(source)} pairs", "nats"),
    )


def shared_prefix_falls(history: History) -> Finding | None:
    """Tokens that both answers begin with lose more than the identity asks for."""
    setup = setup_of(history)
    tokens = setup.baseline.tokens[0]
    shared, source = tokens[0], watched(setup)

    def excess(reading: Reading) -> Array:
        fall = (setup.baseline.ref_logps - reading.pairs.logps)[0, 0]
        part = reading.pairs.divergence[0] * shared / tokens.sum(axis=0)
        return np.where(shared > 0, fall - part, np.nan)

    found = held(pair_track(history, source, excess), LEAST_SHARED)
    if found is None:
        return None
    return Finding(
        "shared_prefix_falls",
        "warning",
        found.since,
        "The words that both answers begin with become less likely",
        f"At step {history.readings[-1].step} the shared beginnings of {name_of(source)} pairs "
        f"have lost {said(found.interval)} nats an answer beyond their part of the divergence.",
        "They cancel in the margin, so nothing in the objective pushes on them: it is a side "
        "effect of pushing on what follows through shared parameters (2410.08847, where hidden "
        "states of the two answers that are alike carry the push over).",
        [advice.SFT_TERM, advice.DPOP, advice.FILTER],
        ["likelihood/chosen_reward_shared", "likelihood/rejected_reward_shared"],
        evidence(found, "fall of the shared beginning beyond its part of KL", "nats"),
    )
