"""Whether reference and policy are what the run takes them for, and how far apart they are."""

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.looks import Array, Held, held, interval
from tokenq.monitor.findings.tracks import (
    name_of,
    pair_track,
    response_track,
    sample_track,
    setup_of,
    watched,
)
from tokenq.monitor.findings.wording import evidence, said, turned
from tokenq.monitor.readings import History, Reading

LEAST_BREAK, LEAST_BREAK_SHARE = 0.25, 0.2
"""Nats between the two sides of the identity, and their share of the divergence."""
START_USUAL, START_LEAST = 0.02, 0.1
"""Nats of divergence a response before training: rounding; another model."""
SFT_USUAL, SFT_LEAST = 0.2, 0.3
"""Nats a token by which chosen answers may be less likely than the reference's own: the best of
four of its own responses of seven tokens costs up to log(4) / 7 = 0.2."""
BUDGET = 10.0
"""Nats of KL(pi || ref) a response. The best of n responses is log n - (n - 1) / n away from what
it was drawn from: 10 nats buy as much choice as the best of sixty thousand would."""


def identity_broken(history: History) -> Finding | None:
    """The reference's responses do not obey E[log pi / ref] = -KL(ref || pi)."""
    divergence = response_track(history, lambda r: r.responses.divergence)
    least = [
        max(LEAST_BREAK, LEAST_BREAK_SHARE * rows.mean()) if len(rows) else np.nan
        for rows in divergence.rows
    ]
    track = response_track(history, lambda r: r.responses.log_ratio + r.responses.divergence)
    above = held(track, least, tries=2)
    other = response_track(history, lambda r: -(r.responses.log_ratio + r.responses.divergence))
    found = above or held(other, least, tries=2)
    if found is None:
        return None
    if above is None:
        found = Held(found.since, turned(found.interval), found.error)
    last = history.readings[-1].step
    own = interval(response_track(history, lambda r: r.responses.log_ratio).rows[-1])
    return Finding(
        "identity_broken",
        "alarm",
        found.since,
        "The reference's responses do not obey the KL identity",
        f"At step {last} the mean log-ratio on them is {said(own)} nats, and -KL(ref || pi) in the "
        f"same states {-divergence.rows[-1].mean():.2f}: apart by {said(found.interval)}.",
        "Both are the same expectation if the reference drew the responses (eq. 16 of 2404.12358, "
        "token by token). They part if another model, another temperature or another template "
        "wrote them, or if log-probabilities are wrong; implicit rewards then mean nothing.",
        [advice.CHECK_REFERENCE],
        ["likelihood/identity_gap", "likelihood/expected_reward", "likelihood/minus_beta_kl"],
        evidence(found, "log-ratio plus KL(ref || pi) on the reference's responses", "nats"),
    )


def start_gap(history: History) -> Finding | None:
    """Before the first step the policy is not the reference."""
    first = history.readings[0]
    if first.step > 0:
        return None
    setup = setup_of(history)
    start = History(setup, [first], [])
    track = response_track(start, lambda r: r.responses.divergence, start=True)
    found = held(track, START_LEAST, null=START_USUAL)
    if found is None:
        return None
    return Finding(
        "start_gap",
        "alarm",
        0,
        "Before the first step the policy is not the reference",
        f"KL(ref || pi) is {said(found.interval)} nats a response before training, where it should "
        "be 0.",
        "Implicit rewards are counted from the reference, and a policy that starts elsewhere "
        "starts with rewards that no preference gave it: every margin and every curve carries "
        "them.",
        [
            "Take the model that training starts from as the reference.",
            advice.CHECK_REFERENCE,
        ],
        ["likelihood/start_gap", "likelihood/kl_ref_policy"],
        evidence(found, "KL(ref || pi) before training", "nats a response"),
    )


def sft_gap(history: History) -> Finding | None:
    """Chosen answers are not what the reference writes."""
    setup = setup_of(history)
    baseline, source = setup.baseline, watched(setup)
    tokens = baseline.tokens[0].sum(axis=0)
    own = float((baseline.response_entropy / baseline.response_tokens).mean())

    def gap(reading: Reading) -> Array:
        return np.asarray(-baseline.ref_logps[0].sum(axis=0) / tokens - own)

    first = History(setup, history.readings[:1], [])
    found = held(pair_track(first, source, gap, start=True), SFT_LEAST, null=SFT_USUAL)
    if found is None:
        return None
    return Finding(
        "sft_gap",
        "warning",
        found.since,
        "The reference does not write like the chosen answers",
        f"To the reference {name_of(source)} chosen answers cost {said(found.interval)} nats a "
        f"token more than its own responses, which cost {own:.2f}.",
        "DPO's optimum is the reference tilted by the reward: what the reference hardly ever "
        "writes stays rare, and updates on unlikely answers move mass to what was most probable "
        "(2407.10490). Without SFT first, runs end in degenerate text (appendix F of 2404.12358).",
        [advice.SFT_FIRST, advice.SFT_TERM],
        ["likelihood/sft_gap"],
        evidence(found, "cost of chosen answers above the reference's own", "nats a token"),
    )


def kl_budget(history: History) -> Finding | None:
    """The policy is farther from its reference than any reward model of pairs is good for."""
    found = held(sample_track(history, lambda s: s.divergence), BUDGET, null=BUDGET)
    if found is None:
        return None
    return Finding(
        "kl_budget",
        "warning",
        found.since,
        "The policy is far from its reference",
        f"KL(pi || ref) is {said(found.interval, digits=1)} nats a response on the policy's own "
        f"samples (the last probes' together): more than the best of "
        f"{np.exp(BUDGET + 1):,.0f} responses of the reference would be.",
        "Preferences are known where the pairs are; far from there the implicit reward is "
        "extrapolated, and quality peaks at a moderate divergence and falls beyond it (2210.10760 "
        "for reward models, 2406.02900 for direct alignment).",
        [advice.EARLIER, advice.MORE_BETA, advice.LOWER_RATE],
        ["likelihood/kl_policy_ref", "likelihood/kl_ref_policy"],
        evidence(found, "KL(pi || ref) on the policy's samples", "nats a response"),
    )
