"""E_ref[log-ratio] = -KL(ref || pi) on a model so small that all its responses can be written."""

import itertools

import numpy as np
import pytest
from probes import move, moved
from tiny_checkpoints import llama

from tokenq.monitor import ProbeOptions, Prober, kl_identity
from tokenq.monitor.readings import ProbePair, ProbeResponse, ProbeSet

END = 2
PAIR = ProbePair("held_out", 0, [3, 1], [0, 4, END], [1, END])
LENGTH = 3


def every_response() -> list[ProbeResponse]:
    """All texts over 5 tokens that end with the end token or are cut at 3 tokens."""
    texts = []
    for length in range(1, LENGTH + 1):
        for ids in itertools.product(range(5), repeat=length):
            ended = ids[-1] == END
            if END not in ids[:-1] and (ended or length == LENGTH):
                texts.append(ProbeResponse(0, list(ids), ended))
    return texts


def test_the_exact_expectation_over_all_responses() -> None:
    """Weighted by pi_ref, log-ratios and divergences of all 85 responses have one sum."""
    policy = llama(seed=6, vocab_size=5).double()
    probe = ProbeSet([PAIR], every_response(), LENGTH)
    assert len(probe.responses) == 1 + 4 + 16 * 5
    prober = Prober.on(probe, policy, [END])
    weights = np.exp(prober.baseline.response_logps)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    move(policy, 0.1)
    reading = prober.read(policy, 1).responses
    expected = -(weights * reading.divergence).sum()
    assert expected < -1e-2
    assert (weights * reading.log_ratio).sum() == pytest.approx(expected, abs=1e-12)
    # Only the expectations are one: single responses differ.
    assert np.abs(reading.log_ratio + reading.divergence).max() > 1e-2


def test_the_policys_own_responses_have_the_other_divergence() -> None:
    reference = llama(seed=6, vocab_size=5).double()
    policy = moved(reference, 0.1)
    prober = Prober.on(ProbeSet([PAIR], every_response(), LENGTH), reference, [END])
    reading = prober.read(policy, 1).responses
    ratio = reading.log_ratio
    weights = np.exp(prober.baseline.response_logps + ratio)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights * reading.reverse).sum() == pytest.approx((weights * ratio).sum(), abs=1e-12)


def test_what_is_drawn_estimates_it_without_bias() -> None:
    policy = llama(seed=6, vocab_size=5)
    exact = Prober.on(ProbeSet([PAIR], every_response(), LENGTH), policy, [END])
    options = ProbeOptions(responses=2000, new_tokens=LENGTH)
    prober = Prober.open(policy, [PAIR], [], [END], options)
    weights = np.exp(exact.baseline.response_logps)
    move(policy, 0.1)
    truth = -(weights * exact.read(policy, 1).responses.divergence).sum()
    reading = prober.read(policy, 1).responses
    # To one prompt responses are independent: each may stand for a group of its own.
    found = kl_identity(reading.log_ratio, reading.divergence, range(2000), 1.0)
    assert found.holds
    for side in (found.implicit, found.divergence):
        assert side.holds(truth)
        assert side.low is not None
        assert side.high is not None
        assert side.high - side.low < 0.2 * abs(truth)
