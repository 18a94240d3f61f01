"""Saving and resuming: checkpoints whole or absent, runs that go on as if nothing had happened."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput, has_length, rotate_checkpoints

from tokenq.errors import UserError
from tokenq.models.reference import ReferenceIdentity
from tokenq.training import checkpoints
from tokenq.training.card import CARD_FILE
from tokenq.training.dataset import Split
from tokenq.training.finite import FiniteTrainer
from tokenq.training.metrics import MetricWindow, merge
from tokenq.training.moving_reference import MovingReference
from tokenq.training.preflight import check_disk
from tokenq.training.reference import Reference
from tokenq.training.rewards import TokenRewards


class ResumableTrainer(FiniteTrainer):
    """A Trainer whose runs can be killed at any moment and started again.

    splits:             the prepared sets by name; "train" is trained on
    window:             the metrics since the last log line
    reference:          what the run is measured against, or None
    rewards:            source of token rewards, or None
    """

    splits: dict[str, Split]
    window: MetricWindow
    reference: Reference | None
    rewards: TokenRewards | None = None
    _progress: checkpoints.Progress | None = None
    _seconds_before = 0.0
    _session_start = 0.0
    _stopped_early = False

    @property
    def reference_identity(self) -> ReferenceIdentity | None:
        """Who the reference is, or None if no objective needs one."""
        return None if self.reference is None else self.reference.identity

    def model_card(self) -> str:
        """Return the card that is saved beside the model."""
        raise NotImplementedError

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; with `resume_from_checkpoint`, go on from there as if nothing had happened.

        Raises UserError if the checkpoint was trained against another reference or oracle, or if
        the disk is clearly too small for the checkpoints to come.
        """
        if "train" not in self.splits:
            raise UserError("train_dataset: none was given")
        output_dir = self.args.folder
        checkpoint = checkpoints.resolve_resume(resume_from_checkpoint, output_dir)
        if checkpoint is not None:
            self._check_same_models(checkpoint)
            if isinstance(self.reference, MovingReference):
                self.reference.restore(checkpoint)
            self._progress = checkpoints.Progress.load(checkpoint)
        if self.is_world_process_zero():
            checkpoints.clear_unfinished(output_dir)
        check_disk(cast(nn.Module, self.model), self.args, self._planned_saves())
        self._session_start = time.time()
        return super().train(str(checkpoint) if checkpoint else None, trial, ignore_keys_for_eval)

    def _check_same_models(self, checkpoint: Path) -> None:
        saved = checkpoint / checkpoints.REFERENCE_FILE
        if self.reference is not None and saved.is_file():
            ReferenceIdentity.load(saved).verify(self.reference.identity)
        saved = checkpoint / checkpoints.ORACLE_FILE
        if self.rewards is not None and saved.is_file():
            self.rewards.verify(saved)

    def _planned_saves(self) -> int:
        """How many checkpoints the run will write, not counting those deleted on the way."""
        args = self.args
        if has_length(self.splits["train"].dataset) and args.max_steps <= 0:
            per_epoch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            per_epoch = math.ceil(len(self.splits["train"].dataset) / per_epoch)
            steps = math.ceil(args.num_train_epochs * per_epoch)
        else:
            per_epoch = steps = args.max_steps
        every = {"steps": args.save_steps, "epoch": per_epoch, "best": args.eval_steps or steps}
        interval = every.get(SaveStrategy(args.save_strategy).value)
        if interval is None:
            return 0
        interval = interval * steps if interval < 1 else interval
        return math.ceil(steps / interval)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint under a temporary name and give it its own when all of it is there."""
        self.store_flos()
        step = self.state.global_step
        output_dir = self.args.folder
        staging = checkpoints.staging_folder(output_dir, step)
        final = output_dir / f"checkpoint-{step}"
        self.save_model(str(staging), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            if self.args.should_save and isinstance(self.reference, MovingReference):
                self.reference.save(staging)
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(final)
        progress = self._current_progress()
        if self.args.should_save:
            self._export_callback_states()
            self.state.save_to_json(str(staging / checkpoints.STATE_FILE))
            progress.save(staging)
            self._save_provenance(staging)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.publish(staging, final)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _export_callback_states(self) -> None:
        # Annotated as a list in transformers, but a dict by name once the state exists.
        states = cast(dict[str, Any], self.state.stateful_callbacks)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states[type(callback).__name__] = callback.state()

    def _current_progress(self) -> checkpoints.Progress:
        loss_sum = self.all_processes([float(self._tr_loss)])[:, 0].mean()
        return checkpoints.Progress(
            loss_sum=float(loss_sum),
            total=self._total_loss_scalar,
            logged_step=self._globalstep_last_logged,
            seconds=self._seconds_before + time.time() - self._session_start,
            stopped_early=self.control.should_training_stop
            and self.state.global_step < self.state.max_steps,
            metrics=merge(gather_object([self.window.cells()])),
        )

    def restore_progress(self) -> None:
        """Put the log window back to where the checkpoint was taken."""
        if self._progress is None:
            return
        progress, self._progress = self._progress, None
        self._tr_loss = torch.tensor(progress.loss_sum, device=self.args.device)
        self._total_loss_scalar = progress.total
        self._globalstep_last_logged = progress.logged_step
        # Means and rates of the whole run, not of this session.
        self._initial_global_step = 0
        self._seconds_before = progress.seconds
        self._stopped_early = progress.stopped_early
        self.window.restore(progress.metrics, first=self.is_world_process_zero())

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        # Without this, a run resumed from its very last checkpoint would take one step too many.
        if self._stopped_early or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)

    def _finalize_training(
        self, trial: Any, num_train_samples: float, start_time: float
    ) -> TrainOutput:
        return super()._finalize_training(
            trial, num_train_samples, start_time - self._seconds_before
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, tokenizer, reference identity and card; every file is whole or absent."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        final = Path(output_dir) if output_dir else self.args.folder
        staging = final / ".final.part"
        super().save_model(str(staging), _internal_call=True)
        if self.args.should_save:
            self._save_provenance(staging)
            checkpoints.publish_files(staging, final)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_provenance(self, folder: Path) -> None:
        if self.reference is not None:
            self.reference.identity.save(folder / checkpoints.REFERENCE_FILE)
        if self.rewards is not None:
            self.rewards.save(folder / checkpoints.ORACLE_FILE)
        (folder / CARD_FILE).write_text(self.model_card(), encoding="utf-8")


class RestoreProgress(TrainerCallback):
    """Calls the trainer back once transformers has set its counters to zero."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._restore: Callable[[], None] = trainer.restore_progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """See :meth:`ResumableTrainer.restore_progress`."""
        self._restore()
