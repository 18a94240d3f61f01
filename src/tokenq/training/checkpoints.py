"""Checkpoints that are whole or absent, and what they keep beyond transformers' own files."""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from tokenq.errors import UserError
from tokenq.storage import write_text
from tokenq.training.metrics import Cell

logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference.json"
ORACLE_FILE = "oracle.json"
PROGRESS_FILE = "progress.json"
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Progress:
    """What lies between two log lines, so that a resumed run logs what an unbroken one would.

    loss_sum:      sum of the losses since `logged_step`, mean over processes
    total:         sum of all losses before that
    seconds:       training time so far, all sessions
    stopped_early: the run ended here before its last step
    metrics:       the metric sums of the steps since the last log line
    """

    loss_sum: float
    total: float
    logged_step: int
    seconds: float
    stopped_early: bool
    metrics: list[dict[str, Cell]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `progress.json` into `folder`."""
        write_text(folder / PROGRESS_FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Progress | None":
        """Read it back, or None for a checkpoint that another tool wrote."""
        path = folder / PROGRESS_FILE
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        values["metrics"] = [
            {name: (cell[0], cell[1]) for name, cell in step.items()} for step in values["metrics"]
        ]
        return cls(**values)


def staging_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it gets its name."""
    return output_dir / f".checkpoint-{step}.part"


def publish(staging: Path, final: Path) -> None:
    """Give a written checkpoint its final name, its contents safely on disk first."""
    for path in staging.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        # Only a run that went back to an earlier checkpoint writes a step twice.
        shutil.rmtree(final)
    staging.replace(final)


def publish_files(staging: Path, final: Path) -> None:
    """Move the files and folders of a final save into `final` one by one, each whole."""
    final.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.iterdir()):
        target = final / path.name
        if target.is_dir():
            # A further adapter of an earlier save: a folder that is not empty cannot be replaced.
            shutil.rmtree(target)
        path.replace(target)
    staging.rmdir()


def clear_unfinished(output_dir: Path) -> list[Path]:
    """Delete what an interrupted save left behind; returns the deleted paths."""
    leftovers = sorted(output_dir.glob(".*.part")) if output_dir.is_dir() else []
    for path in leftovers:
        logger.warning("removing %s: the run was stopped while it was being written", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return leftovers


def last_complete(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that can be resumed from; says which ones it passes over."""
    if not output_dir.is_dir():
        return None
    for name in reversed(sort_checkpoints(str(output_dir))):
        checkpoint = Path(name)
        if problem := incomplete(checkpoint):
            logger.warning("skipping %s: %s", checkpoint, problem)
            continue
        return checkpoint
    return None


def incomplete(checkpoint: Path) -> str | None:
    """Say what a checkpoint folder lacks, or None."""
    state = checkpoint / STATE_FILE
    if not state.is_file():
        return f"it has no {STATE_FILE}"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return f"its {STATE_FILE} is cut off"
    for patterns in (("*model*.safetensors", "pytorch_model*"), ("optimizer*",)):
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            return f"it has no {patterns[0]}"
    return None


def resolve_resume(resume: str | bool | None, output_dir: Path) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` means; UserError if there is none."""
    if not resume:
        return None
    if resume is True or str(resume).lower() == "true":
        found = last_complete(output_dir)
        if found is None:
            raise UserError(f"resume_from_checkpoint: {output_dir} holds no complete checkpoint")
        return found
    path = Path(resume)
    if not path.is_dir():
        raise UserError(f"resume_from_checkpoint: {path} is no folder; give a checkpoint-N folder")
    if problem := incomplete(path):
        last = get_last_checkpoint(str(path))
        hint = f"; did you mean {last}?" if last else ""
        raise UserError(f"resume_from_checkpoint: {path} is no checkpoint: {problem}{hint}")
    return path
