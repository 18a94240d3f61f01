"""Probes the checkpoints of a run that nobody watched, as if a monitor had been there.

The reference is loaded once, then each checkpoint in the order of its step; every reading is on the
disk before the next one, so that an interrupted replay goes on where it stopped.
"""

import gc
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.branching.step_model import end_tokens
from tokenq.models.checkpoint import inspect
from tokenq.models.forward import causal_lm
from tokenq.models.loading import load_policy
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.probing import ProbeOptions, Prober
from tokenq.monitor.readings import HELD_OUT, TRAINED, History, ProbePair, Setup
from tokenq.monitor.watched import PairRows

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
_RECORD = "run.json"
_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*", "adapter_model.*")
_REPLAYED = "replayed"


@dataclass(frozen=True)
class RunFacts:
    """What a run's folder tells of how it was trained; None: it does not say.

    objectives: names of what was trained with
    """

    beta: float | None = None
    objectives: Sequence[str] = ()
    reference: str | None = None
    max_length: int | None = None
    truncation_mode: str = "keep_start"


@dataclass(frozen=True)
class Replayed:
    """What is replayed.

    checkpoints: steps with their folders, see :func:`checkpoints_of`
    reference:   what rewards are measured against, and what is read as step 0
    name:        of the reference
    held_out, trained: pairs that training did not see and that it saw; None: there are none
    """

    checkpoints: Sequence[tuple[int, Path]]
    reference: nn.Module
    name: str
    tokenizer: PreTrainedTokenizerBase
    held_out: PairRows | None
    trained: PairRows | None
    beta: float


def checkpoints_of(run_dir: Path) -> list[tuple[int, Path]]:
    """The run's checkpoints with their steps, in order; its final model too where its step is told.

    run_dir: the run's folder, or a single checkpoint

    Raises UserError where there are none.
    """
    if match := _CHECKPOINT.fullmatch(run_dir.resolve().name):
        return [(int(match[1]), run_dir)]
    found = {
        int(match[1]): child
        for child in (run_dir.iterdir() if run_dir.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(child.name)) and _has_weights(child)
    }
    if _has_weights(run_dir) and (run_dir / _STATE).is_file():
        step = json.loads((run_dir / _STATE).read_text(encoding="utf-8")).get("global_step")
        if isinstance(step, int):
            found.setdefault(step, run_dir)
    if not found:
        raise UserError(
            f"{run_dir} has no checkpoints to measure; accepted: a folder with checkpoint-N/ that "
            "hold weights or adapters"
        )
    return sorted(found.items())


def facts_of(run_dir: Path, checkpoints: Sequence[tuple[int, Path]]) -> RunFacts:
    """What a run of `tokenq train` wrote down, or an adapter says of its base."""
    known: dict[str, Any] = {}
    record = run_dir / _RECORD
    if record.is_file():
        known = json.loads(record.read_text(encoding="utf-8")).get("settings", {})
    base = inspect(checkpoints[-1][1]).base
    reference = known.get("reference") or known.get("model_name_or_path")
    if isinstance(reference, list):  # several are a mean, which is no model
        reference = reference[0] if len(reference) == 1 else None
    return RunFacts(
        known.get("beta"),
        known.get("loss_type") or (),
        base.name if base is not None else reference,
        known.get("max_length"),
        known.get("truncation_mode") or "keep_start",
    )


def replay(
    folder: MonitorFolder,
    run: Replayed,
    options: ProbeOptions | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    on_progress: Callable[[int], None] = lambda step: None,
) -> History:
    """Read every checkpoint that `folder` has no reading of; returns all that it then holds.

    on_progress: called with the step of each reading that is there

    Raises UserError where the folder holds the readings of a live monitor, or of other pairs.
    """
    options = options or ProbeOptions()
    history = folder.history()
    pairs = _drawn(run, options)
    if history.setup is None:
        prober, setup = _opened(run, pairs, options)
        folder.write_setup(setup)
    else:
        setup = history.setup
        _check_same(folder.root, setup, pairs, run)
        prober = Prober.on(setup.probe, run.reference, setup.end_ids, options)
    done = {reading.step for reading in history.readings}
    for step, place in [(0, None), *run.checkpoints]:
        if step not in done:
            policy = (
                run.reference if place is None else load_policy(place, device=device, dtype=dtype)
            )
            reading = prober.read(policy, step, samples=True)
            del policy
            gc.collect()  # two models at most are in memory
            folder.append_reading(reading)
        on_progress(step)
    return folder.history()


def _drawn(run: Replayed, options: ProbeOptions) -> list[ProbePair]:
    held_out = run.held_out.draw(HELD_OUT, options.held_out, options.seed) if run.held_out else []
    trained = run.trained.draw(TRAINED, options.trained, options.seed) if run.trained else []
    return [*held_out, *trained]


def _opened(
    run: Replayed, pairs: Sequence[ProbePair], options: ProbeOptions
) -> tuple[Prober, Setup]:
    ends = set(end_tokens(causal_lm(run.reference)))
    if isinstance(run.tokenizer.eos_token_id, int):
        ends.add(run.tokenizer.eos_token_id)
    held_out = [pair for pair in pairs if pair.source == HELD_OUT]
    trained = [pair for pair in pairs if pair.source == TRAINED]
    prober = Prober.open(run.reference, held_out, trained, sorted(ends), options)
    setup = Setup(
        prober.probe,
        prober.baseline,
        run.beta,
        str(run.checkpoints[-1][1].parent if len(run.checkpoints) > 1 else run.checkpoints[0][1]),
        run.name,
        sorted(ends),
        {_REPLAYED: True, "options": asdict(options)},
    )
    return prober, setup


def _check_same(root: Path, setup: Setup, pairs: Sequence[ProbePair], run: Replayed) -> None:
    if not setup.facts.get(_REPLAYED):
        raise UserError(
            f"{root} holds what a monitor read while the run was trained; accepted: another --out, "
            "or no --data to look at it"
        )
    then, now = ([_plain(pair) for pair in each] for each in (setup.probe.pairs, pairs))
    for what, before, after in (
        ("pairs", then, now),
        ("reference", setup.reference, run.name),
        ("beta", setup.beta, run.beta),
    ):
        if before != after:
            shown = "" if what == "pairs" else f" ({before}, now {after})"
            raise UserError(
                f"{root} holds readings with other {what}{shown}; accepted: the same to go on, or "
                "another --out"
            )


def _plain(pair: ProbePair) -> tuple[Any, ...]:
    texts = (pair.prompt, pair.chosen, pair.rejected)
    return (pair.source, pair.row, *(tuple(ids) for ids in texts))


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
