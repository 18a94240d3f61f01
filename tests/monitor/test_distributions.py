"""The pass over the vocabulary in chunks, without a model."""

import numpy as np
import pytest
import torch
from torch import nn

from tokenq.errors import UserError
from tokenq.models.head import Head, Predictions
from tokenq.monitor import distributions as module
from tokenq.monitor.distributions import distributions


def linear(seed: int, vocabulary: int = 11) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, vocabulary)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_chunks_give_what_one_table_gives(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ELEMENTS", 3 * 11)
    head, theirs = Head(linear(0), 2.0, softcap), Head(linear(1), 1.0)
    hidden, other = torch.randn(40, 4), torch.randn(40, 4)
    tokens = torch.randint(11, (40,))
    found = distributions(head, hidden, tokens.tolist(), Predictions(theirs, other))
    with torch.no_grad():
        logits = 2.0 * head.module(hidden)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        pi = torch.distributions.Categorical(logits=logits)
        pi_ref = torch.distributions.Categorical(logits=theirs.module(other))
    expected = {
        "logps": pi.log_prob(tokens),
        "ref_logps": pi_ref.log_prob(tokens),
        "entropy": pi.entropy(),
        "peak": pi.probs.max(-1).values.log(),
        "collision": (pi.probs**2).sum(-1),
        "divergence": torch.distributions.kl_divergence(pi_ref, pi),
        "reverse": torch.distributions.kl_divergence(pi, pi_ref),
        "taken": pi.probs[torch.arange(40), tokens],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-5, atol=1e-6)


def test_without_a_reference_nothing_is_said_of_it() -> None:
    found = distributions(Head(linear(0)), torch.randn(5, 4), [1, 2, 3, 4, 5])
    assert np.isfinite(found.logps).all()
    assert np.isnan([found.ref_logps, found.divergence, found.reverse]).all()


def test_no_positions() -> None:
    found = distributions(Head(linear(0)), torch.randn(0, 4), [])
    assert found.logps.shape == found.reverse.shape == (0,)


def test_in_mixed_precision_the_head_is_read_in_its_own() -> None:
    head, hidden = Head(linear(0)), torch.randn(5, 4)
    plain = distributions(head, hidden, [1, 2, 3, 4, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = distributions(head, hidden, [1, 2, 3, 4, 5])
    assert (plain.logps == mixed.logps).all()


def test_two_vocabularies_have_no_divergence() -> None:
    reference = Predictions(Head(linear(1, vocabulary=12)), torch.randn(5, 4))
    with pytest.raises(UserError, match="scores 12 tokens, the policy 11"):
        distributions(Head(linear(0)), torch.randn(5, 4), [0] * 5, reference)
