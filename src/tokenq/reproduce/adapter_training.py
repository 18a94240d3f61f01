"""One short training run of a fresh adapter on a model that many runs share."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import datasets
from peft import LoraConfig, PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)

from tokenq.reproduce.objective_arms import Arm
from tokenq.training import PreferenceConfig, PreferenceTrainer

TOKEN_BUDGET = 2048


@dataclass(frozen=True)
class Recipe:
    """What is the same for all runs.

    batch_size:    pairs of an optimiser step
    learning_rate: peak of AdamW's, one step of warm-up, then a cosine
    lora_r:        rank of the adapter, its scale is twice the rank
    epochs:        how often a pair is seen
    in_order:      take the rows as they stand, so that rows of one prompt stay in one step
    """

    batch_size: int
    learning_rate: float
    lora_r: int
    epochs: int = 1
    in_order: bool = False


@contextmanager
def adapter_trained(
    model: PreTrainedModel,
    adapted: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    arm: Arm,
    recipe: Recipe,
    seed: int,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> Iterator[PeftModel]:
    """Train an adapter on tokenised `rows` and hand out the policy; afterwards the adapter is gone.

    model:     the start and the reference of the run; left as it was
    adapted:   regular expression of the linear layers that get an adapter
    seed:      of the order and of the adapter's first weights
    callbacks: of the trainer
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreferenceTrainer(
            model,
            args=PreferenceConfig(
                output_dir=folder,
                loss_type=[arm.loss_type],
                objective_args=arm.arguments or None,
                per_device_train_batch_size=recipe.batch_size,
                num_train_epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=1,
                train_sampling_strategy="sequential" if recipe.in_order else "random",
                precompute_ref_log_probs=not arm.live,
                token_budget=TOKEN_BUDGET,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                monitor=False,
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM",
                r=recipe.lora_r,
                lora_alpha=2 * recipe.lora_r,
                target_modules=adapted,
            ),
            callbacks=list(callbacks),
        )
        policy = trainer.model
        assert isinstance(policy, PeftModel)
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
            yield policy.eval()
        finally:
            policy.unload()


def coin(seed: int, count: int, share: float) -> list[bool]:
    """Which of `count` pairs are turned round: each with probability `share`."""
    draw = random.Random(seed)
    return [draw.random() < share for _ in range(count)]
