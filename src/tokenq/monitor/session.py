"""One run under the monitor: opened or taken up again, probed when due, summed up at its end."""

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments

from tokenq.models.branching.step_model import end_tokens
from tokenq.models.forward import causal_lm
from tokenq.models.reference import AdapterOff, running_in
from tokenq.monitor.findings.finding import SEVERITIES, Finding
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.measures import metrics
from tokenq.monitor.probe_texts import new_tokens_for
from tokenq.monitor.probing import ProbeOptions, Prober
from tokenq.monitor.readings import HELD_OUT, TRAINED, History, ProbePair, Reading, Setup
from tokenq.monitor.reference_states import FILE as REFERENCE_FILE
from tokenq.monitor.schedule import Due, Lengths, Schedule, fitted
from tokenq.monitor.summary import FINDINGS_FILE, SUMMARY_FILE, write_summary
from tokenq.monitor.watched import PairRows, Watched, name_of
from tokenq.storage import write_text

logger = logging.getLogger(__name__)

PAGE_FILE = "report.html"
REPORT_SECONDS = 3.0
"""What the report takes, and loading what draws it."""
_HOW_TO_REPORT = "the report would take it over its budget: tokenq monitor RUN_DIR writes it"
STEP_COST, ADAPTER_STEP_COST = 3.0, 2.2
"""Forwards that training on a token costs: in full, and of an adapter only."""

_open_folders: "WeakValueDictionary[Path, MonitorFolder]" = WeakValueDictionary()
"""Of this process. A run that an error ended leaves its folder open; the next one closes it."""


class NotWatched(Exception):
    """Why a run is not monitored: for people, no error."""


@dataclass(frozen=True)
class Settings:
    """How much is read and how often, see `callback.Monitor`."""

    options: ProbeOptions
    budget: float
    steps: int | None


