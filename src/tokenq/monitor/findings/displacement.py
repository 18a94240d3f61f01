"""Probability that leaves the chosen answers for something else, and what of it can be foreseen."""

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.finding import Finding, Severity
from tokenq.monitor.findings.looks import Array, Held, Track, held, interval
from tokenq.monitor.findings.tracks import (
    log_ratio,
    name_of,
    pair_track,
    response_track,
    setup_of,
    sources,
    watched,
)
from tokenq.monitor.findings.wording import evidence, percent, said
from tokenq.monitor.readings import History, Reading

LEAST_EXCESS = 1.0
"""Nats an answer must lose beyond the identity: a factor of e in its probability."""
LEAST_EXCESS_SHARE = 1 / 3
"""Share of the whole fall that must lie beyond the identity."""
LEAST_FORK = 0.03
"""Probability that the first differing chosen token must lose."""
LEAST_TOWARD = 0.02
"""Probability that must move to tokens like the rejected one."""
LEAST_PEAK = 0.25
"""Nats that the most probable tokens must gain while both answers lose."""
LEAST_ENTROPY_FALL, ALARMING_ENTROPY_FALL = 0.25, 0.5
"""Shares of the reference's entropy."""
TAKEN_BACK = 0.8
"""Share of the push on the chosen answer that its rejected twin takes back."""
SIMILAR_USUAL, SIMILAR_LEAST = 0.1, 0.25
"""Share of pairs with so much taken back: no matter; worth a warning."""


def chosen_fall(history: History, source: str) -> Track:
    """What each chosen answer has lost, nats."""
    setup = setup_of(history)
    return pair_track(history, source, lambda reading: -log_ratio(setup, reading, 0))


def excess_fall(history: History, source: str) -> Held | None:
    """What chosen answers lose beyond KL(ref || pi) in the states on their way.

    If the reference had written them, each token's log-ratio would be -KL(ref || pi) of its state
    in expectation: the excess of every answer would be 0 in expectation, whatever the policy.
    """
    return held(*_excess(history, source))


def excess_excluded(history: History, source: str) -> bool:
    """Whether at the latest look an excess that matters is excluded by its 95 % interval."""
    track, least = _excess(history, source)
    high = interval(track.rows[-1]).high
    return high is not None and high < least[-1]


def _excess(history: History, source: str) -> tuple[Track, list[float]]:
    """The excess, nats, and what of it matters at each look."""
    setup = setup_of(history)
    falls = [rows.mean() if len(rows) else np.nan for rows in chosen_fall(history, source).rows]

    def excess(reading: Reading) -> Array:
        return -log_ratio(setup, reading, 0) - reading.pairs.divergence[0]

    least = [max(LEAST_EXCESS, LEAST_EXCESS_SHARE * fall) for fall in falls]
    return pair_track(history, source, excess), least


def displacement(history: History) -> Finding | None:
    """Chosen answers lose more than the divergence from the reference accounts for."""
    setup = setup_of(history)
    source = watched(setup)
    found = excess_fall(history, source)
    if found is None:
        return None
    fall = interval(chosen_fall(history, source).rows[-1])
    asked = interval(pair_track(history, source, lambda r: r.pairs.divergence[0]).rows[-1])
    severity: Severity = "alarm" if _fork_loss(history, source) else "warning"
    return Finding(
        "displacement",
        severity,
        found.since,
        "Chosen answers lose more than the divergence from the reference accounts for",
        f"At step {history.readings[-1].step} {name_of(source)} chosen answers have lost "
        f"{said(fall)} nats. A policy as far from its reference would lose {asked.mean:.2f} on "
        f"what the reference writes; {said(found.interval)} nats are beyond that.",
        "Training raises a difference and may do so while mass leaves the chosen answers for "
        "others ('likelihood displacement', 2410.08847): most where the two answers look alike to "
        "the model. Of answers that the reference wrote itself, the excess is 0 in expectation "
        "(eq. 16 of 2404.12358, token by token). Of others (see `sft_gap`) it may also mean that "
        "the reference writes better ones itself, which pairs do not tell.",
        [advice.SFT_TERM, advice.DPOP, advice.SFT_FIRST, advice.EARLIER, advice.FILTER],
        ["likelihood/excess_decline", "likelihood/chosen_reward", "likelihood/minus_beta_kl"],
        evidence(found, f"fall beyond KL(ref || pi), {name_of(source)} chosen answers", "nats"),
    )


