"""Loss and gradients equal TRL's on the same rows, fp32, for every objective that both have."""

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from tiny_training import pairs, tiny_gpt2, tiny_llama, tiny_tokenizer, write_jsonl

from tokenq.training import PreferenceConfig, PreferenceTrainer
from tokenq.training.batches import Collator
from tokenq.training.metrics import means, merge

trl = pytest.importorskip("trl")

COLUMNS = ("chosen_ids", "rejected_ids")
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)


def ours(folder: Path, rows: list[dict[str, str]], **options: Any) -> tuple[torch.Tensor, Any]:
    trainer = PreferenceTrainer(
        options.pop("model"),
        options.pop("ref_model"),
        args=PreferenceConfig(output_dir=str(folder), use_cpu=True, **options.pop("settings")),
        train_dataset=write_jsonl(folder.with_suffix(".jsonl"), rows),
        processing_class=tiny_tokenizer(),
        **options,
    )
    trainer.model.train()
    batch = Collator(COLUMNS)(list(trainer.splits["train"].dataset))
    return trainer.compute_loss(trainer.model, batch), trainer


def theirs(folder: Path, rows: list[dict[str, str]], **options: Any) -> tuple[torch.Tensor, Any]:
    settings = options.pop("settings")
    names = {"dpo": "sigmoid"}
    settings["loss_type"] = [names.get(name, name) for name in settings.get("loss_type", ["dpo"])]
    trainer = trl.DPOTrainer(
        options.pop("model"),
        options.pop("ref_model"),
        args=trl.DPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            report_to="none",
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        **options,
    )
    trainer.model.train()
    batch = trainer.data_collator(list(trainer.train_dataset))
    return trainer.compute_loss(trainer.model, batch), trainer


def gradients(loss: torch.Tensor, trainer: Any) -> dict[str, torch.Tensor]:
    loss.backward()
    return {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    scale = max(1.0, *(float(gradient.abs().max()) for gradient in theirs.values()))
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-6 * scale, name


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.1},
        {"beta": 0.5, "loss_type": ["dpo", "sft"], "loss_weights": [0.7, 0.4]},
        {"loss_type": ["sft"]},
    ],
    ids=["dpo", "mixture", "sft"],
)
def test_loss_and_all_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    rows = pairs(6)
    results = [
        side(
            tmp_path / side.__name__,
            rows,
            model=make(seed=1),
            ref_model=make(seed=2),
            settings=dict(settings),
        )
        for side in (ours, theirs)
    ]
    (our_loss, our_trainer), (their_loss, their_trainer) = results
    logged = means(merge([our_trainer.window.cells()]))
    for name, (value,) in their_trainer._metrics["train"].items():
        if name in logged:
            assert logged[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert {"entropy", "mean_token_accuracy", "logps/chosen", "logits/rejected"} <= logged.keys()
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-6, abs=1e-6)
    our_gradients, their_gradients = (gradients(*result) for result in results)
    assert our_gradients.keys() == their_gradients.keys()
    assert len(our_gradients) > 10
    assert_close(our_gradients, their_gradients)


def test_an_adapter_against_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    rows = pairs(6)
    their_loss, their_trainer = theirs(
        tmp_path / "theirs",
        rows,
        model=tiny_llama(seed=1),
        ref_model=None,
        peft_config=copy.deepcopy(LORA),
        settings={},
    )
    # The adapters start at random values: ours is given theirs.
    weights = {n: p for n, p in their_trainer.model.named_parameters() if "lora" in n}
    assert weights
    loss, trainer = ours_with_adapter(tmp_path / "ours", rows, weights)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    assert loss.item() != pytest.approx(0.6931472, abs=1e-3)
    our_gradients, their_gradients = gradients(loss, trainer), gradients(their_loss, their_trainer)
    assert our_gradients.keys() == their_gradients.keys()
    assert_close(our_gradients, their_gradients)


def ours_with_adapter(
    folder: Path, rows: list[dict[str, str]], weights: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, Any]:
    trainer = PreferenceTrainer(
        tiny_llama(seed=1),
        args=PreferenceConfig(output_dir=str(folder), use_cpu=True),
        train_dataset=write_jsonl(folder.with_suffix(".jsonl"), rows),
        processing_class=tiny_tokenizer(),
        peft_config=LORA,
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    batch = Collator(COLUMNS)(list(trainer.splits["train"].dataset))
    return trainer.compute_loss(trainer.model, batch), trainer
