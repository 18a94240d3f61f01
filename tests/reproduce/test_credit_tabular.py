"""Credit in token MDPs: the expected loss gives the exact advantage, and the measures are right."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tokenq.objectives import DPO
from tokenq.reproduce.credit_tabular import (
    World,
    auroc,
    controls,
    correlation,
    draw,
    estimates,
    fit_expected,
    fit_samples,
    sample_pairs,
    tabular,
    visits,
)

SMALL = World(vocabulary=3, horizon=2, prompts=1, pairs=(60,), iterations=40, objectives=("dpo",))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return tabular(3, SMALL)


def test_dpo_on_the_expected_loss_reads_the_exact_advantage(result: dict[str, Any]) -> None:
    exact = result["arms"]["dpo"]["exact"]
    assert exact["plain"]["advantage"] == pytest.approx(1.0, abs=1e-6)
    assert exact["plain"]["reward"] == pytest.approx(
        result["truth"]["advantage"]["reward"], abs=1e-4
    )
    assert exact["policy likelihood"]["advantage"] == pytest.approx(
        result["controls"]["optimal likelihood"]["advantage"], abs=1e-4
    )
    assert result["truth"]["reward"] == pytest.approx(
        {"advantage": exact["plain"]["reward"], "reward": 1.0, "wrong": 1.0}, abs=1e-4
    )


def test_every_arm_holds_every_estimator_and_number_of_pairs(result: dict[str, Any]) -> None:
    assert list(result["arms"]) == ["dpo"]
    for arm in result["arms"].values():
        assert list(arm) == ["60", "exact"]
        assert {"plain", "centred", "policy_centred", "half_referenced"} < set(arm["60"])
    assert 0 < result["wrong"] < 1


def test_equal_seeds_give_equal_worlds() -> None:
    tiny = replace(SMALL, vocabulary=2, prompts=1, pairs=(20,), iterations=3, objectives=("dpo",))
    assert tabular(1, tiny) == tabular(1, tiny)
    assert tabular(1, tiny) != tabular(2, tiny)


def test_centred_credit_has_mean_zero_under_the_reference() -> None:
    mdp, _ = draw(SMALL, np.random.default_rng(0))
    log_policy = mdp.solve(SMALL.beta).log_policy
    read = estimates(mdp, log_policy, SMALL.beta)
    reference, policy = np.exp(mdp.ref_logps), np.exp(log_policy)
    assert (reference * read["centred"]).sum(-1) == pytest.approx(0, abs=1e-12)
    assert (policy * read["policy_centred"]).sum(-1) == pytest.approx(0, abs=1e-12)
    assert (reference * read["standardised"] ** 2).sum(-1) == pytest.approx(1)
    assert read["plain"] == pytest.approx(mdp.solve(SMALL.beta).advantage)


def test_pairs_come_from_the_reference_and_the_better_one_wins_more_often() -> None:
    mdp, _ = draw(SMALL, np.random.default_rng(0))
    sample = sample_pairs(mdp, 4000, np.random.default_rng(1))
    assert (sample.winners != sample.losers).all()
    returns = mdp.returns
    margins = returns[sample.prompts, sample.winners] - returns[sample.prompts, sample.losers]
    assert (margins > 0).mean() > 0.6
    likely = np.exp(mdp.tree.totals(mdp.ref_logps))
    drawn = np.zeros_like(likely)
    for side in (sample.winners, sample.losers):
        np.add.at(drawn, (sample.prompts, side), 1.0)
    assert np.corrcoef(drawn.ravel(), likely.ravel())[0, 1] > 0.95


def test_training_on_more_pairs_comes_nearer_to_the_truth() -> None:
    mdp, _ = draw(SMALL, np.random.default_rng(5))
    truth = mdp.solve(SMALL.beta).advantage
    found = []
    for count in (12, 6000):
        sample = sample_pairs(mdp, count, np.random.default_rng(2))
        policy = fit_samples(DPO(beta=SMALL.beta), mdp, sample, SMALL)
        plain = estimates(mdp, policy, SMALL.beta)["plain"]
        value = correlation(plain, truth, visits(mdp))
        assert value is not None
        found.append(value)
    assert found[1] > max(0.9, found[0])


def test_expected_loss_is_left_at_its_least(result: dict[str, Any]) -> None:
    mdp, _ = draw(SMALL, np.random.default_rng(8))
    policy = fit_expected(DPO(beta=SMALL.beta), mdp, SMALL)
    optimum = mdp.solve(SMALL.beta).log_policy
    # A state that the reference hardly reaches is hardly seen by the loss.
    often = visits(mdp) > 1e-3
    assert policy[often] == pytest.approx(optimum[often], abs=1e-3)


def test_visits_are_the_reference_s_own() -> None:
    mdp, _ = draw(SMALL, np.random.default_rng(0))
    weights = visits(mdp)
    assert weights.sum() == pytest.approx(1)
    # Expected number of tokens with each state and token over all responses, by enumeration.
    counts = np.zeros_like(weights)
    likely = np.exp(mdp.tree.totals(mdp.ref_logps))
    paths = mdp.tree.paths
    for prompt in range(mdp.tree.prompts):
        for response in range(mdp.tree.responses):
            for step in np.flatnonzero(paths.mask[response]):
                place = paths.states[prompt, response, step], paths.tokens[response, step]
                counts[place] += likely[prompt, response]
    assert weights == pytest.approx(counts / counts.sum())


def test_measures_agree_with_others_and_say_when_there_is_none() -> None:
    rng = np.random.default_rng(0)
    scores, weights = rng.integers(0, 5, (6, 4)).astype(float), rng.random((6, 4))
    truth = rng.random((6, 4)) < 0.4
    assert auroc(scores, truth, weights) == pytest.approx(
        roc_auc_score(truth.ravel(), scores.ravel(), sample_weight=weights.ravel())
    )
    assert auroc(scores, np.zeros((6, 4), dtype=bool), weights) is None
    other = rng.random((6, 4))
    table = np.cov(scores.ravel(), other.ravel(), aweights=weights.ravel())
    assert correlation(scores, other, weights) == pytest.approx(
        table[0, 1] / np.sqrt(table[0, 0] * table[1, 1])
    )
    assert correlation(np.ones((6, 4)), other, weights) is None


def test_controls_know_nothing_of_the_reward() -> None:
    mdp, _ = draw(SMALL, np.random.default_rng(0))
    other = mdp.with_reward(mdp.reward[::-1].copy())
    first = controls(mdp, mdp.solve(SMALL.beta))
    second = controls(other, other.solve(SMALL.beta))
    for name in ("reference likelihood", "reference entropy", "position"):
        assert np.array_equal(first[name], second[name])
    assert not np.array_equal(first["optimal likelihood"], second["optimal likelihood"])
