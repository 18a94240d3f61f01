"""Whether the run learns what it should, and whether that carries over to pairs it does not see."""

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.looks import Array, Track, held, interval, mean_of
from tokenq.monitor.findings.tracks import log_ratio, margin, pair_track, setup_of, sources, watched
from tokenq.monitor.findings.wording import evidence, percent, said
from tokenq.monitor.readings import HELD_OUT, TRAINED, History, Reading

PATIENCE = 100
"""Optimiser steps that a run is given before it is said not to learn."""
FLAT = 0.5
"""Nats of margin on trained pairs that a run which learns has got by then."""
CHANCE = 0.7
"""Accuracy up to which it may be chance."""
LEAST_LOSS = 0.5
"""Nats of held-out margin that must be lost again."""
LEAST_PARTING = 1.0
"""Nats that held-out chosen answers lose and trained ones gain."""
LEAST_RANKING = 0.08
"""Share of pairs that change to the wrong order."""
ACCURATE = 0.6


def not_learning(history: History) -> Finding | None:
    """The margin of trained pairs stays flat and their accuracy at chance."""
    setup, last = setup_of(history), history.readings[-1]
    source = TRAINED if (sources(setup) == TRAINED).any() else HELD_OUT
    if last.step < PATIENCE:
        return None
    track = pair_track(history, source, lambda r: FLAT - margin(setup, r))
    accuracy = pair_track(history, source, lambda r: (margin(setup, r) > 0).astype(float)).rows[-1]
    found = held(track, FLAT / 2)
    if found is None or accuracy.mean() > CHANCE:
        return None
    now = interval(pair_track(history, source, lambda r: margin(setup, r)).rows[-1])
    return Finding(
        "not_learning",
        "warning",
        found.since,
        "The run does not learn to tell the answers apart",
        f"After {last.step} steps the margin of the pairs it was trained on is {said(now)} nats "
        f"and its accuracy {percent(accuracy.mean())}.",
        "The gradient of the loss is widest at margin 0, so a run whose margins stay there does "
        "not move: its steps are too small, its gradients cut off, or its labels contradict each "
        "other.",
        [
            "Raise `learning_rate` (an adapter wants about 1e-4, full fine-tuning about 1e-6).",
            "Check that the parameters that should be trained are, and that labels are not mixed.",
        ],
        ["likelihood/train_margin", "likelihood/train_accuracy"],
        evidence(found, f"{FLAT} nats less the margin of trained pairs", "nats"),
    )


def overfitting(history: History) -> Finding | None:
    """Held-out pairs lose margin while trained ones gain."""
    setup = setup_of(history)
    if set(sources(setup)) != {HELD_OUT, TRAINED}:
        return None
    ours = pair_track(history, HELD_OUT, lambda r: margin(setup, r))
    theirs = pair_track(history, TRAINED, lambda r: margin(setup, r))
    means = [mean_of(rows) for rows in ours.rows]
    lost, least = [], []
    for number, rows in enumerate(ours.rows):
        best = int(np.argmax(means[: number + 1]))
        start = np.zeros_like(rows) if means[best] <= 0 else ours.rows[best]
        before = 0.0 if means[best] <= 0 else mean_of(theirs.rows[best])
        lost.append(start - rows)
        least.append(LEAST_LOSS if mean_of(theirs.rows[number]) > before else np.inf)
    found = held(Track(ours.steps, lost), least, tries=range(2, len(lost) + 2))
    if found is None:
        return None
    now, trained = interval(ours.rows[-1]), interval(theirs.rows[-1])
    return Finding(
        "overfitting",
        "warning",
        found.since,
        "Held-out pairs lose margin while trained ones gain",
        f"At step {history.readings[-1].step} the held-out margin is {said(now)} nats, "
        f"{said(found.interval)} below its best; that of trained pairs is {said(trained)} and grew "
        "meanwhile.",
        "What the run still learns holds for its own pairs alone. DPO has no optimum at a finite "
        "margin when labels never contradict each other, so it goes on pushing them apart "
        "(2310.12036).",
        [advice.EARLIER, advice.MORE_DATA, advice.MORE_BETA, advice.LOWER_RATE],
        ["likelihood/margin", "likelihood/train_margin"],
        evidence(found, "held-out margin lost since its best probe", "nats"),
    )


def memorising(history: History) -> Finding | None:
    """Trained chosen answers become more likely, held-out ones less."""
    setup = setup_of(history)
    if set(sources(setup)) != {HELD_OUT, TRAINED}:
        return None

    def gain(reading: Reading) -> Array:
        return log_ratio(setup, reading, 0)

    found = held(pair_track(history, HELD_OUT, lambda r: -gain(r)), LEAST_PARTING)
    rise = held(pair_track(history, TRAINED, gain), LEAST_PARTING)
    if found is None or rise is None:
        return None
    return Finding(
        "memorising",
        "warning",
        max(found.since, rise.since),
        "Trained chosen answers become more likely, held-out ones less",
        f"At step {history.readings[-1].step} trained chosen answers have gained "
        f"{said(rise.interval)} nats, and held-out ones have lost {said(found.interval)}.",
        "The answers themselves are learned by heart, at the cost of others of their kind; a "
        "tracker that shows trained batches alone shows the chosen reward rise.",
        [advice.MORE_DATA, advice.EARLIER, advice.LOWER_RATE, advice.MORE_BETA],
        ["likelihood/chosen_reward", "likelihood/train_chosen_reward"],
        evidence(found, "fall of log pi(chosen), held-out pairs", "nats"),
    )


def ranking_falls(history: History) -> Finding | None:
    """The policy's own likelihood ranks fewer pairs rightly, though the implicit reward does."""
    setup = setup_of(history)
    source, logps = watched(setup), setup.baseline.ref_logps.sum(axis=1)
    before = logps[0] > logps[1]

    def worse(reading: Reading) -> Array:
        now = reading.pairs.logps.sum(axis=1)
        return before.astype(float) - (now[0] > now[1])

    found = held(pair_track(history, source, worse), LEAST_RANKING)
    accuracy = pair_track(history, source, lambda r: (margin(setup, r) > 0).astype(float)).rows[-1:]
    if found is None or accuracy[0].mean() < ACCURATE:
        return None
    return Finding(
        "ranking_falls",
        "warning",
        found.since,
        "The implicit reward ranks pairs rightly, the policy's likelihood ever fewer",
        f"At step {history.readings[-1].step} the implicit reward ranks "
        f"{percent(accuracy[0].mean())} of {source.replace('_', '-')} pairs rightly, but "
        f"{said(found.interval)} of them have changed from the right to the wrong order by "
        "log pi alone.",
        "A margin is counted from the reference: it may be positive while the policy still writes "
        "the rejected answer rather. DPO seldom flips an order that the reference has wrong "
        "(2405.19534), and here it loses right ones.",
        [
            "Do not choose the checkpoint by reward accuracy; look at likelihood/ranking_accuracy.",
            advice.SFT_FIRST,
            advice.SFT_TERM,
        ],
        ["likelihood/ranking_accuracy", "likelihood/accuracy"],
        evidence(found, "pairs that changed to the wrong order by log pi", "share"),
    )
