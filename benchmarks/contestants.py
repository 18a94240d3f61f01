"""How each contestant's trainer is set up: same model, rows, optimiser and precision."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback


@dataclass(frozen=True)
class Job:
    """What a contestant is asked to train.

    model:  folder of the policy
    rows:   JSON lines of pairs
    pairs:  pairs of one optimiser step
    steps:  optimiser steps
    folder: for whatever the trainer writes
    token_budget: most tokens of a packed micro-batch (tokenq only)
    """

    model: Path
    rows: Path
    pairs: int
    steps: int
    folder: Path
    token_budget: int


def _common(job: Job) -> dict[str, Any]:
    return {
        "output_dir": str(job.folder / "run"),
        "per_device_train_batch_size": job.pairs,
        "max_steps": job.steps,
        "learning_rate": 1e-6,
        "beta": 0.1,
        "max_length": 1024,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10,
    }


def _load(job: Job) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.chat_template = None
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    return model, tokenizer


def tokenq(job: Job, callback: TrainerCallback, **settings: Any) -> Trainer:
    """tokenq with a cached reference."""
    from tokenq.training import PreferenceConfig, PreferenceTrainer

    model, tokenizer = _load(job)
    config = PreferenceConfig(
        **_common(job),
        token_budget=job.token_budget,
        reference_cache_dir=str(job.folder / "reference"),
        train_sampling_strategy="sequential",
        monitor=False,
        **settings,
    )
    return PreferenceTrainer(
        model=model,
        args=config,
        train_dataset=str(job.rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def tokenq_compiled(job: Job, callback: TrainerCallback) -> Trainer:
    """tokenq, layers compiled."""
    return tokenq(job, callback, compile_layers=True)


def trl(job: Job, callback: TrainerCallback, precompute: bool = True) -> Trainer:
    """TRL's DPOTrainer with its precomputed reference, nothing recomputed in the backward pass."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = _load(job)
    rows = load_dataset("json", data_files=str(job.rows), split="train")
    config = DPOConfig(
        **_common(job),
        precompute_ref_log_probs=precompute,
        train_sampling_strategy="sequential",
    )
    reference = None if precompute else _load(job)[0]
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback],
    )


def trl_live(job: Job, callback: TrainerCallback) -> Trainer:
    """TRL's DPOTrainer with the reference beside the policy."""
    return trl(job, callback, precompute=False)


CONTESTANTS: dict[str, Callable[[Job, TrainerCallback], Trainer]] = {
    "tokenq-compiled": tokenq_compiled,
    "tokenq": tokenq,
    "trl": trl,
    "trl-live": trl_live,
}
