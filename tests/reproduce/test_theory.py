"""Tabular training against the exact optimum, and the whole experiment at its smallest."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tokenq.mdp import PrefixTree, TokenMDP, bradley_terry, equivalence, uniform_pairs
from tokenq.objectives import DPO
from tokenq.reproduce.experiment import Run, carry_out
from tokenq.reproduce.tabular import divergence, train
from tokenq.reproduce.theory import EXPERIMENT

TREE = PrefixTree(vocabulary=3, horizon=2, eos=2, prompts=2)
BETA = 0.5


def problem(seed: int) -> tuple[TokenMDP, np.ndarray]:
    return TokenMDP.random(TREE, np.random.default_rng(seed)), uniform_pairs(TREE).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_dpo_reaches_the_exact_policy_and_its_dense_rewards(seed: int) -> None:
    mdp, pairs = problem(seed)
    solution = mdp.solve(BETA)
    start = np.random.default_rng(seed).normal(size=mdp.reward.shape)
    fit = train(DPO(beta=BETA), mdp, bradley_terry(mdp.returns), pairs, start, 300)
    assert divergence(mdp, solution.log_policy, fit.policies[0]) > 0.1
    assert divergence(mdp, solution.log_policy, fit.log_policy) < 1e-8
    learned = BETA * (fit.log_policy - mdp.ref_logps)
    assert equivalence(TREE, mdp.reward, learned, tolerance=1e-4).holds
    np.testing.assert_allclose(learned, solution.advantage, atol=1e-4)


def test_another_beta_learns_another_policy_from_the_same_labels() -> None:
    mdp, pairs = problem(0)
    fit = train(DPO(beta=0.1), mdp, bradley_terry(mdp.returns), pairs, mdp.ref_logps, 300)
    assert divergence(mdp, mdp.solve(0.1).log_policy, fit.log_policy) < 1e-8
    assert divergence(mdp, mdp.solve(BETA).log_policy, fit.log_policy) > 0.1


def test_labels_without_noise_run_away() -> None:
    mdp, pairs = problem(1)
    labels = (mdp.returns[..., :, None] > mdp.returns[..., None, :]).astype(np.float64)
    fit = train(DPO(beta=BETA), mdp, labels, pairs, mdp.ref_logps, 300)
    target = mdp.solve(BETA).log_policy
    assert divergence(mdp, target, fit.log_policy) > 10
    law = np.exp(TREE.totals(fit.log_policy))
    np.testing.assert_array_equal(law.argmax(-1), mdp.returns.argmax(-1))
    assert law.max(-1).min() > 0.999


def test_responses_in_no_pair_keep_the_mass_of_the_start() -> None:
    mdp, pairs = problem(2)
    covered = np.arange(TREE.responses) < 5
    pairs = pairs * covered * covered[:, None]
    labels = bradley_terry(mdp.returns)
    target = TREE.totals(mdp.solve(BETA).log_policy)
    masses = []
    for seed in range(2):
        start = np.random.default_rng(seed).normal(size=mdp.reward.shape)
        fit = train(DPO(beta=BETA), mdp, labels, pairs, start, 300)
        law = TREE.totals(fit.log_policy)
        gap = (law - target)[:, covered]
        np.testing.assert_allclose(gap - gap[:, :1], 0, atol=1e-4)
        masses.append(np.exp(law)[:, ~covered].sum(-1))
    assert np.abs(masses[0] - masses[1]).max() > 0.01


def test_the_experiment_writes_its_page_and_resumes(tmp_path: Path) -> None:
    arguments = Namespace(quick=True, seed=0)
    run = Run(tmp_path, arguments, Console(quiet=True))
    results = carry_out("theory", EXPERIMENT, run, "tokenq reproduce theory --quick")
    assert all(check["holds"] for check in results["checks"])
    assert results["trained"][0]["bradley_terry"]["kl"] < 1e-8
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "All hold within 1e-10." in page
    assert "below 1e-08 on 1 of 1" in page
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert carry_out("theory", EXPERIMENT, run, "again") == results
    assert kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
