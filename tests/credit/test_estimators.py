"""Estimators of token credit: against tasks that are solved exactly, by hand, by brute force."""

import numpy as np
import pytest
import torch
from small_pairs import small_pair
from torch import Tensor

import tokenq
from tokenq.credit import ESTIMATORS, Credit, SurprisalAdjustment, average, estimator
from tokenq.credit.estimators import (
    centred,
    partly_referenced,
    policy_centred,
    standardised,
    word_means,
    word_sums,
)
from tokenq.errors import UserError
from tokenq.mdp import PrefixTree, TokenMDP

PROMPT = "Write one sentence of a film review."
RESPONSE = " A warm, funny film that earns its tears."


@pytest.fixture(scope="module")
def credit() -> Credit:
    return tokenq.credit(small_pair(), PROMPT, RESPONSE, beta=0.3)


# --- on token MDPs that are solved exactly


@pytest.fixture
def mdp() -> TokenMDP:
    tree = PrefixTree(vocabulary=4, horizon=3)
    return TokenMDP.random(tree, np.random.default_rng(0))


def credit_of_optimum(mdp: TokenMDP, beta: float) -> tuple[Tensor, Tensor]:
    """Rewards [S, A] of the optimal policy, the plain estimate, and KL(pi_ref || pi*) [S, 1]."""
    log_policy = mdp.solve(beta).log_policy
    ratio = log_policy - mdp.ref_logps
    divergence = -(np.exp(mdp.ref_logps) * ratio).sum(-1, keepdims=True)
    return torch.tensor(beta * ratio), torch.tensor(divergence)


def less_its_mean(mdp: TokenMDP, values: np.ndarray) -> Tensor:
    mean = (np.exp(mdp.ref_logps) * values).sum(-1, keepdims=True)
    return torch.tensor(values - mean)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_centred_is_what_a_token_is_worth_against_another_draw(mdp: TokenMDP, beta: float) -> None:
    """r + V*(s') less its mean under the reference: V*(s) and its jump are gone."""
    found = centred(*credit_of_optimum(mdp, beta), beta)
    worth = mdp.reward + mdp.tree.next_values(mdp.solve(beta).v)
    torch.testing.assert_close(found, less_its_mean(mdp, worth), atol=1e-12, rtol=0)
    mean = (torch.tensor(mdp.ref_logps).exp() * found).sum(-1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_at_the_last_token_centred_is_the_reward_less_its_mean_and_plain_is_not(
    mdp: TokenMDP, beta: float
) -> None:
    plain, divergence = credit_of_optimum(mdp, beta)
    last = ~mdp.tree.next_values(np.ones(mdp.tree.states)).any(-1)
    expected = less_its_mean(mdp, mdp.reward)[last]
    assert len(expected) == 16
    torch.testing.assert_close(centred(plain, divergence, beta)[last], expected, atol=1e-12, rtol=0)
    assert (plain[last] - expected).abs().max() > 0.1


def test_centred_goes_to_the_advantage_under_the_reference(mdp: TokenMDP) -> None:
    """Q - V of the reference itself, as beta grows; the error falls like 1 / beta."""
    value = mdp.evaluate(mdp.ref_logps, 1.0).reward
    expected = less_its_mean(mdp, mdp.reward + mdp.tree.next_values(value))
    errors = []
    for beta in (100.0, 1000.0):
        found = centred(*credit_of_optimum(mdp, beta), beta)
        errors.append(float((found - expected).abs().max()))
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


# --- on models


def test_means_and_spread_over_the_vocabulary(credit: Credit) -> None:
    """In each state: centred has mean 0 under the reference, policy_centred under the policy, and
    standardised has variance 1 under the reference; all are read at the token that stands there."""
    reader = credit.vocabulary
    assert reader is not None
    beta = credit.beta
    for position, token in enumerate(credit.token_ids):
        logps, ref_logps = (each.double() for each in reader.logps(position))
        rewards = beta * (logps - ref_logps)
        mean, policy_mean = (float((p.exp() * rewards).sum()) for p in (ref_logps, logps))
        deviation = float((ref_logps.exp() * (rewards - mean).square()).sum().sqrt())
        expected = {
            "plain": float(rewards[token]),
            "centred": float(rewards[token]) - mean,
            "policy_centred": float(rewards[token]) - policy_mean,
            "standardised": (float(rewards[token]) - mean) / deviation,
            "half_referenced": beta * float(logps[token] - 0.5 * ref_logps[token]),
        }
        for name, value in expected.items():
            found = float(credit.estimate(name)[position])
            assert found == pytest.approx(value, abs=1e-4), name


def test_estimates_by_hand() -> None:
    rewards, divergences = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    assert centred(rewards, divergences, 0.5).tolist() == [1.5, -0.875]
    assert policy_centred(rewards, divergences, 0.5).tolist() == [-0.5, -1.125]
    # 1.5 in deviations of 0.5 * 2; models that differ by rounding in a state say nothing there.
    for nothing in (0.0, 1e-11):
        variances = torch.tensor([4.0, nothing])
        assert standardised(rewards, divergences, variances, 0.5).tolist() == [1.5, 0.0]
    logps, ref_logps = torch.tensor([-1.0]), torch.tensor([-3.0])
    assert partly_referenced(logps, ref_logps, 0.5, 1.0).tolist() == [1.0]
    assert partly_referenced(logps, ref_logps, 0.5, 0.0).tolist() == [-0.5]
    assert partly_referenced(logps, ref_logps, 0.5, 0.25).tolist() == [-0.125]


def test_words_by_hand() -> None:
    text, offsets = "un funny.", [(0, 2), (2, 6), (6, 9), (9, 9)]
    values = torch.tensor([1.0, 2.0, 3.0, 7.0])
    # "ny." is two thirds in "funny" (2 + 2 = 4) and one third the stop (1).
    sums = word_sums(values, offsets, text)
    assert sums.tolist() == pytest.approx([1.0, 4.0, 4.0 * 2 / 3 + 1.0 / 3, 7.0])
    means = word_means(values, offsets, text)
    funny, stop = 4.0 / (5 / 3), 1.0 / (1 / 3)
    assert means.tolist() == pytest.approx([1.0, funny, funny * 2 / 3 + stop / 3, 7.0])
    assert float(means.sum()) == pytest.approx(float(values.sum()))


def test_word_estimates_are_those_of_words(credit: Credit) -> None:
    for name, words in (("plain", "words"), ("centred", "centred_words")):
        found = credit.estimate(words)
        for span in credit.words(credit.estimate(name)):
            if not span.text:
                continue
            own = found[span.first : span.last]
            # Every token of this response lies in one word.
            torch.testing.assert_close(own, torch.full_like(own, span.reward))
    assert float(credit.estimate("word_means").sum()) == pytest.approx(credit.reward, abs=1e-5)


def test_the_line_of_surprisal_is_taken_out_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    surprisals = torch.rand(500, generator=generator) * 8
    signal = torch.randn(500, generator=generator)
    # What a line can explain of the signal itself goes with it.
    own = SurprisalAdjustment.fit(signal, surprisals)
    adjustment = SurprisalAdjustment.fit(signal + 0.7 - 0.2 * surprisals, surprisals)
    assert adjustment.slope == pytest.approx(own.slope - 0.2, abs=1e-6)
    assert adjustment.intercept == pytest.approx(own.intercept + 0.7, abs=1e-6)
    left = adjustment(signal + 0.7 - 0.2 * surprisals, surprisals)
    assert abs(float(torch.corrcoef(torch.stack([left, surprisals]))[0, 1])) < 1e-5
    torch.testing.assert_close(left, own(signal, surprisals), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="two different surprisals"):
        SurprisalAdjustment.fit(signal[:1], surprisals[:1])


def test_average_of_several_pairs() -> None:
    found = average([torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])])
    assert found.tolist() == [2.0, -1.0]
    for estimates in ([], [torch.ones(2), torch.ones(3)]):
        with pytest.raises(ValueError, match="same tokens"):
            average(estimates)


