"""`tokenq reproduce decline`: the exact part against theory, adapters, a run on a tiny model."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_pairs import TEMPLATE
from tiny_training import save_model, tiny_llama, tiny_tokenizer

from tokenq.cli.main import main
from tokenq.data.debian import Archive, Description
from tokenq.data.film_snippets import SnippetTable
from tokenq.errors import UserError
from tokenq.mdp import TokenMDP
from tokenq.mdp.arrays import log_softmax
from tokenq.models.logps import token_logps
from tokenq.reproduce import decline as experiment
from tokenq.reproduce.adapter_training import adapter_trained
from tokenq.reproduce.beam_decoding import debian, policies
from tokenq.reproduce.beam_decoding.material import Example
from tokenq.reproduce.beam_decoding.policies import Workshop
from tokenq.reproduce.experiment import Run
from tokenq.reproduce.likelihood_decline import runs
from tokenq.reproduce.likelihood_decline.exact import Problem, followed, policy_of
from tokenq.reproduce.likelihood_decline.runs import Keeper, Runs, Which, merge
from tokenq.reproduce.likelihood_decline.settings import (
    ARMS,
    CHOSEN,
    NONE,
    OTHER,
    QUICK,
    REJECTED,
    DeclineSettings,
)
from tokenq.reproduce.likelihood_decline.tasks import FilmPairs, Pairs
from tokenq.reproduce.likelihood_decline.work import Worker, chosen_runs, every_run
from tokenq.reproduce.localisation.material import TrainingPair
from tokenq.reproduce.objective_arms import Arm
from tokenq.reproduce.tabular import divergence

PROMPT = [{"role": "user", "content": "Say it."}]
PAIRS = Pairs(
    [TrainingPair(PROMPT, f"good {n}", f"bad film {n}") for n in range(8)],
    [Example(PROMPT, f"fine plot {n}") for n in range(8)],
    [TrainingPair(PROMPT, f"nice {n}", f"poor film {n}") for n in range(8)],
)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = save_model(tmp_path / "tiny", tiny_llama(layers=3))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trained runs are kept in the test's own folder."""

    def folder(*parts: str) -> Path:
        path = tmp_path / "kept" / parts[-1]
        path.mkdir(parents=True, exist_ok=True)
        return path

    monkeypatch.setattr(runs, "cache_dir", folder)
    monkeypatch.setattr(policies, "cache_dir", folder)
    return tmp_path / "kept"


# ---- The exact part ----


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_tuning_without_error(seed: int) -> None:
    problem = Problem.random(seed)
    tree = problem.mdp.tree
    law = np.random.default_rng(seed).dirichlet(np.ones(tree.responses))[None]
    found = np.exp(tree.totals(policy_of(problem.mdp, law)))
    np.testing.assert_allclose(found, law, rtol=1e-9)
    # Laws of the two answers of a pair: both are laws, the chosen one earns more.
    laws = problem.chosen_law, problem.rejected_law
    np.testing.assert_allclose([own.sum() for own in laws], 1.0)
    returns = problem.mdp.returns
    assert (laws[0] * returns).sum() > (laws[1] * returns).sum()


def test_the_laws_of_pairs_are_those_of_drawn_pairs() -> None:
    problem = Problem.random(3)
    rng = np.random.default_rng(0)
    base = np.exp(problem.mdp.tree.totals(problem.mdp.ref_logps))[0]
    first, second = (rng.choice(len(base), size=400_000, p=base) for _ in range(2))
    first, second = first[first != second], second[first != second]
    wins = rng.random(len(first)) < problem.preferences[0, first, second]
    counts = np.bincount(np.where(wins, first, second), minlength=len(base))
    np.testing.assert_allclose(counts / counts.sum(), problem.chosen_law[0], atol=3e-3)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_what_is_exact_is_exact(arm: str, beta: float) -> None:
    found = followed(1, arm, beta, 25)
    assert len(found["chosen"]) > 20
    assert found["identity_error"] < 1e-12
    assert found["room_error"] < 1e-12
    assert found["falls_as_told"]
    assert max(found["chosen"]) <= found["room"] + 1e-12
    assert max(found["expected"]) <= 1e-12
    assert found["margin"][0] == pytest.approx(0.0, abs=1e-12)
    assert found["margin"][-1] > 0.1
    if arm == CHOSEN:
        np.testing.assert_allclose(found["chosen"], found["minus_beta_kl"], atol=1e-12)
        assert found["room"] == pytest.approx(0.0, abs=1e-12)
    if arm == REJECTED:
        np.testing.assert_allclose(found["rejected"], found["minus_beta_kl"], atol=1e-12)


