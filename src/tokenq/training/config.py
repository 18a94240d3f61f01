"""`PreferenceConfig`: transformers' TrainingArguments plus what preference training adds.

Names and defaults follow TRL's `DPOConfig`; every default that differs says why.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from tokenq.errors import UserError

logger = logging.getLogger(__name__)

TRUNCATION_MODES = ("keep_start", "keep_end")
SEGMENTS = ("auto", "turns", "steps", "none")
SAMPLING_STRATEGIES = ("random", "sequential")


@dataclass
class PreferenceConfig(TrainingArguments):
    """Arguments of :class:`tokenq.training.PreferenceTrainer`.

    Defaults that differ from `transformers.TrainingArguments` (all but the last four as in TRL):
    `learning_rate` 1e-6, `logging_steps` 10, `bf16` on where the device has it,
    `remove_unused_columns` off (token ids are no arguments of `forward`),
    `logging_nan_inf_filter` off (a loss that is not finite stops the run instead of being hidden),
    `ddp_find_unused_parameters` off (every trainable parameter takes part in every step).

    Defaults that differ from TRL: `precompute_ref_log_probs` is on, since the cache holds tokens
    and is shared by later runs; `gradient_checkpointing` is off, since packing and the chunked
    head already bound the memory and recomputing costs a third of the speed; `bf16` is off on CPU,
    where it is slower than fp32 and the fp32 trajectory is reproducible.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - declared without ClassVar in transformers
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "objective_args",
    ]

    # The optimisation
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate."})
    logging_steps: float = field(
        default=10, metadata={"help": "Optimiser steps between two lines of metrics."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "bf16 mixed precision; unset: on where a GPU supports it, off on CPU."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Unused: a loss that is not finite stops the run."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave at false: token ids are not forward() arguments."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Search for parameters without gradient in every step under DDP."},
    )

    # The objective
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "Objectives by name; several are added with `loss_weights`.",
            "aliases": ["--objective"],
        },
    )
    loss_weights: list[float] | None = field(
        default=None,
        metadata={"help": "One weight for each `loss_type`; unset: 1 for each."},
    )
    beta: float | None = field(
        default=None,
        metadata={
            "help": "Strength of the KL constraint; the reward of a token is beta times the "
            "log-ratio in nats. Unset: the objective's own, 0.1 for DPO."
        },
    )
    label_smoothing: float | None = field(
        default=None,
        metadata={
            "help": "Probability in [0, 0.5) that a preference label is flipped. Unset: the "
            "objective's own, 0 for DPO."
        },
    )
    objective_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "JSON with further hyper-parameters of the chosen objectives."},
    )
    oracle: str | None = field(
        default=None,
        metadata={
            "help": "Trained model whose token rewards an objective asks for (tgdpo, sepo); "
            "it is not trained."
        },
    )
    oracle_reference: str | None = field(
        default=None, metadata={"help": "What the oracle's training started from."}
    )
    oracle_beta: float = field(
        default=0.1, metadata={"help": "Scale of the oracle's rewards, times nats."}
    )

    # The reference
    precompute_ref_log_probs: bool = field(
        default=True,
        metadata={
            "help": "Take the reference's token log-probs from a cache on disk, filled "
            "before training; false: run the reference in every step."
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the reference cache; unset: in tokenq's cache, shared by all runs."
        },
    )
    sync_ref_model: bool = field(
        default=False,
        metadata={
            "help": "Let the reference follow the policy (TR-DPO): every `ref_model_sync_steps` "
            "steps it goes `ref_model_mixup_alpha` of the way. Not with adapters."
        },
    )
    ref_model_mixup_alpha: float = field(
        default=0.6,
        metadata={"help": "Share in (0, 1] of the policy in the moved reference."},
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Optimiser steps between two moves of the reference."}
    )

    # The data
    max_length: int | None = field(
        default=1024, metadata={"help": "Most tokens of prompt plus response; 0: no limit."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Most tokens of the prompt, cut from its start."}
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={"help": "What is kept of a row over `max_length`.", "choices": TRUNCATION_MODES},
    )
    segments: str = field(
        default="auto",
        metadata={
            "help": "Numbers the parts of an answer: turns (of a dialogue; what others say in "
            "between is left out of every sum), steps (of reasoning), none; auto: turns where an "
            "answer has several or the objective asks for them.",
            "choices": SEGMENTS,
        },
    )
    step_pattern: str = field(
        default="lines",
        metadata={
            "help": "Where a reasoning step begins: lines, paragraphs, numbered, or a regular "
            "expression."
        },
    )
    step_pairs: bool = field(
        default=False,
        metadata={
            "help": "Cut every pair to its first differing step, the shared ones joining the "
            "prompt (Step-DPO)."
        },
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenise."}
    )

    # The model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "JSON with arguments for `from_pretrained`."}
    )
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Turn the base model's dropout off, so that policy and reference "
            "differ by their weights only. LoRA's own dropout is `lora_dropout`."
        },
    )

    # Speed and memory
    token_budget: int = field(
        default=4096,
        metadata={
            "help": "Most tokens of one packed forward; a batch over it is split into parts "
            "whose gradients add up exactly. Lower it to save memory."
        },
    )
    compile_layers: bool = field(
        default=False, metadata={"help": "Compile the model layer by layer with torch.compile."}
    )

    # The monitor
    monitor: bool = field(
        default=True,
        metadata={
            "help": "Watch what training on pairs does to likelihoods, and say early when it goes "
            "wrong: readings, findings and a report in output_dir/monitor. The training itself is "
            "the same with and without."
        },
    )
    monitor_budget: float = field(
        default=0.03,
        metadata={"help": "Share in (0, 1] of the training time that the monitor may take."},
    )
    monitor_steps: int | None = field(
        default=None,
        metadata={"help": "Read every so many optimiser steps instead, whatever it costs."},
    )
    monitor_samples: int = field(
        default=16,
        metadata={"help": "Responses that the policy writes in a reading with samples; 0: none."},
    )

    # Stopping
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without a better "
            "`metric_for_best_model` (unset there: the evaluation loss)."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "What counts as better must be better by this much."}
    )

    def __post_init__(self) -> None:
        """Resolve what depends on the device, check values, then do what transformers does."""
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and _device_has_bf16()
        self.max_length = self.max_length or None
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.sync_ref_model and self.precompute_ref_log_probs:
            logger.warning(
                "sync_ref_model: the reference moves, so it is run in every step "
                "(precompute_ref_log_probs: false)"
            )
            self.precompute_ref_log_probs = False
        super().__post_init__()
        self._check_values()

    @property
    def folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(str(self.output_dir))

    def _check_values(self) -> None:
        _positive("token_budget", self.token_budget)
        _positive("ref_model_sync_steps", self.ref_model_sync_steps)
        _positive("oracle_beta", self.oracle_beta)
        if not 0.0 < self.ref_model_mixup_alpha <= 1.0:
            raise UserError(
                f"ref_model_mixup_alpha: must lie in (0, 1], got {self.ref_model_mixup_alpha}"
            )
        if not 0.0 < self.monitor_budget <= 1.0:
            raise UserError(f"monitor_budget: must lie in (0, 1], got {self.monitor_budget}")
        if self.monitor_samples < 0:
            raise UserError(f"monitor_samples: must be 0 or more, got {self.monitor_samples}")
        _positive("monitor_steps", self.monitor_steps)
        for name in ("max_length", "max_prompt_length", "early_stopping_patience"):
            _positive(name, getattr(self, name))
        _one_of("truncation_mode", self.truncation_mode, TRUNCATION_MODES)
        _one_of("segments", self.segments, SEGMENTS)
        _one_of("train_sampling_strategy", self.train_sampling_strategy, SAMPLING_STRATEGIES)
        if self.early_stopping_patience and self.eval_strategy == IntervalStrategy.NO:
            raise UserError("early_stopping_patience: needs evaluation, set eval_strategy to steps")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise UserError(
                f"loss_weights: {len(self.loss_weights)} weights for {len(self.loss_type)} "
                f"objectives in loss_type; give one for each"
            )
        if self.deepspeed:
            raise UserError("deepspeed: not supported; use accelerate with FSDP2 (fsdp: true)")
        if self.auto_find_batch_size:
            raise UserError(
                "auto_find_batch_size: not supported, since it would change the optimisation; "
                "lower token_budget instead, which changes only the memory"
            )


def fsdp_requested(args: TrainingArguments) -> bool:
    """True if the arguments or `accelerate launch` ask for fully sharded data parallel training."""
    launched: bool = parse_flag_from_env("ACCELERATE_USE_FSDP")
    return bool(args.fsdp) or launched


def _device_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"{name}: must be positive, got {value}")


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UserError(f"{name}: {value!r} is not one of {', '.join(accepted)}")