def test_averaged_centred_credit_is_that_of_the_geometric_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 7, 11, generator=generator, dtype=torch.float64)
    reference, *policies = logits.log_softmax(-1)

    def read(policy: Tensor) -> tuple[Tensor, Tensor]:
        rewards = 0.3 * (policy - reference)
        divergence = (reference.exp() * (reference - policy)).sum(-1, keepdim=True)
        return rewards, centred(rewards, divergence, 0.3)

    mean = read(torch.stack(policies).mean(0).log_softmax(-1))
    plain, centre = (average(each) for each in zip(*map(read, policies), strict=True))
    torch.testing.assert_close(centre, mean[1], atol=1e-12, rtol=0)
    constant = plain - mean[0]
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), atol=1e-12, rtol=0)
    assert constant.abs().min() > 1e-3


# --- by name


def test_every_estimator_reads_a_credit(credit: Credit) -> None:
    bare = Credit(**{**vars(credit), "facts": None})
    for name, each in ESTIMATORS.items():
        values = credit.estimate(name)
        assert (values.shape, values.dtype) == ((len(credit),), torch.float32)
        assert each is estimator(name)
        if each.needs_facts:
            with pytest.raises(ValueError, match="log-probs only"):
                bare.estimate(name)
        else:
            assert torch.equal(bare.estimate(name), values)
    assert torch.equal(credit.estimate(), credit.rewards)


def test_an_unknown_estimator_is_refused(credit: Credit) -> None:
    with pytest.raises(UserError, match="estimator is 'best'; accepted: plain, centred, "):
        credit.estimate("best")


def test_estimates_are_listed_in_records(credit: Credit) -> None:
    record = credit.to_dict(estimators=("centred", "words"))
    assert list(record["estimates"]) == ["centred", "words"]
    for name, values in record["estimates"].items():
        assert values == pytest.approx(credit.estimate(name).tolist(), abs=1e-6)
