"""`tokenq train`: one flat configuration, refusals before any model, what a run leaves."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_training import pairs, save_model, tiny_llama, tiny_tokenizer, tokenised, write_jsonl
from transformers import AutoModelForCausalLM

from tokenq.cli.main import main
from tokenq.errors import UserError
from tokenq.objectives import OBJECTIVES
from tokenq.training import PreferenceConfig
from tokenq.training.arguments import ARGUMENT_CLASSES, GROUPS, parse
from tokenq.training.hyperparameters import documented, hyperparameters
from tokenq.training.record import settings_of

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    save_model(tmp_path / "base", tiny_llama())
    write_jsonl(tmp_path / "train.jsonl", pairs(10))
    return {
        "model_name_or_path": str(tmp_path / "base"),
        "dataset_name": str(tmp_path / "train.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def train(folder: Path, settings: dict[str, Any], *flags: str) -> int:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return main(["train", "--config", str(path), *flags])


def test_a_run_leaves_model_report_record_and_card(
    tmp_path: Path, base: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, base, "--beta", "0.3", "--use_peft") == 0
    out = tmp_path / "out"
    shown = capsys.readouterr().out
    assert "kept                           10" in shown
    assert "saved in" in shown
    assert json.loads((out / "preparation.json").read_text())["train"]["kept"] == 10
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["beta"] == 0.3
    assert "--beta 0.3" in record["command"]
    assert "tokenq train --config" in (out / "README.md").read_text()
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads((out / "train_results.json").read_text())["train_loss"] > 0
    assert not [p.name for p in out.iterdir() if p.name.endswith(".part")]


def test_started_again_it_goes_on_and_another_configuration_is_refused(
    tmp_path: Path, base: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, base) == 0
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert train(tmp_path, base) == 0
    again = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [line["loss"] for line in again if "loss" in line] == [
        line["loss"] for line in log if "loss" in line
    ]
    # With more processes the global batches would be others, and rows repeated or left out.
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    record["settings"]["processes"] += 1
    path.write_text(json.dumps(record))
    assert train(tmp_path, base) == 2
    assert "its run has processes 2, now it is 1" in capsys.readouterr().err
    record["settings"]["processes"] -= 1
    path.write_text(json.dumps(record))
    assert train(tmp_path, base, "--beta", "0.2") == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert "its run has beta unset, now it is 0.2" in refusal
    assert "--overwrite_output_dir" in refusal
    write_jsonl(tmp_path / "train.jsonl", pairs(10, seed=4))
    assert train(tmp_path, base) == 2
    assert "other rows" in capsys.readouterr().err
    assert train(tmp_path, base, "--overwrite_output_dir", "--beta", "0.2") == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["beta"] == 0.2


def test_a_refused_run_does_not_hold_its_folder(
    tmp_path: Path, base: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, {**base, "sync_ref_model": True}, "--reference", "uniform") == 2
    assert "sync_ref_model: moves the weights of one model" in capsys.readouterr().err
    assert train(tmp_path, base) == 0


def test_an_explicit_checkpoint_may_go_on_with_other_settings(
    tmp_path: Path, base: dict[str, Any]
) -> None:
    assert train(tmp_path, base) == 0
    checkpoint = tmp_path / "out" / "checkpoint-1"
    other = {**base, "output_dir": str(tmp_path / "other"), "max_steps": 3}
    assert train(tmp_path, other, "--resume_from_checkpoint", str(checkpoint)) == 0
    state = json.loads((tmp_path / "other" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert [line["step"] for line in state["log_history"] if "loss" in line] == [1, 2, 3]


def test_evaluation_and_rejects(tmp_path: Path, base: dict[str, Any]) -> None:
    rows = [*pairs(6), {"prompt": "no answers", "chosen": "x"}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", pairs(3, seed=2))
    settings = {
        **base,
        "eval_dataset_name": str(tmp_path / "eval.jsonl"),
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    assert train(tmp_path, settings) == 2
    assert train(tmp_path, settings, "--skip-bad-rows") == 0
    rejects = (tmp_path / "out" / "rejects-train.jsonl").read_text().splitlines()
    assert len(rejects) == 1
    assert "rejected" in rejects[0]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert sum("eval_rewards/margins" in line for line in state["log_history"]) == 2


def test_a_streamed_file_is_trained_on_with_a_live_reference(
    tmp_path: Path, base: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    streamed = {**base, "dataset_streaming": True}
    assert train(tmp_path, streamed) == 2
    assert "precompute_ref_log_probs to false" in capsys.readouterr().err
    assert train(tmp_path, streamed, "--precompute_ref_log_probs", "false") == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_a_named_reference_is_used(tmp_path: Path, base: dict[str, Any]) -> None:
    save_model(tmp_path / "reference", tiny_llama(seed=5))
    assert train(tmp_path, base, "--reference", str(tmp_path / "reference")) == 0
    identity = json.loads((tmp_path / "out" / "reference.json").read_text())
    assert identity["name"] == str(tmp_path / "reference")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    first = state["log_history"][0]
    assert first["rewards/margins"] != pytest.approx(0, abs=1e-3)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"learning_rte": 1}, [], "unknown argument 'learning_rte'; did you mean learning_rate?"),
        ({}, ["--betta", "1"], "unknown argument '--betta'; did you mean beta?"),
        ({"beta": "strong"}, [], "argument --beta: invalid float value: 'strong'"),
        ({"beta": 0}, [], "beta must be > 0"),
        ({"loss_type": "simoid"}, [], "did you mean sigmoid?"),
        ({"model_name_or_path": None}, [], "model_name_or_path: is required"),
        ({"dataset_name": None}, [], "dataset_name: is required"),
        ({"dataset_name": "/no/such.jsonl"}, [], "/no/such.jsonl"),
        ({"model_name_or_path": "/no/such/model"}, [], "/no/such/model"),
        ({"eval_strategy": "steps"}, [], "set eval_dataset_name"),
        ({"eval_strategy": "sometimes"}, [], "invalid choice: 'sometimes'"),
        ({"max_length": 1}, [], "max_length is 1"),
        ({"output_dir": "/dev/null/out"}, [], "output_dir: /dev/null/out cannot be written"),
        ({}, ["--resume_from_checkpoint", "/no/checkpoint"], "/no/checkpoint is no folder"),
        ({"dataset_streaming": True, "max_steps": -1}, [], "needs max_steps"),
        ({"objective_args": {"tau": 1}}, [], "objective_args: 'tau' is no hyper-parameter"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path,
    base: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    flags: list[str],
    message: str,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded before the refusal")

    monkeypatch.setattr("tokenq.training.policy.load_policy", refuse)
    assert train(tmp_path, {**base, **changes}, *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_broken_yaml_file_is_refused(tmp_path: Path) -> None:
    for text in ("a: [1", "- a\n- b\n"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=r"--config: .*c\.yaml"):
            parse(["--config", str(tmp_path / "c.yaml")])
    with pytest.raises(UserError, match="cannot be read"):
        parse(["--config", str(tmp_path / "none.yaml")])


def test_values_of_the_file_are_typed_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    # Without a dot YAML reads 5e-7 as text.
    path.write_text(
        "learning_rate: 5e-7\nloss_type: [sigmoid, sft]\nloss_weights: [1, 0.5]\nuse_peft: true\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\nmax_steps: -1\nmax_length: 0\nrun_name: null\n"
        f"output_dir: {tmp_path}\nuse_cpu: true\n"
    )
    model, _, config, _ = parse(["--config", str(path), "--loss_weights", "1", "0.25"])
    assert config.learning_rate == 5e-7
    assert config.loss_type == ["sigmoid", "sft"]
    assert config.loss_weights == [1.0, 0.25]
    assert config.lr_scheduler_kwargs == {"num_cycles": 2}
    assert config.max_steps == -1
    assert config.max_length is None
    assert model.use_peft is True


def test_settings_do_not_depend_on_when_they_are_read(tmp_path: Path) -> None:
    one, two = (PreferenceConfig(output_dir=str(tmp_path), use_cpu=True) for _ in range(2))
    assert settings_of(one) == settings_of(two)


def test_help_is_short_and_complete_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["train", "--help-all"]) == 0
    long = capsys.readouterr().out
    for name in ("beta", "loss_type", "token_budget", "model_name_or_path", "reference"):
        assert f"--{name} " in short
    assert "--lr_scheduler_kwargs" in long
    assert "--lr_scheduler_kwargs" not in short
    assert max(map(len, short.splitlines())) <= 100
    own = {f for cls in ARGUMENT_CLASSES for f in cls.__annotations__ if not f.startswith("_")}
    shown = {name for names in GROUPS.values() for name in names}
    # What is ours is shown, but for three that only repair transformers' defaults.
    assert own - shown == {
        "logging_nan_inf_filter", "remove_unused_columns", "ddp_find_unused_parameters",
        "model_init_kwargs",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_example_configurations_are_accepted(path: Path, tmp_path: Path) -> None:
    model, data, config, _ = parse(
        ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu"]
    )
    assert model.model_name_or_path
    assert data.dataset_name
    assert config.loss_type


def test_the_example_configurations_are_there() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} >= {"dpo.yaml", "sft.yaml"}
    assert tiny_tokenizer().eos_token_id == 1


def test_a_file_of_token_ids_with_rewards_is_trained_on(
    tmp_path: Path, base: dict[str, Any]
) -> None:
    rows = tokenised(12).map(
        lambda row: {
            f"{side}_rewards": [0.5] * len(row[f"{side}_ids"]) for side in ("chosen", "rejected")
        }
    )
    rows.to_json(str(tmp_path / "ids.jsonl"))
    settings = {**base, "dataset_name": str(tmp_path / "ids.jsonl"), "objective": "sepo"}
    assert train(tmp_path, settings, "--chosen_ratio", "0.5") == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["loss_type"] == ["sepo"]
    assert record["settings"]["objective_args"] == {"chosen_ratio": 0.5}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "kto", "--cpo_alpha", "1"], "'cpo_alpha' is no hyper-parameter of kto"),
        (["--objective", "dpop", "--dpop_lambda", "-1"], "loss_type dpop: dpop_lambda must be"),
        (["--objective", "dmpo", "--segments", "none"], "loss_type dmpo needs segments"),
        (["--objective", "tgdpo"], "accepted: rows with .*chosen_rewards.*, or --oracle"),
        (["--objective", "simpoo"], "did you mean simpo"),
    ],
)
def test_what_an_objective_lacks_is_said_before_a_model_is_loaded(
    flags: list[str],
    message: str,
    tmp_path: Path,
    base: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tokenq.training.policy.load_policy", loaded)
    assert train(tmp_path, base, *flags) == 2
    assert re.search(message, capsys.readouterr().err)


def test_every_hyper_parameter_is_an_option_of_one_type() -> None:
    options = hyperparameters()
    taken = {field.name for class_ in ARGUMENT_CLASSES for field in dataclasses.fields(class_)}
    assert not taken & set(options)
    for name, class_ in OBJECTIVES.items():
        documented_names = documented(class_)
        for field in dataclasses.fields(class_):
            assert documented_names[field.name], (name, field.name)
            option = options.get(field.name)
            default = field.default
            if option is None or default is None:
                continue
            assert isinstance(default, (option.kind, int)), (name, field.name)
            assert option.choices is None or default in option.choices, (name, field.name)
