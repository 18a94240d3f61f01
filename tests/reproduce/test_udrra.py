"""The experiment in its quick form, and what can be known of it beforehand."""

import argparse

import pytest
import torch
from rich.console import Console

from tokenq.mdp import targets
from tokenq.reproduce.bandit_descent import GRID, descend, tuned
from tokenq.reproduce.bandit_problems import COVERAGES, problem, stacked
from tokenq.reproduce.experiment import Results, Run, carry_out
from tokenq.reproduce.udrra import EXPERIMENT
from tokenq.reproduce.udrra_findings import find


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("udrra")
    arguments = argparse.Namespace(quick=True, seeds=2)
    run = Run(out, arguments, Console(quiet=True))
    carry_out("udrra", EXPERIMENT, run, "tokenq reproduce udrra --quick")
    page = (out / "README.md").read_text(encoding="utf-8")
    assert (out / "figure.png").stat().st_size > 10_000
    for section in ("speed", "limits", "temperature", "samples", "networks", "targets"):
        assert f"[start:{section}]" in page
    return EXPERIMENT.run(run)


def test_dpo_reaches_the_target_and_ipo_its_own(results: Results) -> None:
    dpo = find(results, "dpo", 1.0, "uniform", "sampled")
    ipo = find(results, "ipo", 1.0, "uniform", "sampled")
    assert dpo is not None
    assert ipo is not None
    assert dpo["kl"]["mean"] < 1e-6
    assert ipo["kl"]["mean"] > 1e-2
    assert ipo["to_own_law"] < 1e-6


def test_reward_differences_take_one_step_on_uniform_pairs(results: Results) -> None:
    """The Hessian is one number, (4 tau^2) / (K - 1) = 1 at tau 1 and K 5, and 1 is in the grid."""
    cell = find(results, "RDA", 1.0, "uniform", "sampled")
    assert cell is not None
    assert cell["step"] == 1
    assert cell["iterations"]["mean"] == 1


def test_deterministic_labels_overshoot(results: Results) -> None:
    cell = find(results, "dpo", 1.0, "uniform", "deterministic")
    assert cell is not None
    assert cell["reward_above_target"] > 0.05


def test_missing_coverage_has_no_pair_with_the_best_answer() -> None:
    for seed in range(5):
        bandit = problem(seed, 1.0, "missing", "sampled")
        best = int(bandit.reward.argmax())
        assert float(bandit.pairs[best].sum()) == 0
    assert set(COVERAGES) == {"uniform", "skewed", "missing"}


def test_a_step_that_is_too_long_is_seen_to_diverge() -> None:
    bandit = stacked([problem(0, 1.0, "uniform", "sampled")] * 2)
    steps = torch.tensor([1.0, 3.0], dtype=torch.float64)
    run = descend(targets.rda, bandit, steps, 200, bandit.target.log())
    assert run.diverged.tolist() == [False, True]
    assert run.reached[0, 0] == 1


def test_tuning_takes_the_step_that_arrives_first() -> None:
    bandit = stacked([problem(0, 1.0, "uniform", "sampled")])
    chosen = tuned(targets.rda, bandit, torch.tensor([0]), GRID, 50, bandit.target.log())
    assert chosen.tolist() == [1.0]
