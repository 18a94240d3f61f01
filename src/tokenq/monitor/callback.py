"""`Monitor`: reads a policy now and then while a transformers Trainer trains it, within a budget.

It only looks: the trajectory of a run is the same with and without it, and what goes wrong in it
ends the monitor, not the run.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tokenq.errors import UserError
from tokenq.models.reference import AdapterOff
from tokenq.monitor.journal import FOLDER
from tokenq.monitor.probing import ProbeOptions
from tokenq.monitor.session import NotWatched, Session, Settings, say
from tokenq.monitor.watched import Watched, reference_of, settings_of, watched

logger = logging.getLogger(__name__)

BUDGET = 0.03


class Monitor(TrainerCallback):
    """Probes a run of preference training and keeps what it read in `output_dir/monitor`.

        Monitor().attach(trainer)                       # PreferenceTrainer, TRL's DPOTrainer
        Trainer(..., callbacks=[Monitor(held_out=rows)])  # any other

    Attached, it finds rows, reference, tokenizer and beta in the trainer and sends `likelihood/*`
    to the trackers that the trainer reports to. As a plain callback it puts them into the lines
    that the trainer logs, which trackers called before it do not see.

    Args:
        held_out: pairs that training does not see: rows of `prompt_ids`, `chosen_ids` and
            `rejected_ids`, or of texts (`prompt`, `chosen`, `rejected`), or a path to such.
        trained: pairs that it sees, the same; None: the trainer's.
        reference: what rewards are measured against; None: the trainer's, else the base under an
            adapter, else the policy before its first step.
        tokenizer: for texts; None: the trainer's.
        beta: implicit rewards are beta times nats; None: the trainer's, else 1.
        options: how much is read; with a budget, at most that much.
        budget: share of the training time that all probes together, set-up and report may take.
        steps: probe every so many steps instead, whatever it costs.
        folder: where to write; None: `monitor` in the trainer's `output_dir`.

    Raises UserError for options out of range, and at the start of training for rows or references
    that cannot be read. What goes wrong later is logged once and ends the monitor, not the run.
    """

    def __init__(
        self,
        *,
        held_out: Any = None,
        trained: Any = None,
        reference: nn.Module | AdapterOff | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        beta: float | None = None,
        options: ProbeOptions | None = None,
        budget: float = BUDGET,
        steps: int | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if not 0 < budget <= 1:
            raise UserError(f"budget is {budget}; accepted: above 0, at most 1")
        if steps is not None and steps < 1:
            raise UserError(f"steps is {steps}; accepted: 1 or more")
        self.settings = Settings(options or ProbeOptions(), budget, steps)
        self.folder = None if folder is None else Path(folder)
        self._given = {
            "held_out": held_out,
            "trained": trained,
            "reference": reference,
            "tokenizer": tokenizer,
            "beta": beta,
        }
        self._trainer: Any = None
        self._session: Session | None = None
        self._pending: dict[str, float] = {}
        self._publishing = False

    def attach(self, trainer: Any) -> "Monitor":
        """Watch the trainer's runs from now on.

        Raises UserError for a trainer that does not say what there is to monitor.
        """
        watched(trainer)
        self._trainer = trainer
        # First of all callbacks: at the end of a run trackers close before those behind them.
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    # ---- What the trainer calls ----

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Settle what is read, let the reference write, and read the policy before step 1."""
        self._close()
        self._pending = {}
        if not state.is_world_process_zero:
            return  # the others wait for the first at their next exchange of gradients
        assert model is not None
        try:
            run = self._described(args, model, processing_class, train_dataloader)
            folder = self.folder or Path(str(args.output_dir)) / FOLDER
            self._session = Session.begin(self.settings, run, model, args, state, folder, self.take)
        except NotWatched as reason:
            say(args, f"off: {reason}")
        except UserError:
            raise
        except Exception as error:
            self._give_up(args, state, error)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report the first reading, which waits until all trackers are up."""
        if self._pending and self._trainer is not None:
            self._guarded(args, state, control, lambda session: None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Probe where one is due."""
        self._guarded(args, state, control, lambda session: session.stepped(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep the trainer's line; as a plain callback, add the latest reading to it."""
        if self._session is None or self._publishing or logs is None:
            return
        kept = dict(logs)
        if self._trainer is None:
            logs.update(self._pending)
            self._pending = {}
        self._guarded(args, state, control, lambda session: session.logged(kept, state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Read the policy a last time and write the report."""
        self._guarded(args, state, control, lambda session: session.end(state))
        self._close()

    # ---- Inside ----

    def _described(
        self, args: TrainingArguments, model: nn.Module, tokenizer: Any, loader: Any
    ) -> Watched:
        """What is watched: as given, else as found."""
        if self._trainer is not None:
            found = watched(self._trainer)
        else:
            rows = getattr(loader, "dataset", None)
            found = Watched(
                trained=rows if hasattr(rows, "column_names") else None,
                reference=reference_of(model),
                tokenizer=tokenizer,
                **settings_of(args),
            )
        given = {name: value for name, value in self._given.items() if value is not None}
        return replace(found, **given, off=None if "held_out" in given else found.off)

    def _guarded(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        do: Callable[[Session], None],
    ) -> None:
        if self._session is None:
            return
        try:
            do(self._session)
            if self._trainer is not None and self._pending:
                begun = time.perf_counter()
                self._publish(args, state, control)
                self._session.charge(time.perf_counter() - begun)
        except Exception as error:
            self._give_up(args, state, error)

    def _give_up(self, args: TrainingArguments, state: TrainerState, error: Exception) -> None:
        last = traceback.format_exception_only(error)[-1].strip()
        logger.warning(
            "monitor: it has failed at step %d and is off from here on; training goes on (%s)",
            state.global_step,
            last,
        )
        logger.debug("monitor: where it failed", exc_info=error)
        self._close()

    def _close(self) -> None:
        if self._session is not None:
            self._session.folder.close()
            self._session = None

    def take(self, found: Mapping[str, float]) -> None:
        """Metrics of a reading, to be reported."""
        self._pending = dict(found)

    def _publish(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Send the latest metrics to the trainer's trackers, not through the trainer's own `log`.

        That would drain the averages that it keeps for its next line.
        """
        line, self._pending = self._pending, {}
        if state.epoch is not None:
            line["epoch"] = state.epoch
        state.log_history.append({**line, "step": state.global_step})
        handler = self._trainer.callback_handler
        self._publishing = True
        try:
            for callback in handler.callbacks:
                if not isinstance(callback, Monitor | ProgressCallback | PrinterCallback):
                    callback.on_log(
                        args, state, control, logs=dict(line), model=handler.model,
                        processing_class=handler.processing_class,
                    )  # fmt: skip
        finally:
            self._publishing = False