def mass_to_neither(history: History) -> Finding | None:
    """Where the answers part, the chosen token loses, and neither token has got what it lost."""
    setup = setup_of(history)
    source = watched(setup)
    found = _fork_loss(history, source)
    if found is None:
        return None
    other = interval(pair_track(history, source, lambda r: r.forks.other).rows[-1])
    if other.mean < found.interval.mean / 2:
        return None
    return Finding(
        "mass_to_neither",
        "warning",
        found.since,
        "Where the answers part, probability goes to tokens that neither answer has",
        f"At step {history.readings[-1].step} the chosen token there has lost "
        f"{said(found.interval)} of probability, and tokens of neither answer have gained "
        f"{said(other)} ({name_of(source)} pairs).{_gainers(history, source)}",
        "Pushing the rejected token down frees mass that goes to the tokens which the shared state "
        "favours, most to those that were most probable already (2407.10490), and not "
        "to the chosen one.",
        [advice.SFT_TERM, advice.DPOP, advice.FILTER],
        ["likelihood/fork_chosen", "likelihood/fork_rejected", "likelihood/fork_other"],
        evidence(found, "probability that the first differing chosen token lost", "share"),
    )


def mass_toward_rejected(history: History) -> Finding | None:
    """Where the answers part, mass moves to tokens that are more like the rejected one."""
    setup = setup_of(history)
    source = watched(setup)
    found = held(pair_track(history, source, lambda r: -r.forks.toward), LEAST_TOWARD)
    loss = _fork_loss(history, source)
    if found is None or loss is None:
        return None
    since = max(found.since, loss.since)
    return Finding(
        "mass_toward_rejected",
        "alarm",
        since,
        "Where the answers part, probability moves towards what the rejected answer means",
        f"At step {history.readings[-1].step} the chosen token there has lost "
        f"{said(loss.interval)} of probability, and among the other tokens {said(found.interval)} "
        f"have moved from those nearer to the chosen token to those nearer to the rejected one."
        f"{_gainers(history, source)}",
        "This is the harmful kind of displacement: the policy gets to the opposite of what was "
        "preferred (2410.08847, where it undid refusals).",
        [advice.SFT_TERM, advice.DPOP, advice.EARLIER, advice.FILTER],
        ["likelihood/fork_toward", "likelihood/fork_chosen", "likelihood/fork_other"],
        evidence(found, "probability moved towards the rejected token's neighbours", "share"),
    )


def squeezing(history: History) -> Finding | None:
    """The most probable tokens gain while both answers lose."""
    setup = setup_of(history)
    source, baseline = watched(setup), setup.baseline

    def gain(reading: Reading) -> Array:
        return np.asarray((reading.pairs.peak - baseline.ref_peak).mean(axis=0))

    def both(reading: Reading) -> Array:
        return -np.maximum(log_ratio(setup, reading, 0), log_ratio(setup, reading, 1))

    found = held(pair_track(history, source, gain), LEAST_PEAK)
    lost = interval(pair_track(history, source, both).rows[-1]) if found else None
    if found is None or lost is None or lost.mean < LEAST_EXCESS:
        return None
    return Finding(
        "squeezing",
        "warning",
        found.since,
        "The most probable tokens gain while both answers lose",
        f"At step {history.readings[-1].step} the most probable token in the answers' states has "
        f"gained {said(found.interval)} nats, while the better kept answer of a pair has lost "
        f"{said(lost)} ({name_of(source)} pairs).",
        "Pushing an unlikely answer down through a softmax moves its mass to what was most "
        "probable before, at the cost of everything else (the 'squeezing effect', 2407.10490).",
        [advice.SFT_FIRST, advice.SFT_TERM, advice.MORE_BETA, advice.EARLIER],
        ["likelihood/peak_chosen", "likelihood/peak_rejected", "likelihood/chosen_reward"],
        evidence(found, "gain of the most probable token", "nats"),
    )