def test_chosen_rises_without_tuning_where_beta_is_large() -> None:
    # The reference is the base policy, of which the chosen answers are the better half.
    small, large = (followed(0, NONE, beta, 60) for beta in (0.1, 1.0))
    assert small["chosen"][-1] < -0.1 < 0 < large["chosen"][-1]
    # The descent has nearly arrived at the least loss, which is known.
    assert large["chosen"][-1] == pytest.approx(large["end"], abs=0.01)
    assert large["room"] > large["chosen"][-1]


def test_a_wrong_reference_breaks_the_identity() -> None:
    """The check can fail: under another law than the reference's the two sides differ."""
    problem = Problem.random(2)
    tree, start = problem.mdp.tree, problem.mdp.ref_logps
    policy = log_softmax(start + np.random.default_rng(0).standard_normal(start.shape))
    law = np.exp(tree.totals(problem.other))[0]
    implicit = (tree.totals(policy) - tree.totals(start))[0]
    right = np.exp(tree.totals(start))[0]
    kl = divergence(TokenMDP(tree, problem.mdp.reward, start), start, policy)
    assert right @ implicit == pytest.approx(-kl, abs=1e-12)
    assert abs(law @ implicit + kl) > 1e-3


# ---- Runs and their adapters ----


def test_a_merged_adapter_is_the_policy_that_was_trained(tiny: Path) -> None:
    shop = Workshop(str(tiny), 1)
    assert shop.untrained
    encoded = [shop.encoder(pair.prompt, pair.chosen) for pair in PAIRS.trained]
    texts = [e.prompt_ids for e in encoded], [e.response_ids for e in encoded]
    keeper = Keeper([0, 1, 2])
    arm = Arm("dpo", "dpo", {"beta": 0.1})
    rows = shop.encoder.rows(PAIRS.trained)
    with (
        adapter_trained(
            shop.model, shop.adapted, shop.tokenizer, rows, arm, QUICK.dpo, 0, callbacks=[keeper]
        ) as policy,
        torch.no_grad(),
    ):
        wanted = torch.cat(token_logps(policy, *texts))
    assert sorted(keeper.found) == [0, 1, 2, 4]
    with torch.no_grad():
        start = torch.cat(token_logps(shop.model, *texts))
        merge(shop.model, keeper.found[0])
        assert torch.equal(torch.cat(token_logps(shop.model, *texts)), start)
        merge(shop.model, keeper.found[4])
        found = torch.cat(token_logps(shop.model, *texts))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, start, atol=1e-4)


