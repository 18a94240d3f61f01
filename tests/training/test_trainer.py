"""Training end to end on tiny models: what is invariant, what moves, what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from tiny_training import (
    pairs,
    save_model,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
    tokenised,
    write_jsonl,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tokenq.data import load_rows
from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.logps import token_logps
from tokenq.training import PreferenceConfig, PreferenceTrainer

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))


def config(folder: Path, **changes: Any) -> PreferenceConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return PreferenceConfig(**{**settings, **changes})


def trained(
    folder: Path,
    model: PreTrainedModel | None = None,
    rows: Any = None,
    eval_rows: Any = None,
    peft_config: LoraConfig | None = None,
    ref_model: Any = None,
    **changes: Any,
) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        model if model is not None else tiny_llama(),
        ref_model,
        args=config(folder, **changes),
        train_dataset=tokenised(22) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def logged(trainer: PreferenceTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_dpo_starts_at_log_two_and_separates_the_pairs(
    tmp_path: Path, model: Any, peft_config: LoraConfig | None
) -> None:
    trainer = trained(tmp_path, model(), peft_config=peft_config, max_steps=8)
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert losses[-1] < 0.6 * losses[0]
    assert logged(trainer, "rewards/accuracies")[-1] == 1.0
    margins = logged(trainer, "rewards/margins")[-1]
    chosen, rejected = (
        logged(trainer, "rewards/chosen")[-1],
        logged(trainer, "rewards/rejected")[-1],
    )
    assert margins == pytest.approx(chosen - rejected, rel=1e-5)


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_sft_raises_the_likelihood_and_needs_no_reference(
    tmp_path: Path, peft_config: LoraConfig | None
) -> None:
    rows = load_rows(
        write_jsonl(
            tmp_path / "rows.jsonl",
            [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs(16)],
        )
    )
    trainer = trained(
        tmp_path / "out", rows=rows, loss_type=["sft"], peft_config=peft_config, max_steps=12
    )
    assert trainer.reference is None
    assert logged(trainer, "loss")[-1] < 0.9 * logged(trainer, "loss")[0]
    assert "rewards/chosen" not in trainer.state.log_history[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"token_budget": 1},
        {"token_budget": 60},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "token_budget": 50},
        {"precompute_ref_log_probs": False},
    ],
    ids=str,
)
def test_how_a_batch_is_cut_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    # 22 rows in batches of 4: the sixth step has two rows, the seventh starts the next epoch.
    common = {"max_steps": 7, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}
    whole = trained(tmp_path / "whole", **common)
    parts = trained(tmp_path / "parts", **common, **changes)
    for name in ("loss", "grad_norm", "entropy", "nll", "mean_token_accuracy", "num_tokens"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), abs=1e-5), name


def test_a_mixture_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    first = [
        logged(trained(tmp_path / str(kind), loss_type=kind, max_steps=1, **weights), "loss")[0]
        for kind, weights in [
            (["sigmoid"], {}),
            (["sft"], {}),
            (["sigmoid", "sft"], {"loss_weights": [0.5, 2.0]}),
        ]
    ]
    assert first[2] == pytest.approx(0.5 * first[0] + 2.0 * first[1], rel=1e-6)


def test_rows_are_seen_once_an_epoch_and_in_another_order_in_the_next(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(
        tiny_llama(),
        args=config(tmp_path, gradient_accumulation_steps=2),
        train_dataset=tokenised(22),
        processing_class=tiny_tokenizer(),
    )
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([row for batch in loader for row in batch.rows])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(22))
    assert epochs[0] != epochs[1]


def test_evaluation_equals_a_computation_by_hand(tmp_path: Path) -> None:
    rows = tokenised(7, seed=1)
    policy, reference = tiny_llama(seed=3), tiny_llama(seed=4)
    trainer = PreferenceTrainer(
        policy,
        reference,
        args=config(tmp_path, per_device_eval_batch_size=3, token_budget=60, beta=0.2),
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    metrics = trainer.evaluate()
    sums = {}
    for name in ("chosen", "rejected"):
        for who, model in (("policy", policy), ("reference", reference)):
            with torch.no_grad():
                logps = token_logps(model, rows["prompt_ids"][:], rows[f"{name}_ids"][:])
            sums[who, name] = torch.stack([row.sum() for row in logps])
    rewards = {n: 0.2 * (sums["policy", n] - sums["reference", n]) for n in ("chosen", "rejected")}
    margin = rewards["chosen"] - rewards["rejected"]
    expected = {
        "eval_loss": -torch.nn.functional.logsigmoid(margin).mean(),
        "eval_rewards/chosen": rewards["chosen"].mean(),
        "eval_rewards/margins": margin.mean(),
        "eval_rewards/accuracies": (margin > 0).float().mean(),
        "eval_logps/rejected": sums["policy", "rejected"].mean(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value.item(), abs=1e-4), name


def test_several_evaluation_sets_are_named(tmp_path: Path) -> None:
    sets = {"near": tokenised(3, seed=1), "far": tokenised(4, seed=2)}
    trainer = trained(tmp_path, eval_rows=sets, eval_strategy="steps", eval_steps=2, max_steps=2)
    last = trainer.state.log_history
    assert any("eval_near_rewards/margins" in line for line in last)
    assert any("eval_far_loss" in line for line in last)


def test_early_stopping_and_the_best_model(tmp_path: Path) -> None:
    trainer = trained(
        tmp_path,
        eval_rows=tokenised(6, seed=5),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        early_stopping_patience=2,
        max_steps=60,
        learning_rate=0.3,
    )
    losses = logged(trainer, "eval_loss")
    assert trainer.state.global_step < 60
    assert trainer.state.best_metric == min(losses)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.is_dir()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_a_full_checkpoint_loads_without_tokenq(tmp_path: Path) -> None:
    trainer = trained(tmp_path, save_strategy="steps", save_steps=2)
    trainer.save_model()
    prompts, responses = [[5, 6, 7]], [[8, 9, 1]]
    expected = token_logps(trainer.model, prompts, responses)[0]
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:].log_softmax(-1)
        plain = logits.gather(-1, torch.tensor([[8], [9], [1]])).squeeze(-1)
        torch.testing.assert_close(plain, expected, atol=1e-5, rtol=0)
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert not list(tmp_path.glob(".*.part"))


def test_an_adapter_checkpoint_loads_with_plain_peft(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", tiny_llama())
    trainer = PreferenceTrainer(
        base, args=config(tmp_path / "out"), train_dataset=tokenised(8), peft_config=LORA
    )
    trainer.train()
    trainer.save_model()
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    prompts, responses = [[5, 6, 7]], [[8, 9, 1]]
    torch.testing.assert_close(
        token_logps(loaded, prompts, responses)[0],
        token_logps(trainer.model, prompts, responses)[0],
        atol=1e-5,
        rtol=0,
    )
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_policy_with_a_frozen_adapter_can_be_saved_again(tmp_path: Path) -> None:
    policy = get_peft_model(tiny_llama(), LORA)
    policy.add_adapter("ref", LORA)
    trainer = PreferenceTrainer(
        policy,
        args=config(tmp_path / "out", max_steps=1),
        train_dataset=tokenised(4),
        processing_class=tiny_tokenizer(),
    )
    trainer.save_model()
    before = (tmp_path / "out/ref/adapter_model.safetensors").read_bytes()
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out/ref/adapter_model.safetensors").read_bytes() == before
    assert not list((tmp_path / "out").glob(".*.part"))


def test_the_card_tells_reference_data_and_command(tmp_path: Path) -> None:
    rows = load_rows(write_jsonl(tmp_path / "rows.jsonl", pairs(9)))
    base = save_model(tmp_path / "base", tiny_llama())
    trainer = PreferenceTrainer(
        base,
        args=config(tmp_path / "out", max_steps=1),
        train_dataset=rows,
        card_notes={"command": "`tokenq train --config c.yaml`"},
    )
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "out" / "README.md").read_text()
    identity = json.loads((tmp_path / "out" / "reference.json").read_text())
    assert identity["weight_hash"] == weight_hash(tiny_llama()) in card
    assert trainer.splits["train"].fingerprint in card
    assert "tokenq train --config c.yaml" in card
    assert "DPO(beta=0.1" in card
    assert "kept " in card
    assert "rewards/margins" in card


def test_a_relative_path_is_no_hub_name_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(Path("models/base"), tiny_llama())
    Path("data").mkdir()
    write_jsonl(Path("data/rows.jsonl"), pairs(4))
    trainer = PreferenceTrainer(
        "models/base", args=config(tmp_path / "out"), train_dataset="data/rows.jsonl"
    )
    metadata = trainer.model_card().split("---")[1]
    assert "models/base" not in metadata
    assert "rows.jsonl" not in metadata


def test_the_reference_stays_when_the_policy_moves(tmp_path: Path) -> None:
    before = weight_hash(tiny_llama())
    live = trained(tmp_path / "live", precompute_ref_log_probs=False)
    assert live.reference_identity.weight_hash == before != weight_hash(live.model)
    rows = tokenised(3, seed=9)
    prompts, responses = rows["prompt_ids"][:], rows["chosen_ids"][:]
    with torch.no_grad():
        original = token_logps(tiny_llama(), prompts, responses)
    for now, then in zip(live.reference.logps(prompts, responses), original, strict=True):
        torch.testing.assert_close(now, then, atol=1e-6, rtol=0)


def test_new_rows_cannot_be_scored_by_a_policy_that_has_moved(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    with pytest.raises(UserError, match="eval_dataset from the start"):
        trainer.evaluate(tokenised(3, seed=8))


def test_with_an_adapter_the_reference_can_score_new_rows(tmp_path: Path) -> None:
    trainer = trained(tmp_path, peft_config=LORA)
    assert trainer.evaluate(tokenised(3, seed=8))["eval_rewards/margins"] != 0


def test_an_adapter_that_came_with_the_policy_needs_a_named_reference(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "first", peft_config=LORA)
    policy = trainer.model
    assert isinstance(policy, PeftModel)
    with pytest.raises(UserError, match="ref_model"):
        trained(tmp_path / "second", policy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": ["sigmoyd"]}, "did you mean sigmoid"),
        ({"loss_weights": [1.0, 2.0]}, "2 weights for 1 objectives"),
        ({"beta": -1.0}, "beta must be > 0"),
        ({"objective_args": '{"tau": 1}'}, "no hyper-parameter"),
        ({"token_budget": 0}, "token_budget"),
        ({"early_stopping_patience": 2}, "eval_strategy"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
    ],
)
def test_bad_settings_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        # The model's name does not exist: nothing may try to load it before the refusal.
        PreferenceTrainer(
            "no/such-model", args=config(tmp_path, **changes), processing_class=tiny_tokenizer()
        )


def test_data_without_pairs_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    rows = load_rows(write_jsonl(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b"}] * 3))
    with pytest.raises(UserError, match="holds sft rows, but loss_type sigmoid learns from"):
        PreferenceTrainer(
            "no/such-model",
            args=config(tmp_path),
            train_dataset=rows,
            processing_class=tiny_tokenizer(),
        )


def test_rows_longer_than_the_model_are_refused_before_it_loads(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", tiny_gpt2())
    (base / "model.safetensors").write_bytes(b"not read")
    rows = tokenised(3).map(lambda row: {"chosen_ids": [5] * 300})
    with pytest.raises(UserError, match=r"tokens, but the model has 256 positions"):
        PreferenceTrainer(base, args=config(tmp_path / "out"), train_dataset=rows)


def test_trackers_of_transformers_get_the_metrics(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(tmp_path, report_to=["tensorboard"], max_steps=2)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = events.EventAccumulator(str(file.parent))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {"train/rewards/margins", "train/logps/chosen", "train/loss"} <= set(tags)


def test_an_early_stop_is_kept_by_its_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "eval_rows": tokenised(6, seed=5),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "early_stopping_patience": 2,
        "max_steps": 60,
        "learning_rate": 0.3,
    }
    first = trained(tmp_path, **options)
    stopped = first.state.global_step
    assert stopped < 60
    again = PreferenceTrainer(
        tiny_llama(),
        args=config(tmp_path, **{k: v for k, v in options.items() if k != "eval_rows"}),
        train_dataset=tokenised(22),
        eval_dataset=tokenised(6, seed=5),
        processing_class=tiny_tokenizer(),
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == stopped