def entropy_collapse(history: History) -> Finding | None:
    """The policy is much surer than its reference on what the reference writes."""
    baseline = setup_of(history).baseline
    before = baseline.response_entropy / baseline.response_tokens
    scale = float(before.mean())
    track = response_track(history, lambda r: (before - r.responses.entropy) / scale)
    found = held(track, LEAST_ENTROPY_FALL)
    if found is None:
        return None
    fall = found.interval.mean
    return Finding(
        "entropy_collapse",
        "alarm" if fall >= ALARMING_ENTROPY_FALL else "warning",
        found.since,
        f"Entropy has fallen by {percent(fall)}",
        f"On the reference's own responses the policy's entropy is {percent(fall)} below the "
        f"reference's {scale:.2f} nats a token ({said(found.interval)} of it).",
        "Mass gathers on few continuations: samples lose variety, and what the reference knew "
        "besides is lost (2407.10490; compare the entropies under a KL term in 2404.11999).",
        [advice.EARLIER, advice.MORE_BETA, advice.LOWER_RATE, advice.SFT_TERM],
        ["likelihood/entropy_responses", "likelihood/peak_chosen"],
        evidence(found, "fall of entropy on the reference's responses", "share"),
    )


def similar_pairs(history: History) -> Finding | None:
    """Before training: in many pairs the push on the rejected answer takes back that on chosen."""
    setup, first = setup_of(history), history.readings[0]
    gradients = first.pairs.gradients
    if gradients is None:
        return None
    back = gradients[2] / np.maximum(gradients[0], np.finfo(float).tiny)
    source = watched(setup)
    track = pair_track(
        History(setup, [first], []),
        source,
        lambda _: (back >= TAKEN_BACK).astype(float),
        start=True,
    )
    found = held(track, SIMILAR_LEAST, null=SIMILAR_USUAL)
    if found is None:
        return None
    losing = float((back > 1)[sources(setup) == source].mean())
    return Finding(
        "similar_pairs",
        "warning",
        found.since,
        f"{percent(found.interval.mean)} of the pairs hardly tell their answers apart",
        f"In {said(found.interval)} of the {name_of(source)} pairs the push on the rejected answer "
        f"takes back at least {percent(TAKEN_BACK)} of that on the chosen one, and in "
        f"{percent(losing)} all of it and more: a step then makes the chosen answer less likely "
        "(to first order, with the head moving alone).",
        "With gradients g+ and g- of the two log-probabilities, log pi(chosen) changes by "
        "|g+|^2 - <g+, g-> a step: near 0 or below it where the answers' hidden states are alike, "
        "as CHES measures (2410.08847).",
        [advice.SFT_TERM, advice.DPOP, advice.FILTER],
        ["likelihood/chosen_change", "likelihood/gradient_cosine", "likelihood/ches"],
        evidence(found, "pairs whose push on chosen is taken back", "share"),
    )


def _fork_loss(history: History, source: str) -> Held | None:
    """Probability that the first differing token of the chosen answer has lost."""
    before = np.exp(setup_of(history).baseline.ref_fork[0])
    return held(
        pair_track(history, source, lambda r: before - np.exp(r.forks.logps[0])), LEAST_FORK
    )


def _gainers(history: History, source: str, count: int = 3) -> str:
    """The tokens, by number, that gained most where the pairs part, neither answer's own."""
    setup = setup_of(history)
    total: dict[int, float] = {}
    for pair, gains in zip(setup.probe.pairs, history.readings[-1].forks.gains, strict=True):
        at = next((n for n, (a, b) in enumerate(zip(pair.chosen, pair.rejected, strict=False))
                   if a != b), None)  # fmt: skip
        if pair.source != source or at is None:
            continue
        for token, before, now in gains:
            if token not in (pair.chosen[at], pair.rejected[at]):
                total[token] = total.get(token, 0.0) + now - before
    most = sorted((token for token in total if total[token] > 0), key=lambda t: -total[t])[:count]
    return f" Most gained token ids {', '.join(map(str, most))}." if most else ""
