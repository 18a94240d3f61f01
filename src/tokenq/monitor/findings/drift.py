"""What the policy writes now beside what the reference wrote: length, repetition, endings."""

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.looks import Held, held
from tokenq.monitor.findings.tracks import sample_track, setup_of
from tokenq.monitor.findings.wording import evidence, percent, said, turned
from tokenq.monitor.readings import History, SampleReading

LEAST_LENGTH = 0.25
"""Share of the reference's mean length."""
LEAST_REPETITION = 0.1
"""Share of 3-grams."""
LEAST_UNENDED = 0.25
"""Share of responses."""


def length_drift(history: History) -> Finding | None:
    """Samples are longer or shorter than the reference's responses."""
    baseline = setup_of(history).baseline
    scale = float(baseline.response_tokens.mean())

    def length(samples: SampleReading) -> np.ndarray:
        return np.array([len(ids) for ids in samples.ids], dtype=float)

    longer = held(
        sample_track(history, length, baseline.response_tokens, scale=scale), LEAST_LENGTH, tries=2
    )
    shorter = held(
        sample_track(history, length, baseline.response_tokens, scale=-scale), LEAST_LENGTH, tries=2
    )
    found = longer or shorter
    if found is None:
        return None
    if longer is None:
        found = Held(found.since, turned(found.interval), found.error)
    word = "longer" if longer else "shorter"
    return Finding(
        "length_drift",
        "warning",
        found.since,
        f"Responses get {word}",
        f"The policy's samples are {percent(abs(found.interval.mean))} {word} than the reference's "
        f"responses to the same prompts ({scale:.1f} tokens): {said(found.interval)} of it.",
        "The implicit reward is a sum over tokens, so what goes with length in the pairs is "
        "learned as length (2403.19159); a longer answer also has more tokens to collect reward "
        "with.",
        [advice.LENGTH, "Look at the lengths of chosen and rejected answers in the data."],
        ["likelihood/sample_tokens"],
        evidence(found, "length of samples against the reference's responses", "share"),
    )


def repetition_drift(history: History) -> Finding | None:
    """Samples repeat themselves more than the reference's responses."""
    before = setup_of(history).baseline.ref_repetition
    found = held(sample_track(history, lambda s: s.repetition, before), LEAST_REPETITION)
    if found is None:
        return None
    return Finding(
        "repetition_drift",
        "alarm",
        found.since,
        "Responses repeat themselves",
        f"{percent(float(before.mean()))} of the 3-grams in the reference's responses occurred "
        f"before in them; in the policy's samples it is {said(found.interval)} more.",
        "Mass that is pushed off both answers gathers where the model was surest already, and what "
        "has just been said is often that (2407.10490 sees such repetition after DPO).",
        [advice.EARLIER, advice.SFT_TERM, advice.MORE_BETA, advice.LENGTH],
        ["likelihood/sample_repetition"],
        evidence(found, "share of repeated 3-grams above the reference's", "share"),
    )


def stops_ending(history: History) -> Finding | None:
    """Fewer samples end by themselves."""
    setup = setup_of(history)
    before = np.array([float(response.ended) for response in setup.probe.responses])
    track = sample_track(history, lambda s: s.ended, before, scale=-1.0)
    found = held(track, LEAST_UNENDED)
    if found is None:
        return None
    return Finding(
        "stops_ending",
        "alarm",
        found.since,
        "Responses stop ending",
        f"{percent(float(before.mean()))} of the reference's responses end within "
        f"{setup.probe.new_tokens} tokens; of the policy's samples {said(found.interval)} fewer "
        "do.",
        "The end token has its own implicit reward: where rejected answers end sooner than chosen "
        "ones, or answers were cut before their end token, it is pushed down.",
        [
            "Check that every answer of the data ends with the end token and that `max_length` "
            "does not cut many.",
            advice.LENGTH,
            advice.SFT_TERM,
        ],
        ["likelihood/sample_ended", "likelihood/chosen_reward_end"],
        evidence(found, "share of samples that end, against the reference's", "share", falls=True),
    )
