"""`PreferenceTrainer`: transformers' Trainer on packed micro-batches and any mixture of objectives.

It knows no algorithm by name. What differs from the parent: which process sees which rows, the
forward, the exact combination of parts, the metrics, and checkpoints that are whole or absent.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import (
    EvalLoopOutput,
    has_length,
)

from tokenq.allocator import keep_freed_memory
from tokenq.errors import UserError
from tokenq.models.forward import compile_layers, enable_packed
from tokenq.models.loading import load_tokenizer
from tokenq.models.packing import pack_trees
from tokenq.monitor.watched import Watched
from tokenq.training import failures
from tokenq.training.batches import Batch, Collator, micro_batches
from tokenq.training.card import model_card
from tokenq.training.config import PreferenceConfig, fsdp_requested
from tokenq.training.dataset import Split, answers, check_lengths, prepare_split
from tokenq.training.metrics import MetricWindow, means, merge
from tokenq.training.mixture import Mixture
from tokenq.training.monitoring import describe, monitor_of
from tokenq.training.moving_reference import MovingReference, SyncReference
from tokenq.training.policy import name_of, positions_of, trainable_policy
from tokenq.training.preflight import check_writable
from tokenq.training.reference_names import Given, check_form, check_vocabularies
from tokenq.training.reference_opening import open_reference
from tokenq.training.rewards import TokenRewards, check_oracle
from tokenq.training.sampling import EpochDataLoader, GlobalBatchSampler
from tokenq.training.saving import RestoreProgress, ResumableTrainer
from tokenq.training.scores import VIEWS, Scores, blank_scores
from tokenq.training.scoring import Scorer, as_leaves, differentiable, joined

logger = logging.getLogger(__name__)

Source = Any
"""Rows in any form that `prepare_split` reads."""


@dataclass(frozen=True)
class StepPart:
    """What one process does in one of the accumulation parts of an optimiser step.

    micro:   its micro-batches
    rounds:  forwards of the process that has most; the others fill up with empty ones
    totals:  for each objective, the terms of the whole global batch
    tokens:  tokens of all processes in this part
    """

    micro: list[Batch]
    rounds: int
    totals: tuple[float, ...]
    tokens: int


class PreferenceTrainer(ResumableTrainer):
    """Train a causal language model with the objectives named in `args.loss_type`.

    Args:
        model: a causal LM, a PEFT model, or a name for `tokenq.models.load_policy`.
        ref_model: the frozen reference, by name or loaded. None: the policy as it is given, or its
            base where `peft_config` adds a fresh adapter. "none", "uniform", "marginal" and
            "marginal:NAME" are references beside a model, a list or "A,B" is the mean of several.
        args: see :class:`PreferenceConfig`.
        train_dataset: a path or hub name, `Rows`, `Prepared`, or a tokenised `datasets` set.
        eval_dataset: the same, or a dict of named sets.
        processing_class: the tokenizer; None: that of the model's name.
        peft_config: adds an adapter to the model.
        callbacks, optimizers: as in `transformers.Trainer`.
        model_name: name for the model card where `model` is not a name.
        card_notes: further `title: value` lines of the model card, such as the command.

    Raises:
        UserError: for anything wrong in the arguments or the data, before a model is loaded where
            that can be known, and for a loss or gradient that is not finite.
    """

    _tag_names = ("tokenq", "preference-optimization")
    _matmul_parameters: int | None = None
    args: PreferenceConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path,
        ref_model: Given = None,
        args: PreferenceConfig | None = None,
        train_dataset: Source = None,
        eval_dataset: Source | Mapping[str, Source] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        model_name: str | None = None,
        card_notes: Mapping[str, str] | None = None,
    ) -> None:
        args = args or PreferenceConfig(output_dir="trainer_output")
        self.mixture = Mixture.from_config(args)
        if "kl" in self.mixture.needs and args.precompute_ref_log_probs:
            logger.warning(
                "loss_type %s: compares whole distributions, so the reference is run in every step "
                "(precompute_ref_log_probs: false)",
                ", ".join(self.mixture.asking_for("kl")),
            )
            args.precompute_ref_log_probs = False
        check_writable(args.folder)
        if processing_class is None:
            processing_class = load_tokenizer(name_of(model))
        self._tokenizer = processing_class
        # The data before the model: what is wrong with it is then known within seconds.
        with args.main_process_first(desc="preparing the data"):
            self.splits = _splits(train_dataset, eval_dataset, processing_class, args, self.mixture)
        for split in self.splits.values():
            check_lengths(split, positions_of(model, args))
        self.model_name = model_name or name_of(model)
        self.card_notes = dict(card_notes or {})
        if self.mixture.needs_reference:
            comparing = self.mixture.asking_for("kl")
            check_form(ref_model, peft_config is not None, comparing, args)
            check_vocabularies(ref_model, processing_class, self.model_name, args)
        asks_oracle = "rewards" in self.mixture.needs and not _all_bring(self.splits, "rewards")
        if asks_oracle:
            check_oracle(self.splits.values(), processing_class, self.model_name, args)
        policy = trainable_policy(model, args, peft_config)
        self.reference = None
        if self.mixture.needs_reference:
            self.reference = open_reference(
                policy, ref_model, peft_config is not None, args, processing_class
            )
        self.rewards = TokenRewards.open(args) if asks_oracle else None
        if args.early_stopping_patience is not None:
            stopping = EarlyStoppingCallback(
                args.early_stopping_patience, args.early_stopping_threshold
            )
            callbacks = [*(callbacks or []), stopping]
        enable_packed(policy)
        if args.compile_layers:
            compile_layers(policy)
        keep_freed_memory()
        evaluation = {name: split.dataset for name, split in self.splits.items() if name != "train"}
        super().__init__(
            model=policy,
            args=args,
            # Unused: every loader has the collator of its own set.
            data_collator=Collator(()),  # type: ignore[arg-type]
            train_dataset=self.splits["train"].dataset if "train" in self.splits else None,
            eval_dataset=evaluation.get("", evaluation) or None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True
        self.window = MetricWindow()
        self.traces: list[failures.Trace] = []
        self._score = Scorer(self.mixture.needs, args.device, self.reference, self.rewards)
        self._filler = pack_trees([[0]], [[0]], token_budget=2)[0].to(args.device)
        self.add_callback(RestoreProgress(self))
        if isinstance(self.reference, MovingReference):
            self.add_callback(SyncReference(self.reference))
        if self.reference is not None:
            for split in self.splits.values():
                self._fill_reference(split)
            self.reference.release_policy()
        if self.rewards is not None:
            for split in self.splits.values():
                self.rewards.fill(*answers(split), args)
            self.rewards.release()
        monitor = monitor_of(args)
        if monitor is not None:
            monitor.attach(self)

    def watched(self) -> Watched:
        """Say what a monitor has to know of the runs."""
        found = describe(self.splits, self.mixture, self.reference, self.args, self.model_name)
        return replace(found, tokenizer=self._tokenizer)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; on CPU, FSDP2 is honoured instead of quietly becoming DDP."""
        state = PartialState()
        if fsdp_requested(self.args) and state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate turns to FSDP from its GPU types only, though FSDP2 works over gloo.
            state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        """Every process's share of the same global batches, whatever the number of processes."""
        split = self.splits["train"]
        if not has_length(split.dataset):
            return self._stream(split, self._train_batch_size)
        args = self.args
        seed = args.data_seed if args.data_seed is not None else args.seed
        sampler = GlobalBatchSampler(
            len(split.dataset),
            per_process=self._train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world=args.world_size,
            seed=None if args.train_sampling_strategy == "sequential" else seed,
            drop_last=args.dataloader_drop_last,
        )
        return self._loader(split, sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Every process's share of the evaluation rows, each row once."""
        split = self._eval_split(eval_dataset)
        if not has_length(split.dataset):
            return self._stream(split, self.args.eval_batch_size)
        sampler = GlobalBatchSampler(
            len(split.dataset),
            per_process=self.args.eval_batch_size,
            rank=self.args.process_index,
            world=self.args.world_size,
            seed=None,
        )
        return self._loader(split, sampler)

    def _eval_split(self, eval_dataset: Any) -> Split:
        if eval_dataset is None or isinstance(eval_dataset, str):
            return self.splits[eval_dataset or ""]
        for split in self.splits.values():
            if split.dataset is eval_dataset:
                return split
        split = prepare_split(eval_dataset, "evaluation", self._tokenizer, self.args, self.mixture)
        if self.reference is not None:
            self._fill_reference(split)
        if self.rewards is not None:
            self.rewards.fill(*answers(split), self.args)
        return split

    def _loader(self, split: Split, sampler: GlobalBatchSampler) -> DataLoader:
        return EpochDataLoader(
            split.dataset,
            batch_sampler=sampler,
            collate_fn=split.collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _stream(self, split: Split, batch_size: int) -> DataLoader:
        from datasets.distributed import split_dataset_by_node

        share = split_dataset_by_node(
            split.dataset, rank=self.args.process_index, world_size=self.args.world_size
        )
        return DataLoader(share, batch_size=batch_size, collate_fn=split.collator)

    # ---- One optimiser step ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[StepPart], None]:
        """Draw the parts of one optimiser step and count its terms over all processes.

        The counts are known before the first forward, so that each micro-batch's gradient can be
        weighted exactly as in one mean over the global batch.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        drawn = len(batches)
        # A process whose stream has ended keeps step with the others.
        batches += [Collator(())([])] * (num_batches - drawn)
        micro = [micro_batches(batch, self.args.token_budget) for batch in batches]
        shapes = [blank_scores(batch) for batch in batches if len(batch)]
        weights = [
            sum(self._weight(term.objective, shape) for shape in shapes)
            for term in self.mixture.terms
        ]
        tokens = [batch.num_tokens for batch in batches]
        counted = self.all_processes([drawn, *weights, *tokens, *map(len, micro)])
        if not counted[:, 0].any():
            return [], None
        terms = len(weights)
        totals = tuple(counted[:, 1 : 1 + terms].sum(0).tolist())
        part_tokens = counted[:, 1 + terms : 1 + terms + num_batches].sum(0).long().tolist()
        rounds = counted[:, 1 + terms + num_batches :].amax(0).long().tolist()
        self.traces = []
        self.window.begin_step()
        parts = [
            StepPart(micro[i], max(1, rounds[i]), totals, part_tokens[i])
            for i in range(num_batches)
        ]
        return parts, None

    def _weight(self, objective: Any, shape: Scores) -> float:
        return float(objective.weight(VIEWS[objective.kind, shape.batch.kind](shape)))

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: StepPart, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one part; returns its share of the global mean (times processes).

        Gradients add up over micro-batches and are averaged over processes by DDP or FSDP, hence
        the factor of the number of processes; their sum is the gradient of the global mean.
        """
        model.train()
        self._optimizer_mode("train")
        if self.mixture.couples_rows and inputs.rounds > 1:
            return self._coupled_step(model, inputs)
        total = torch.zeros((), device=self.args.device)
        for i in range(inputs.rounds):
            with self._gradient_sync(model, last=i == inputs.rounds - 1):
                if i < len(inputs.micro):
                    loss = self._micro_loss(model, inputs.micro[i], inputs.totals)
                    loss = loss * self.args.world_size
                else:
                    loss = self._empty_loss(model)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _optimizer_mode(self, mode: str) -> None:
        # Schedule-free optimisers keep two sets of weights, one to train and one to evaluate.
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    def _gradient_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Let processes exchange gradients once a step, after its last micro-batch."""
        if last or not self.accelerator.sync_gradients:
            return nullcontext()
        return self.accelerator.no_sync(model)

    def _coupled_step(self, model: nn.Module, inputs: StepPart) -> Tensor:
        """The part's gradient where its rows must be seen together but not run together.

        One pass without gradients gives all scores and the loss, hence the loss's slope in every
        score; a second pass, micro-batch by micro-batch, carries the slopes into the weights.
        """
        device = self.args.device
        own = [device] if device.type == "cuda" else []  # or the states of all GPUs were touched
        with torch.no_grad(), torch.random.fork_rng(own):  # to drop out the same units again below
            parts = [self._observed(model, batch) for batch in inputs.micro]
            for _ in range(inputs.rounds - len(inputs.micro)):
                self._empty_loss(model)
        total, slopes = torch.zeros((), device=device), []
        if parts:
            leaves = [as_leaves(part) for part in parts]
            total = self._loss(joined(leaves), inputs.totals) * self.args.world_size
            values = [value for part in leaves for value in differentiable(part)]
            slopes = list(torch.autograd.grad(total, values, allow_unused=True))
        for i in range(inputs.rounds):
            with self._gradient_sync(model, last=i == inputs.rounds - 1):
                if i < len(inputs.micro):
                    scores, _ = self._score(model, inputs.micro[i])
                    values = differentiable(scores)
                    mine, slopes = slopes[: len(values)], slopes[len(values) :]
                    pairs = zip(values, mine, strict=True)
                    loss = torch.stack(
                        [(value * slope).sum() for value, slope in pairs if slope is not None]
                    ).sum()
                else:
                    loss = self._empty_loss(model)
                self.accelerator.backward(loss)
        return total.detach()

    def _micro_loss(self, model: nn.Module, batch: Batch, totals: tuple[float, ...]) -> Tensor:
        """Return the micro-batch's summand of the global mean; adds its metrics and its trace."""
        return self._loss(self._observed(model, batch), totals)

    def _observed(self, model: nn.Module, batch: Batch) -> Scores:
        """Score a batch and add its tokens' metrics to the window."""
        scores, metrics = self._score(model, batch)
        for name, (value, weight) in metrics.items():
            self.window.add(name, value, weight)
        return scores

    def _loss(self, scores: Scores, totals: tuple[float, ...]) -> Tensor:
        """Return the summand of the global mean; adds the objectives' metrics and the trace."""
        loss = torch.zeros((), device=self.args.device)
        tensors = failures.named_tensors(scores)
        for term, terms_in_batch in zip(self.mixture.terms, totals, strict=True):
            view = VIEWS[term.objective.kind, scores.batch.kind](scores)
            value, metrics = term.objective(view)
            weight = term.objective.weight(view)
            loss = loss + term.weight * value * (weight / (terms_in_batch or 1.0))
            tensors[f"loss {term.name}"] = value.detach()
            if len(self.mixture.terms) > 1:
                metrics = {**metrics, f"loss/{term.name}": value}
            for name, metric in metrics.items():
                self.window.add(name, metric, weight)
        self.traces.append(failures.Trace(scores.batch.rows, tensors))
        return loss

    def _empty_loss(self, model: nn.Module) -> Tensor:
        """Zero, through the whole model: collective operations need every process to take part."""
        loss: Tensor = model(packed=self._filler).logps.sum() * 0.0
        return loss

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one :class:`Batch` by itself (mean over its own terms)."""
        shape = blank_scores(inputs)
        totals = tuple(self._weight(term.objective, shape) for term in self.mixture.terms)
        self.window.begin_step()
        parts = micro_batches(inputs, self.args.token_budget)
        loss = self._loss(joined([self._observed(model, part) for part in parts]), totals)
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs: StepPart) -> int:  # type: ignore[override]
        """Matrix-multiplication operations of the packed tokens: 6 a parameter and token."""
        if self._matmul_parameters is None:
            matrices = [p for p in cast(nn.Module, self.model).parameters() if p.ndim > 1]
            self._matmul_parameters = sum(p.numel() for p in matrices)
        packed = sum(
            len(prompt) + sum(map(len, answers))
            for batch in inputs.micro
            for prompt, answers in zip(batch.prompts, batch.responses, strict=True)
        )
        return 6 * packed * self._matmul_parameters

    def _track_num_input_tokens(self, inputs: StepPart) -> None:
        self.state.num_input_tokens_seen += inputs.tokens

    # ---- Metrics ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's metrics to a line of training losses, then log as transformers does."""
        if "loss" in logs:
            logs.update(self._drain(self.window))
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _drain(self, window: MetricWindow) -> dict[str, float]:
        cells = merge(gather_object([window.cells()]))
        window.clear()
        return means(cells)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Losses and metrics of an evaluation set: exact means over its rows, each counted once."""
        model = self._model_for_evaluation()
        model.eval()
        self._optimizer_mode("eval")
        self.callback_handler.eval_dataloader = dataloader
        training_window, self.window = self.window, MetricWindow()
        self.window.begin_step()
        seen = 0
        try:
            with torch.no_grad():
                for batch in dataloader:
                    self._evaluate_batch(model, batch)
                    seen += len(batch)
                    self.control = self.callback_handler.on_prediction_step(
                        self.args, self.state, self.control
                    )
            metrics = self._drain(self.window)
        finally:
            self.window, self.traces = training_window, []
        # The sum of `weight * loss` over objectives, each an exact mean over its own terms.
        loss = sum(
            term.weight * metrics.pop(f"loss/{i}", 0.0) for i, term in enumerate(self.mixture.terms)
        )
        metrics["loss"] = float(loss)
        count = int(self.all_processes([seen])[:, 0].sum())
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(
            predictions=np.empty(0), label_ids=None, metrics=prefixed, num_samples=count
        )

    def _model_for_evaluation(self) -> nn.Module:
        if self.accelerator._models:
            return self.model_wrapped
        if not self.is_fsdp_enabled:
            return self.accelerator.prepare_model(self.model, evaluation_mode=True)
        self.model = self.model_wrapped = self.accelerator.prepare(self.model)
        return self.model

    def _evaluate_batch(self, model: nn.Module, batch: Batch) -> None:
        micro = micro_batches(batch, self.args.token_budget)
        rounds = int(self.all_processes([len(micro)])[:, 0].max())
        parts = [self._observed(model, part) for part in micro]
        for _ in range(rounds - len(micro)):
            self._empty_loss(model)
        if not parts:
            return
        scores = joined(parts)
        for number, term in enumerate(self.mixture.terms):
            view = VIEWS[term.objective.kind, batch.kind](scores)
            value, metrics = term.objective(view)
            weight = term.objective.weight(view)
            self.window.add(f"loss/{number}", value, weight)
            for name, metric in metrics.items():
                self.window.add(name, metric, weight)

    # ---- The reference ----

    def _fill_reference(self, split: Split) -> None:
        assert self.reference is not None
        if has_length(split.dataset):
            self.reference.fill(*answers(split), self.args)
        elif self.args.precompute_ref_log_probs:
            raise UserError(
                f"{split.source}: a streamed set cannot be scored before training; "
                "set precompute_ref_log_probs to false"
            )

    def model_card(self) -> str:
        """See :func:`tokenq.training.card.model_card`."""
        return model_card(self)


def _all_bring(splits: Mapping[str, Split], feature: str) -> bool:
    return all(feature in split.features for split in splits.values())


def _splits(
    train: Source,
    evaluation: Source | Mapping[str, Source] | None,
    tokenizer: PreTrainedTokenizerBase,
    args: PreferenceConfig,
    mixture: Mixture,
) -> dict[str, Split]:
    """Prepare all sets; the training set is "train", an unnamed evaluation set is ""."""
    named = dict(evaluation) if isinstance(evaluation, Mapping) else {"": evaluation}
    named = {"train": train, **named}
    return {
        name: prepare_split(source, name or "evaluation", tokenizer, args, mixture)
        for name, source in named.items()
        if source is not None
    }
