"""Whether the policy is surer than it is right: of pairs, and of tokens."""

import numpy as np
from scipy.special import expit

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.looks import Array, held, interval
from tokenq.monitor.findings.tracks import margin, name_of, pair_track, setup_of, watched
from tokenq.monitor.findings.wording import evidence, said
from tokenq.monitor.readings import History, Reading

LEAST_PAIRS = 0.1
"""Mean confidence above accuracy."""
LEAST_TOKENS = 0.1
"""Probability that the policy expects its tokens to have, above what the chosen tokens have."""


def overconfident_pairs(history: History) -> Finding | None:
    """The implicit reward is surer of its order of pairs than it is right."""
    setup = setup_of(history)
    source = watched(setup)

    def value(reading: Reading) -> Array:
        distance = setup.beta * margin(setup, reading)
        confidence: Array = expit(np.abs(distance))
        return confidence - (distance > 0)

    found = held(pair_track(history, source, value), LEAST_PAIRS)
    if found is None:
        return None
    right = interval(
        pair_track(history, source, lambda r: (margin(setup, r) > 0).astype(float)).rows[-1]
    )
    return Finding(
        "overconfident_pairs",
        "warning",
        found.since,
        "The implicit reward is surer of its pairs than it is right",
        f"At step {history.readings[-1].step} it ranks {said(right)} of {name_of(source)} pairs "
        f"rightly; by its margins it takes itself to be right in {said(found.interval)} more.",
        "A margin m says that the chosen answer is preferred with probability sigmoid(m). Margins "
        "grow for as long as training goes on, accuracy does not.",
        [advice.EARLIER, advice.MORE_DATA, "Set `label_smoothing` to the share of wrong labels."],
        ["likelihood/overconfidence_pairs", "likelihood/accuracy", "likelihood/margin"],
        evidence(found, "mean confidence less accuracy", "share"),
    )


def overconfident_tokens(history: History) -> Finding | None:
    """The policy's tokens are surer than the chosen answers bear out, more so than at the start."""
    setup = setup_of(history)
    source, baseline = watched(setup), setup.baseline
    before = baseline.ref_collision[0] - baseline.ref_taken[0]

    def surplus(reading: Reading) -> Array:
        return np.asarray(reading.pairs.collision[0] - reading.pairs.taken[0] - before)

    found = held(pair_track(history, source, surplus), LEAST_TOKENS)
    if found is None:
        return None
    return Finding(
        "overconfident_tokens",
        "warning",
        found.since,
        "The policy is surer of its tokens than chosen answers bear out",
        f"At step {history.readings[-1].step} it expects its tokens to have a probability that is "
        f"{said(found.interval)} higher than that of the tokens in {name_of(source)} chosen "
        "answers, the reference's own surplus taken off.",
        "Under a calibrated policy the token that comes has probability sum pi^2 in expectation. "
        "Preference training sharpens distributions without asking that they stay calibrated.",
        [advice.EARLIER, advice.SFT_TERM, advice.MORE_BETA],
        ["likelihood/overconfidence_tokens"],
        evidence(found, "growth of expected above observed probability", "share"),
    )
