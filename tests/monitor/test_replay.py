"""Checkpoints that nobody watched, read afterwards: in order, against the reference, resumable."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_training import pairs, save_model, tiny_llama, tiny_tokenizer
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.loading import load_policy
from tokenq.models.logps import token_logps
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.probing import ProbeOptions
from tokenq.monitor.readings import History
from tokenq.monitor.replay import Replayed, checkpoints_of, facts_of, replay
from tokenq.monitor.watched import PairRows

OPTIONS = ProbeOptions(held_out=3, trained=2, responses=3, samples=2, new_tokens=4)


def moved(model: PreTrainedModel, step: int) -> PreTrainedModel:
    """The model with its weights moved, as training moves them."""
    torch.manual_seed(step)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.002 * step)
    return model


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Checkpoints at the steps 2 and 10, whose names sort the other way, and remains of a third."""
    save_model(tmp_path / "base", tiny_llama())
    for step in (2, 10):
        save_model(tmp_path / "run" / f"checkpoint-{step}", moved(tiny_llama(), step))
    (tmp_path / "run" / "checkpoint-20").mkdir()
    return tmp_path / "run"


def opened(run_dir: Path, beta: float = 0.1, seed: int = 1) -> Replayed:
    reference = load_policy(run_dir.parent / "base", device="cpu")
    reference.requires_grad_(False)
    tokenizer = tiny_tokenizer()
    return Replayed(
        checkpoints_of(run_dir),
        reference,
        "base",
        tokenizer,
        PairRows.of(pairs(8, seed=seed), "held", tokenizer),
        PairRows.of(pairs(8, seed=2), "trained", tokenizer),
        beta,
    )


def done(
    run_dir: Path, root: Path, on_progress: Callable[[int], None] = lambda step: None
) -> History:
    with MonitorFolder(root) as folder:
        return replay(folder, opened(run_dir), OPTIONS, device="cpu", on_progress=on_progress)


def test_every_checkpoint_is_read_in_the_order_of_steps(run_dir: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    history = done(run_dir, tmp_path / "out", seen.append)
    assert seen == [0, 2, 10]
    assert [reading.step for reading in history.readings] == [0, 2, 10]
    assert history.setup is not None
    assert (history.setup.beta, history.setup.reference) == (0.1, "base")
    probe = history.setup.probe.pairs
    assert [pair.source for pair in probe] == ["held_out"] * 3 + ["train"] * 2
    start = history.readings[0]
    assert abs(start.pairs.logps - history.setup.baseline.ref_logps).max() < 1e-4
    for reading in history.readings[1:]:
        policy = load_policy(run_dir / f"checkpoint-{reading.step}", device="cpu")
        logps = token_logps(policy, [p.prompt for p in probe], [p.chosen for p in probe])
        expected = [float(each.detach().sum()) for each in logps]
        assert reading.pairs.logps[0].sum(0) == pytest.approx(expected, abs=1e-3)
        assert reading.samples is not None
        assert len(reading.samples.ids) == 2


def test_an_interrupted_replay_goes_on_where_it_stopped(run_dir: Path, tmp_path: Path) -> None:
    def stops(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    root = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        done(run_dir, root, stops)
    kept = (root / "readings.jsonl").read_text()
    assert [json.loads(line)["step"] for line in kept.splitlines()] == [0, 2]
    resumed, whole = done(run_dir, root), done(run_dir, tmp_path / "whole")
    assert (root / "readings.jsonl").read_text().startswith(kept)
    assert [reading.step for reading in resumed.readings] == [0, 2, 10]
    for ours, theirs in zip(resumed.readings, whole.readings, strict=True):
        assert ours.pairs.logps == pytest.approx(theirs.pairs.logps, abs=1e-5)
        assert ours.responses.divergence == pytest.approx(theirs.responses.divergence, abs=1e-5)
        assert ours.samples is not None
        assert theirs.samples is not None
        assert [list(x) for x in ours.samples.ids] == [list(x) for x in theirs.samples.ids]


def test_other_pairs_or_another_beta_are_refused(run_dir: Path, tmp_path: Path) -> None:
    done(run_dir, tmp_path / "out")
    for run, what in (
        (opened(run_dir, beta=0.2), r"other beta \(0.1, now 0.2\)"),
        (opened(run_dir, seed=5), "other pairs"),
    ):
        with MonitorFolder(tmp_path / "out") as folder, pytest.raises(UserError, match=what):
            replay(folder, run, OPTIONS, device="cpu")


def test_what_a_monitor_read_live_is_not_mixed_with_a_replay(run_dir: Path, tmp_path: Path) -> None:
    done(run_dir, tmp_path / "out")
    path = tmp_path / "out" / "setup.json"
    setup = json.loads(path.read_text())
    del setup["facts"]["replayed"]
    path.write_text(json.dumps(setup))
    with pytest.raises(UserError, match="while the run was trained; accepted: another --out"):
        done(run_dir, tmp_path / "out")


def test_adapters_are_read_over_their_base(run_dir: Path, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    base = load_policy(tmp_path / "base", device="cpu")
    policy = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    policy.save_pretrained(adapters / "checkpoint-3")
    assert facts_of(adapters, checkpoints_of(adapters)).reference == str(tmp_path / "base")
    history = done(adapters, tmp_path / "out")
    assert [reading.step for reading in history.readings] == [0, 3]
    start, end = (reading.responses.divergence.mean() for reading in history.readings)
    assert start < 1e-4 < end


def test_the_final_model_counts_where_its_step_is_known(run_dir: Path) -> None:
    save_model(run_dir, tiny_llama(1))
    assert [step for step, _ in checkpoints_of(run_dir)] == [2, 10]
    (run_dir / "trainer_state.json").write_text(json.dumps({"global_step": 12}))
    assert checkpoints_of(run_dir)[-1] == (12, run_dir)
    assert checkpoints_of(run_dir / "checkpoint-10") == [(10, run_dir / "checkpoint-10")]


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoints to measure; accepted"):
        checkpoints_of(tmp_path)


def test_a_run_of_ours_tells_how_it_was_trained(run_dir: Path) -> None:
    settings = {
        "beta": 0.3, "reference": None, "model_name_or_path": "base", "max_length": 64,
        "truncation_mode": "keep_end", "loss_type": ["dpo"],
    }  # fmt: skip
    (run_dir / "run.json").write_text(json.dumps({"settings": settings}))
    facts = facts_of(run_dir, checkpoints_of(run_dir))
    assert (facts.beta, facts.reference, facts.max_length) == (0.3, "base", 64)
    assert (facts.truncation_mode, facts.objectives) == ("keep_end", ["dpo"])
    settings["reference"] = ["a", "b"]
    (run_dir / "run.json").write_text(json.dumps({"settings": settings}))
    assert facts_of(run_dir, checkpoints_of(run_dir)).reference is None