class Session:
    """The monitor of one run in this process."""

    def __init__(
        self,
        model: nn.Module,
        prober: Prober,
        history: History,
        folder: MonitorFolder,
        schedule: Schedule,
        args: TrainingArguments,
        report: Callable[[Mapping[str, float]], None],
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        assert history.setup is not None
        self.folder = folder
        self.schedule = schedule
        self._model = model
        self._prober = prober
        self._setup = history.setup
        self._readings = list(history.readings)
        self._logs = list(history.logs)
        self._args = args
        self._report = report
        self._tokenizer = tokenizer
        self._known = _severities(findings(self.history)) if self._readings else {}
        self._mark = time.perf_counter()

    @property
    def history(self) -> History:
        """The run so far."""
        return History(self._setup, self._readings, self._logs)

    @classmethod
    def begin(
        cls,
        settings: Settings,
        run: Watched,
        model: nn.Module,
        args: TrainingArguments,
        state: TrainerState,
        root: Path,
        report: Callable[[Mapping[str, float]], None],
    ) -> "Session":
        """Set up the probe, or take up that of the checkpoint's run, and read the policy.

        Raises NotWatched where there is nothing to read or no time for it, UserError for rows that
        are no pairs.
        """
        begun = time.perf_counter()
        if run.off is not None:
            raise NotWatched(run.off)
        if _sharded(model):
            raise NotWatched("the weights are sharded over processes, which it does not read")
        folder = _opened(root)
        if state.global_step and (root / REFERENCE_FILE).exists():
            folder.resume(state.global_step)
            (root / SUMMARY_FILE).unlink(missing_ok=True)  # it says that the run has ended
            prober, schedule = _taken_up(folder, model, run, settings, args, state)
        elif state.global_step and run.reference is None:
            raise NotWatched(
                f"the reference is the policy before its first step, which {root} does not hold"
            )
        else:
            _clear(root)
            prober, schedule = _set_up(folder, model, run, settings, args, state)
        schedule.opened(time.perf_counter() - begun)
        session = cls(
            model, prober, folder.history(), folder, schedule, args, report, run.tokenizer
        )
        if not session._readings or session._readings[-1].step < state.global_step:
            session._probe(state, Due(samples=False))
        return session

    def stepped(self, state: TrainerState) -> None:
        """After an optimiser step: probe if one is due."""
        self._trained(state)
        due = self.schedule.due(state.global_step)
        if state.global_step >= state.max_steps:
            due = self.schedule.final()
        if due is not None:
            # Only then: a GPU that is waited for at every step has nothing to do in between.
            _wait(self._model)
            self._trained(state)
            self._probe(state, due)

    def logged(self, line: Mapping[str, Any], step: int) -> None:
        """Keep a line that the trainer logs."""
        begun = time.perf_counter()
        kept = {**line, "step": step}
        self.folder.append_log(kept)
        self._logs.append(kept)
        self.charge(time.perf_counter() - begun)

    def charge(self, seconds: float) -> None:
        """Something else took the monitor `seconds` just now."""
        self.schedule.charge(seconds)
        self._mark += seconds

    def end(self, state: TrainerState) -> None:
        """Read the policy once more if it has changed since, and write summary and report."""
        _wait(self._model)
        self._trained(state)
        # By then the weights may be those of an earlier step again.
        restored = self._args.load_best_model_at_end and state.best_model_checkpoint
        if self._readings[-1].step < state.global_step and not restored:
            self._probe(state, self.schedule.final())
        begun = time.perf_counter()
        written = self.schedule.closes()
        try:
            if written:
                self._write_page()
        finally:
            self.schedule.charge(time.perf_counter() - begun)
            write_summary(
                self.folder.root, self.history, ended=True, monitor_seconds=self.schedule.spent
            )
        say(
            self._args,
            f"{len(self._readings)} readings in {self.schedule.spent:.1f} s, "
            f"{self.schedule.overhead:.1%} of the training time; "
            + (f"see {self.folder.root / PAGE_FILE}" if written else _HOW_TO_REPORT),
        )

    # ---- Inside ----

    def _probe(self, state: TrainerState, due: Due) -> None:
        begun = time.perf_counter()
        with running_in(_autocast(self._args), self._model):
            reading = self._prober.read(
                self._model, state.global_step, samples=due.samples, epoch=state.epoch
            )
        seconds = time.perf_counter() - begun
        reading = replace(
            reading,
            seconds=seconds,
            training_seconds=self.schedule.trained
            + sum(earlier.seconds for earlier in self._readings)
            + seconds,
        )
        self.folder.append_reading(reading)
        self._readings.append(reading)
        self._report(metrics(self._setup, reading))
        self._tell(reading)
        self.schedule.probed(
            state.global_step, time.perf_counter() - begun, samples=reading.samples is not None
        )
        self._mark = time.perf_counter()

    def _tell(self, reading: Reading) -> None:
        """Say findings that are new or worse, and keep all."""
        found = findings(self.history)
        for each in found:
            if each.name in self._known and not _worse(each, self._known[each.name]):
                continue
            change = f" What to change: {each.change[0]}" if each.change else ""
            say(
                self._args,
                f"{each.severity} at step {reading.step}, since step {each.since}: "
                f"{each.title}.{change}",
            )
        self._known = _severities(found)
        text = json.dumps([each.to_dict() for each in found], indent=2)
        write_text(self.folder.root / FINDINGS_FILE, text + "\n")

    def _trained(self, state: TrainerState) -> None:
        now = time.perf_counter()
        if state.global_step > self.schedule.step:
            self.schedule.stepped(state.global_step, now - self._mark)
        else:
            self.schedule.idled(now - self._mark)
        self._mark = now

    def _write_page(self) -> None:
        from tokenq.report.monitor_page import write_monitor_page

        path = self.folder.root / PAGE_FILE
        write_monitor_page(path, self.history, tokenizer=self._tokenizer)


_FILES = (
    "setup.json", "readings.jsonl", "logs.jsonl", REFERENCE_FILE, FINDINGS_FILE,
    SUMMARY_FILE, PAGE_FILE,
)  # fmt: skip


def _opened(root: Path) -> MonitorFolder:
    if root in _open_folders:
        _open_folders[root].close()
    folder = _open_folders[root] = MonitorFolder(root)
    return folder


def _clear(root: Path) -> None:
    """Remove what an earlier run has left, and nothing else."""
    for name in _FILES:
        (root / name).unlink(missing_ok=True)


def _set_up(
    folder: MonitorFolder,
    model: nn.Module,
    run: Watched,
    settings: Settings,
    args: TrainingArguments,
    state: TrainerState,
) -> tuple[Prober, Schedule]:
    """Draw the probe, let the reference write and be read, and write it all down."""
    begun = time.perf_counter()
    held_out = _rows(run, run.held_out, HELD_OUT)
    trained = _rows(run, run.trained, TRAINED)
    options = _affordable(held_out, trained, model, settings, args, state)
    held_out_pairs = _draw(held_out, HELD_OUT, options)
    trained_pairs = _draw(trained, TRAINED, options)
    reference = model if run.reference is None else run.reference
    ends = _end_ids(model, run)
    with running_in(_autocast(args), model), _frozen(run.reference):
        prober = Prober.open(reference, held_out_pairs, trained_pairs, ends, options)
    if not held_out_pairs:
        say(args, "no held-out pairs: only pairs that training sees are read; give eval rows")
    setup = Setup(
        prober.probe,
        prober.baseline,
        1.0 if run.beta is None else run.beta,
        name_of(model),
        _reference_name(run, state),
        ends,
        {
            **run.facts,
            "learning_rate": args.learning_rate,
            "rows_per_step": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "max_steps": state.max_steps,
            "adapter": isinstance(model, PeftModel),
            "budget": settings.budget,
            "every": settings.steps,
            "options": asdict(options),
            "opening_seconds": time.perf_counter() - begun,
        },
    )
    folder.write_setup(setup)
    prober.save(folder.root)
    return prober, _schedule(settings, options, state)


def _affordable(
    held_out: PairRows | None,
    trained: PairRows | None,
    model: nn.Module,
    settings: Settings,
    args: TrainingArguments,
    state: TrainerState,
) -> ProbeOptions:
    """How much is read of these rows, within the budget. Raises NotWatched for nothing."""
    options = settings.options
    drawn = [_draw(held_out, HELD_OUT, options), _draw(trained, TRAINED, options)]
    pairs = [pair for part in drawn for pair in part]
    if not pairs:
        raise NotWatched("the run has no preference pairs to read")
    lengths = _lengths(pairs, options)
    options = replace(
        options,
        held_out=len(drawn[0]),
        trained=len(drawn[1]),
        new_tokens=round(lengths.new_tokens),
    )
    if settings.steps is not None:
        return options
    allowance = settings.budget * _cost_of_training(model, pairs, args, state)
    smaller = fitted(options, lengths, allowance)
    if smaller is None:
        raise NotWatched(
            f"the run is too short to be read within {settings.budget:.0%} of its time; give "
            "steps (in a config monitor_steps) to read it all the same"
        )
    return smaller


def _taken_up(
    folder: MonitorFolder,
    model: nn.Module,
    run: Watched,
    settings: Settings,
    args: TrainingArguments,
    state: TrainerState,
) -> tuple[Prober, Schedule]:
    """Go on with the probe that the run began with."""
    history = folder.history()
    assert history.setup is not None
    options = ProbeOptions(**history.setup.facts["options"])
    with running_in(_autocast(args), model), _frozen(run.reference):
        prober = Prober.load(folder.root, history.setup, model, options, reference=run.reference)
    spent = sum(reading.seconds for reading in history.readings)
    trained = history.readings[-1].training_seconds - spent if history.readings else 0.0
    spent += float(history.setup.facts["opening_seconds"])
    return prober, _schedule(settings, options, state, trained=trained, spent=spent)


def _schedule(
    settings: Settings, options: ProbeOptions, state: TrainerState, **before: float
) -> Schedule:
    return Schedule(
        settings.budget,
        state.global_step,
        state.max_steps,
        every=settings.steps,
        samples=options.samples,
        responses=options.responses,
        closing=REPORT_SECONDS,
        **before,
    )


def _rows(run: Watched, source: Any, name: str) -> PairRows | None:
    if source is None:
        return None
    return PairRows.of(source, name, run.tokenizer, run.max_length, run.truncation_mode)


def _draw(rows: PairRows | None, source: Any, options: ProbeOptions) -> list[ProbePair]:
    if rows is None:
        return []
    count = options.held_out if source == HELD_OUT else options.trained
    return rows.draw(source, count, options.seed)


def _lengths(pairs: Sequence[ProbePair], options: ProbeOptions) -> Lengths:
    return Lengths(
        statistics.mean(len(pair.prompt) for pair in pairs),
        statistics.mean((len(pair.chosen) + len(pair.rejected)) / 2 for pair in pairs),
        options.new_tokens or new_tokens_for(pairs),
    )


def _cost_of_training(
    model: nn.Module, pairs: Sequence[ProbePair], args: TrainingArguments, state: TrainerState
) -> float:
    """What the steps to come cost one process, in forwards of one token; prompts counted once."""
    tokens = statistics.mean(
        len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs
    )
    rows = args.train_batch_size * args.gradient_accumulation_steps
    each = ADAPTER_STEP_COST if isinstance(model, PeftModel) else STEP_COST
    return each * tokens * rows * (state.max_steps - state.global_step)


def _end_ids(model: nn.Module, run: Watched) -> tuple[int, ...]:
    own = getattr(run.tokenizer, "eos_token_id", None)
    return tuple(sorted({*end_tokens(causal_lm(model)), *(() if own is None else (own,))}))


def _reference_name(run: Watched, state: TrainerState) -> str:
    if run.reference is None:
        return f"the policy after {state.global_step} steps"
    return name_of(run.reference)


def _sharded(model: nn.Module) -> bool:
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return True
    return any(
        isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters()
    )


@contextmanager
def _frozen(reference: nn.Module | AdapterOff | None) -> Iterator[None]:
    """Let a model that serves as the reference only say that it is not trained, which TRL does not.

    A reference that stays as it is can read the policy's samples later.
    """
    weights = list(reference.parameters()) if isinstance(reference, nn.Module) else []
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def _autocast(args: TrainingArguments) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _wait(model: nn.Module) -> None:
    """Let a GPU finish the step, so that its time is not taken for the monitor's."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _severities(found: Sequence[Finding]) -> dict[str, int]:
    return {each.name: SEVERITIES.index(each.severity) for each in found}


def _worse(each: Finding, before: int) -> bool:
    return SEVERITIES.index(each.severity) > before


def say(args: TrainingArguments, text: str) -> None:
    """One line for people, past the progress bar; to the log where bars are switched off."""
    if args.disable_tqdm:
        logger.info("monitor: %s", text)
    else:
        tqdm.write(f"monitor: {text}")