def test_runs_are_trained_once_each_from_its_own_start(
    tiny: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(str(tiny), 1)
    made = Runs("film", QUICK, shop)
    starts = {}
    for arm in ARMS:
        which = Which("film", arm, 0)
        assert not made.is_trained(which)
        assert list(made.checkpoints(which, PAIRS)) == [0, 1, 3, 4]
        assert made.is_trained(which)
        made.put(which, PAIRS)
        starts[arm] = shop.weights()
    assert all(torch.equal(starts[NONE][n], shop.untrained[n]) for n in shop.untrained)
    for first, second in ((CHOSEN, NONE), (CHOSEN, OTHER), (CHOSEN, REJECTED), (OTHER, NONE)):
        assert any(not torch.equal(starts[first][n], starts[second][n]) for n in shop.untrained)
    # Nothing is trained again, also not by another process.
    monkeypatch.setattr(runs, "adapter_trained", None)
    again = Runs("film", QUICK, shop)
    again.put(Which("film", CHOSEN, 0), PAIRS)
    assert all(torch.equal(shop.weights()[n], starts[CHOSEN][n]) for n in starts[CHOSEN])
    with pytest.raises(TypeError):
        again.train(Which("film", CHOSEN, 1), PAIRS)


def test_what_a_start_is_tuned_on() -> None:
    texts = {arm: [each.text for each in PAIRS.tuning(arm)] for arm in ARMS}
    assert texts[CHOSEN] == [f"good {n}" for n in range(8)]
    assert texts[REJECTED] == [f"bad film {n}" for n in range(8)]
    assert texts[OTHER] == [f"fine plot {n}" for n in range(8)]
    assert texts[NONE] == []


def test_settings_of_reading_do_not_ask_for_training_again() -> None:
    usual = DeclineSettings()
    other = replace(usual, responses=7, read=(2,))
    assert other.training("film") == usual.training("film")
    assert other.reading("film") != usual.reading("film")
    assert replace(usual, pairs=7).training("film") != usual.training("film")


def test_film_texts_are_in_one_use_each(film_snippets: SnippetTable) -> None:
    found = FilmPairs(DeclineSettings(), None)(0)  # type: ignore[arg-type]
    pairs = [side for pair in found.trained for side in (pair.chosen, pair.rejected)]
    held_out = [side for pair in found.held_out for side in (pair.chosen, pair.rejected)]
    other = [each.text for each in found.other]
    assert (len(pairs), len(other)) == (400, 200)
    every = [*pairs, *held_out, *other]
    assert len(set(every)) == len(every)
    with pytest.raises(UserError, match="5000 film pairs and as many others"):
        FilmPairs(DeclineSettings(pairs=5000), None)(0)  # type: ignore[arg-type]


# ---- The command ----


def test_runs_and_their_names() -> None:
    every = every_run(["film", "debian"], 3)
    assert len({which.key for which in every}) == 24
    # A seed is finished before the next.
    assert [which.seed for which in every] == sorted(which.seed for which in every)
    (found,) = chosen_runs(every, ["film/no-sft/2"])
    assert found == Which("film", NONE, 2)
    with pytest.raises(UserError, match="--only: 'film/sft/0' is unknown"):
        chosen_runs(every, ["film/sft/0"])


def described(count: int) -> list[Description]:
    kinds = ["parser", "viewer", "editor", "player", "server", "indexer", "monitor"]
    return [
        Description(
            f"pkg{n}",
            f"src{n}",
            "utils",
            f"{kinds[n % 7]} of number{n} files",
            f"This is a {kinds[n % 7]} that reads all of the number{n} files you have here.",
        )
        for n in range(count)
    ]


def test_a_whole_run(
    tiny: Path,
    tmp_path: Path,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    film_snippets: SnippetTable,
) -> None:
    monkeypatch.setattr(debian, "read", lambda: Archive({}, tuple(described(80))))
    monkeypatch.setattr(experiment.debian, "read", lambda: None)
    samples = replace(
        QUICK.samples, dtype="float32", debian=replace(QUICK.samples.debian, prompt_tokens=200)
    )
    monkeypatch.setattr(experiment, "QUICK", replace(QUICK, samples=samples))
    out = tmp_path / "out"
    arguments = ["reproduce", "decline", "--quick", "--model", str(tiny), "--out", str(out)]
    assert main([*arguments, "--join"]) == 2
    assert main([*arguments, "--train"]) == 0
    assert not (out / "runs").exists()
    assert main([*arguments, "--only", "film/no-sft/0"]) == 0
    assert "film/no-sft/0" in (out / "README.md").read_text()
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert set(results["tasks"]) == {"film", "debian"}
    for task in results["tasks"].values():
        assert list(task["arms"]) == list(ARMS)
        for arm, own in task["arms"].items():
            assert own["seeds"] == [0, 1]
            assert own["steps"] == ([1, 3, 4] if arm in (CHOSEN, NONE) else [3, 4])
            end = own["curves"]["chosen"][-1]
            assert len(end["by_seed"]) == 2
            whole = sum(part["answer"]["mean"] for part in own["parts"].values())
            assert whole == pytest.approx(end["mean"], abs=1e-5)
    assert results["identity"]["checkpoints"] == 2 * 2 * (3 + 3 + 2 + 2)
    assert results["exact"]["identity_error"] < 1e-12
    page = (out / "README.md").read_text()
    assert "## Film reviews" in page
    assert "## Exact, on token MDPs" in page
    assert "nan" not in page
    # Everything is there: nothing is trained or read again, and joining gives the same.
    monkeypatch.setattr(runs, "adapter_trained", None)
    monkeypatch.setattr("tokenq.reproduce.likelihood_decline.work.Prober", None)
    assert main([*arguments, "--join"]) == 0
    assert json.loads((out / "results.json").read_text())["results"] == results


def test_readings_are_of_the_policy_and_its_own_reference(
    tiny: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "out", Namespace(), Console())
    worker = Worker(run, replace(QUICK, model=str(tiny)))
    monkeypatch.setattr(Worker, "pairs", lambda self, which: PAIRS)
    which = Which("film", CHOSEN, 0)
    history = worker.history(which)
    assert history.setup is not None
    steps = [reading.step for reading in history.readings]
    assert steps == [1, 3, 4]
    own = worker.runs["film"]
    prompts = [pair.prompt for pair in history.setup.probe.pairs]
    chosen = [pair.chosen for pair in history.setup.probe.pairs]
    with torch.no_grad():
        own.put(which, PAIRS)
        reference = token_logps(worker.workshop.model, prompts, chosen)
        own.put(which, PAIRS, own.checkpoints(which, PAIRS)[4])
        policy = token_logps(worker.workshop.model, prompts, chosen)
    wanted = [float((a - b).sum()) for a, b in zip(policy, reference, strict=True)]
    baseline, last = history.setup.baseline, history.readings[-1]
    found = (last.pairs.logps - baseline.ref_logps)[0].sum(0)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert last.samples is not None
    assert np.isnan(last.samples.log_ratio).all()
    assert history.readings[0].samples is None
