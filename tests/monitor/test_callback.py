"""The monitor in runs of our trainer and of TRL's: it reads what it should and changes nothing."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_training import pairs, tiny_gpt2, tiny_llama, tiny_tokenizer, tokenised
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, TrainerCallback

from tokenq.errors import UserError
from tokenq.monitor import Monitor, MonitorFolder, ProbeOptions
from tokenq.training import PreferenceConfig, PreferenceTrainer

trl = pytest.importorskip("trl")

LORA = LoraConfig(
    task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear"
)
OPTIONS = ProbeOptions(held_out=4, trained=3, responses=4, samples=3, new_tokens=8)
CLOCK = ("runtime", "per_second")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))


def with_dropout() -> PreTrainedModel:
    """A GPT-2 whose residual and embedding dropout draw random numbers at every step."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=352, n_embd=32, n_layer=2, n_head=4, n_positions=256, pad_token_id=0,
        eos_token_id=1, bos_token_id=1, initializer_range=0.2, attn_pdrop=0.0, resid_pdrop=0.2,
        embd_pdrop=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 4,
        "logging_steps": 3, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "seed": 3,
    }  # fmt: skip
    return {**plain, **changes}


def ours(
    folder: Path,
    model: PreTrainedModel | None = None,
    peft_config: LoraConfig | None = None,
    held_out: bool = True,
    rows: int = 18,
    callbacks: list[TrainerCallback] | None = None,
    **changes: Any,
) -> PreferenceTrainer:
    return PreferenceTrainer(
        tiny_llama() if model is None else model,
        args=PreferenceConfig(**settings(folder, **{"monitor": False, **changes})),
        train_dataset=tokenised(rows),
        eval_dataset=tokenised(6, seed=1) if held_out else None,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def theirs(
    folder: Path,
    model: PreTrainedModel | None = None,
    peft_config: LoraConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **changes: Any,
) -> Any:
    precompute = changes.get("precompute_ref_log_probs", False)
    live = peft_config is None and not precompute
    return trl.DPOTrainer(
        tiny_llama() if model is None else model,
        tiny_llama() if live else None,
        args=trl.DPOConfig(
            **settings(
                folder, **{"bf16": False, "gradient_checkpointing": False, "beta": 0.2, **changes}
            )
        ),
        train_dataset=datasets.Dataset.from_list(pairs(18)),
        eval_dataset=datasets.Dataset.from_list(pairs(6, seed=1)),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def outcome(trainer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], torch.Tensor]:
    """Weights, what the trainer itself logged, and where its random numbers are."""
    trainer.train()
    lines = [
        {name: value for name, value in line.items() if not any(word in name for word in CLOCK)}
        for line in trainer.state.log_history
        if "likelihood/margin" not in line and "likelihood/train_margin" not in line
    ]
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    return weights, lines, torch.get_rng_state()


RUNS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ours": (ours, {}),
    "ours, dropout": (ours, {"model": with_dropout, "disable_dropout": False}),
    "ours, adapter": (ours, {"peft_config": LORA}),
    "theirs": (theirs, {}),
    "theirs, dropout, precomputed": (
        theirs,
        {"model": with_dropout, "disable_dropout": False, "precompute_ref_log_probs": True},
    ),
    "theirs, adapter": (theirs, {"peft_config": LORA}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_bit_by_bit_with_and_without(tmp_path: Path, name: str) -> None:
    make, options = RUNS[name]

    def trainer(folder: Path) -> Any:
        model = options.get("model")
        torch.manual_seed(0)
        return make(folder, **{**options, **({"model": model()} if model else {})})

    plain = outcome(trainer(tmp_path / "plain"))
    watched = trainer(tmp_path / "watched")
    Monitor(options=OPTIONS, steps=1).attach(watched)
    seen = outcome(watched)

    history = MonitorFolder.of(tmp_path / "watched").history()
    assert [reading.step for reading in history.readings] == [0, 1, 2, 3, 4]
    assert all(reading.samples is not None for reading in history.readings[1:])
    assert plain[1] == seen[1]
    assert torch.equal(plain[2], seen[2])
    for weight in plain[0]:
        assert torch.equal(plain[0][weight], seen[0][weight]), weight


def brute(model: Any, prompt: Any, answer: Any) -> float:
    """log pi of a whole answer, from the plain logits of one unpadded row."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    return sum(float(logps[len(prompt) - 1 + t, token]) for t, token in enumerate(answer))


@pytest.mark.parametrize("name", ["ours", "ours, adapter", "theirs", "theirs, adapter"])
def test_readings_are_those_of_the_models_at_both_ends(tmp_path: Path, name: str) -> None:
    make, options = RUNS[name]
    trainer = make(tmp_path / "run", **options)
    Monitor(options=OPTIONS, steps=2).attach(trainer)

    trainer.train()

    history = MonitorFolder.of(tmp_path / "run").history()
    setup, first, last = history.setup, history.readings[0], history.readings[-1]
    assert setup is not None
    assert (first.step, last.step) == (0, 4)
    assert [pair.source for pair in setup.probe.pairs] == ["held_out"] * 4 + ["train"] * 3
    assert setup.beta == (0.2 if make is theirs else 0.1)
    np.testing.assert_allclose(first.pairs.logps, setup.baseline.ref_logps, atol=1e-4)
    np.testing.assert_allclose(first.responses.divergence, 0, atol=1e-4)
    start, policy = tiny_llama().eval(), trainer.model.eval()
    for number, pair in enumerate(setup.probe.pairs):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            expected = brute(policy, pair.prompt, answer)
            assert last.pairs.logps[side, :, number].sum() == pytest.approx(expected, abs=1e-3)
            expected = brute(start, pair.prompt, answer)
            found = setup.baseline.ref_logps[side, :, number].sum()
            assert found == pytest.approx(expected, abs=1e-3)
    assert last.samples is not None
    trained = trainer.state.log_history[-2]["likelihood/train_margin"]
    chosen, rejected = (last.pairs.logps - setup.baseline.ref_logps).sum(1)[:, 4:]
    of_prompts: dict[tuple[int, ...], list[float]] = {}
    for pair, margin in zip(setup.probe.pairs[4:], chosen - rejected, strict=True):
        of_prompts.setdefault(tuple(pair.prompt), []).append(margin)
    expected = setup.beta * np.mean([np.mean(margins) for margins in of_prompts.values()])
    assert trained == pytest.approx(expected, rel=1e-5)


def test_probes_hold_rows_cut_as_trl_cuts_them(tmp_path: Path) -> None:
    trainer = theirs(tmp_path / "run", max_length=14)
    Monitor(options=OPTIONS, steps=4).attach(trainer)

    trainer.train()

    setup = MonitorFolder.of(tmp_path / "run").history().setup
    assert setup is not None
    sizes = [
        len(pair.prompt) + len(answer)
        for pair in setup.probe.pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    assert max(sizes) == 14


def test_trackers_get_the_metrics_and_the_trainers_averages_stay(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = theirs(tmp_path / "run", report_to="tensorboard")
    Monitor(options=OPTIONS, steps=2).attach(trainer)

    trainer.train()

    (events,) = {path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*")}
    board = accumulators.EventAccumulator(str(events))
    board.Reload()
    scalars = board.Scalars("train/likelihood/margin")
    assert [each.step for each in scalars] == [0, 2, 4]
    history = MonitorFolder.of(tmp_path / "run").history()
    lines = [line for line in trainer.state.log_history if "likelihood/margin" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert scalars[-1].value == pytest.approx(lines[-1]["likelihood/margin"], rel=1e-6)
    assert [line["step"] for line in history.logs] == [3, 4]  # the trainer's own lines only
    assert "rewards/chosen" in history.logs[0]


class Listener(TrainerCallback):
    """Keeps what the trainer logs."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.lines.append(dict(logs))


def test_as_a_plain_callback_it_needs_no_more_than_rows(tmp_path: Path) -> None:
    listener = Listener()
    held_out = datasets.Dataset.from_list(pairs(6, seed=1))
    monitor = Monitor(held_out=held_out, beta=0.2, options=OPTIONS, steps=3)
    trainer = theirs(tmp_path / "run", callbacks=[monitor, listener])

    trainer.train()

    history = MonitorFolder.of(tmp_path / "run").history()
    assert [reading.step for reading in history.readings] == [0, 3, 4]
    assert history.setup is not None
    assert history.setup.reference == "the policy after 0 steps"
    sources = {pair.source for pair in history.setup.probe.pairs}
    assert sources == {"held_out", "train"}
    heard = [line for line in listener.lines if "likelihood/chosen_reward" in line]
    assert len(heard) == 2
    assert all("likelihood/chosen_reward" not in line for line in history.logs)


def test_without_evaluation_rows_it_reads_training_pairs_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = ours(tmp_path / "run", held_out=False)
    Monitor(options=OPTIONS, steps=4).attach(trainer)

    with caplog.at_level(logging.INFO, "tokenq.monitor"):
        trainer.train()

    assert "no held-out pairs" in caplog.text
    setup = MonitorFolder.of(tmp_path / "run").history().setup
    assert setup is not None
    assert {pair.source for pair in setup.probe.pairs} == {"train"}


class Vandal(TrainerCallback):
    """Puts a folder where the readings are kept, at step 2."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "monitor" / "readings.jsonl"

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.file.unlink()
            self.file.mkdir()


def test_a_failing_monitor_ends_itself_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = outcome(ours(tmp_path / "plain"))
    trainer = ours(tmp_path / "run", callbacks=[Vandal(tmp_path / "run")])
    Monitor(options=OPTIONS, steps=1).attach(trainer)

    seen = outcome(trainer)

    said = [record.getMessage() for record in caplog.records if "monitor" in record.name]
    assert len(said) == 1
    assert "at step 3" in said[0]
    assert "IsADirectoryError" in said[0]
    for weight in plain[0]:
        assert torch.equal(plain[0][weight], seen[0][weight]), weight


def test_a_row_that_no_model_can_read_ends_it_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beyond = {"prompt_ids": [5], "chosen_ids": [400], "rejected_ids": [6]}
    trainer = ours(tmp_path / "run")
    Monitor(held_out=[beyond], options=OPTIONS, steps=1).attach(trainer)

    trainer.train()

    assert trainer.state.global_step == 4
    assert "off from here on" in caplog.text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"budget": 0.0}, "budget is 0.0; accepted: above 0"),
        ({"budget": 1.5}, "budget is 1.5; accepted"),
        ({"steps": 0}, "steps is 0; accepted: 1 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        Monitor(**options)


def test_rows_that_are_no_pairs_are_refused_at_the_start(tmp_path: Path) -> None:
    trainer = ours(tmp_path / "run")
    Monitor(held_out=[{"text": "x"}], options=OPTIONS, steps=1).attach(trainer)

    with pytest.raises(UserError, match="has the columns text; accepted: prompt_ids"):
        trainer.train()


def test_a_trainer_without_pairs_is_refused(tmp_path: Path) -> None:
    trainer = theirs(tmp_path / "run")
    trainer.train_dataset = trainer.eval_dataset = None

    with pytest.raises(UserError, match="DPOTrainer has no rows with prompt_ids"):
        Monitor().attach(trainer)


def test_a_run_that_is_too_short_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = ours(tmp_path / "run", monitor=True)

    with caplog.at_level(logging.INFO, "tokenq.monitor"):
        trainer.train()

    assert "too short to be read within 3% of its time" in caplog.text
    assert not (tmp_path / "run" / "monitor" / "setup.json").exists()


def test_with_time_enough_a_budget_buys_readings_on_the_way(tmp_path: Path) -> None:
    trainer = ours(tmp_path / "run", rows=64, max_steps=48, monitor=True, monitor_budget=1.0)

    trainer.train()

    readings = MonitorFolder.of(tmp_path / "run").history().readings
    assert readings[0].step == 0
    assert readings[-1].step == 48
    summary = json.loads((tmp_path / "run" / "monitor" / "summary.json").read_text())
    assert summary["readings"] == len(readings)
    assert summary["overhead"] == pytest.approx(
        summary["monitor_seconds"] / summary["training_seconds"]
    )


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "adapter"])
def test_a_resumed_run_has_the_readings_of_an_unbroken_one(
    tmp_path: Path, peft_config: LoraConfig | None
) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}

    def trainer(folder: Path) -> PreferenceTrainer:
        made = ours(folder, peft_config=peft_config, **changes)
        Monitor(options=OPTIONS, steps=1).attach(made)
        return made

    trainer(tmp_path / "whole").train()
    broken = trainer(tmp_path / "broken")
    broken.add_callback(StopAt(5))
    broken.train()
    trainer(tmp_path / "broken").train(str(tmp_path / "broken" / "checkpoint-2"))

    whole, resumed = (MonitorFolder.of(tmp_path / name).history() for name in ("whole", "broken"))
    assert [reading.step for reading in resumed.readings] == list(range(7))
    for one, other in zip(whole.readings, resumed.readings, strict=True):
        np.testing.assert_allclose(one.pairs.logps, other.pairs.logps, atol=1e-5)
        np.testing.assert_allclose(one.responses.log_ratio, other.responses.log_ratio, atol=1e-5)
    assert [line["step"] for line in whole.logs] == [line["step"] for line in resumed.logs]


class StopAt(TrainerCallback):
    """Ends training after a step, as an early stop does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_resumed_without_the_reference_it_stays_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    ours(tmp_path / "run", **changes).train()
    trainer = ours(tmp_path / "run", **changes)
    Monitor(options=OPTIONS, steps=1).attach(trainer)

    with caplog.at_level(logging.INFO, "tokenq.monitor"):
        trainer.train(str(tmp_path / "run" / "checkpoint-2"))

    assert "the policy before its first step" in caplog.text
    assert trainer.state.global_step == 4


def test_a_second_run_in_the_folder_replaces_the_first(tmp_path: Path) -> None:
    for steps in (4, 2):
        trainer = ours(tmp_path / "run", max_steps=steps)
        Monitor(options=OPTIONS, steps=1).attach(trainer)
        trainer.train()

    history = MonitorFolder.of(tmp_path / "run").history()
    assert [reading.step for reading in history.readings] == [0, 1, 2]


class Fails(TrainerCallback):
    """Ends the run with an error at step 2."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("power cut")


def test_what_a_crashed_run_has_read_is_there_and_the_folder_is_free(tmp_path: Path) -> None:
    trainer = ours(tmp_path / "run", callbacks=[Fails()])
    Monitor(options=OPTIONS, steps=1).attach(trainer)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()
    read = MonitorFolder.of(tmp_path / "run").history().readings
    again = ours(tmp_path / "run")
    Monitor(options=OPTIONS, steps=4).attach(again)

    again.train()

    assert [reading.step for reading in read] == [0, 1, 2]
    after = MonitorFolder.of(tmp_path / "run").history().readings
    assert [reading.step for reading in after] == [0, 4]


def test_it_writes_findings_summary_and_a_page(tmp_path: Path) -> None:
    trainer = ours(tmp_path / "run", tiny_gpt2(), max_steps=6)
    Monitor(options=OPTIONS, steps=1).attach(trainer)

    trainer.train()

    folder = tmp_path / "run" / "monitor"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 6
    assert {"mean", "low", "high"} <= set(summary["measures"]["likelihood/chosen_reward"])
    found = json.loads((folder / "findings.json").read_text())
    assert summary["findings"] == found
    assert (folder / "report.html").read_text().startswith("<!")
