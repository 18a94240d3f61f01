"""What stops a run: numbers that are not finite, folders that cannot be written, full disks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_training import tiny_llama, tiny_tokenizer, tokenised

from tokenq.errors import UserError
from tokenq.training import PreferenceConfig, PreferenceTrainer
from tokenq.training.preflight import check_disk, check_writable, checkpoint_bytes, needed_bytes


def trainer(
    folder: Path, peft_config: LoraConfig | None = None, **changes: Any
) -> PreferenceTrainer:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "reference_cache_dir": str(folder / "cache"),
        **changes,
    }
    return PreferenceTrainer(
        tiny_llama(),
        args=PreferenceConfig(output_dir=str(folder), **settings),
        train_dataset=tokenised(12),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def finding(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "nan_batch.json").read_text())
    return found


def test_a_planted_nan_weight_stops_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with torch.no_grad():
        run.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"step 1: .*is not finite.*nan_batch\.json"):
        run.train()
    found = finding(tmp_path)
    assert found["step"] == 1
    assert "logps of chosen" in found["tensors"]
    assert "loss sigmoid" in found["tensors"]
    assert not any("ref_logps" in name for name in found["tensors"])


def test_only_the_guilty_micro_batch_is_named(tmp_path: Path) -> None:
    rows = tokenised(12)
    token = 351  # in the model's vocabulary, never in the rows: the tokenizer has 350
    odd = [*rows[5]["chosen_ids"][:-1], token, 1]
    rows = rows.map(lambda row, i: {"chosen_ids": odd} if i == 5 else row, with_indices=True)
    run = PreferenceTrainer(
        tiny_llama(),
        args=PreferenceConfig(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            token_budget=1,
            train_sampling_strategy="sequential",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            reference_cache_dir=str(tmp_path / "cache"),
        ),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    with torch.no_grad():
        run.model.model.embed_tokens.weight[token] = float("inf")
    with pytest.raises(UserError, match="step 2"):
        run.train()
    assert finding(tmp_path)["rows"] == [5]


def test_a_gradient_that_overflows_names_its_parameters(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    weight = run.model.model.layers[1].mlp.down_proj.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(UserError, match=r"gradient of model\.layers\.1\.mlp\.down_proj\.weight"):
        run.train()
    found = finding(tmp_path)
    assert len(found["rows"]) == 4
    assert found["tensors"] == ["gradient of model.layers.1.mlp.down_proj.weight"]
    for parameter, old in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_learning_rate_that_explodes_stops_the_run(tmp_path: Path, max_grad_norm: float) -> None:
    run = trainer(tmp_path, learning_rate=1e38, max_grad_norm=max_grad_norm, max_steps=8)
    with pytest.raises(UserError, match="lower learning_rate"):
        run.train()
    assert finding(tmp_path)["step"] >= 2


def test_the_gradient_norm_is_clipped_as_torch_clips_it(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.create_optimizer()
    for parameter in run.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in run.model.parameters()]
    for copy, parameter in zip(copies, run.model.parameters(), strict=True):
        copy.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(copies, 1.0)
    assert run._clip_grad_norm(run.model) == pytest.approx(expected.item(), rel=1e-6)
    for copy, parameter in zip(copies, run.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad)


def test_a_file_in_place_of_the_output_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"output_dir: .* cannot be written"):
        check_writable(blocked / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_output_folder(tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(folder)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_estimate_is_the_size_of_a_checkpoint(tmp_path: Path, lora: bool) -> None:
    peft_config = LoraConfig(r=16, target_modules="all-linear") if lora else None
    run = trainer(tmp_path, peft_config, save_strategy="steps", save_steps=4)
    run.train()
    names = ("*model.safetensors", "optimizer.pt")
    real = sum(
        path.stat().st_size for name in names for path in tmp_path.glob(f"checkpoint-4/{name}")
    )
    estimate = checkpoint_bytes(run.model, run.args.optim.value, save_only_model=False)
    assert estimate <= real < 1.25 * estimate + 60_000


def test_a_disk_that_cannot_hold_the_checkpoints_is_reported(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    each = checkpoint_bytes(run.model, "adamw_torch_fused", save_only_model=False)
    saves = 2 * free // each
    with pytest.raises(UserError, match="free, but the checkpoints will take"):
        check_disk(run.model, run.args, saves)
    run.args.save_total_limit = 2
    check_disk(run.model, run.args, saves)
    assert needed_bytes(run.model, run.args, saves) < 4 * each
