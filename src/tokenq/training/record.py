"""Which settings an output folder belongs to: the same go on, others are refused."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from tokenq.errors import UserError
from tokenq.monitor.journal import FOLDER
from tokenq.storage import write_text

logger = logging.getLogger(__name__)

RECORD_FILE = "run.json"

SESSION_ONLY = {
    "overwrite_output_dir", "resume_from_checkpoint", "output_dir", "run_name", "project",
    "disable_tqdm", "report_to", "log_level", "log_level_replica", "log_on_each_node",
    "dataset_num_proc", "dataloader_num_workers", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "push_to_hub", "hub_token", "hub_model_id", "hub_strategy",
    "hub_private_repo", "hub_always_push", "hub_revision", "token_budget", "compile_layers",
    "reference_cache_dir", "ddp_timeout", "local_rank", "save_total_limit",
    "monitor", "monitor_budget", "monitor_steps", "monitor_samples",
}  # fmt: skip
"""Settings that may change between sessions of a run: the trajectory does not depend on them."""


def settings_of(*arguments: Any) -> dict[str, Any]:
    """Return the settings that make a run what it is, as plain JSON values."""
    values: dict[str, Any] = {}
    for part in arguments:
        values |= part.to_dict() if hasattr(part, "to_dict") else dataclasses.asdict(part)
    kept = {name: value for name, value in values.items() if name not in SESSION_ONLY}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def difference(folder: Path, settings: dict[str, Any]) -> str | None:
    """Say how the run in `folder` differs from `settings`; None if it does not."""
    path = folder / RECORD_FILE
    if not path.is_file():
        found = sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []
        return f"it holds {found[0].name}, which tokenq train did not write" if found else None
    then = json.loads(path.read_text(encoding="utf-8"))["settings"]
    changed = [key for key in {**then, **settings} if then.get(key) != settings.get(key)]
    if not changed:
        return None
    key = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    before, now = (
        "unset" if values.get(key) is None else repr(values[key]) for values in (then, settings)
    )
    return f"its run has {key} {before}, now it is {now}{more}"


def claim(folder: Path, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write down that `folder` belongs to the run with these settings."""
    text = json.dumps({"settings": settings, **facts}, indent=2, sort_keys=True, default=str)
    write_text(folder / RECORD_FILE, text + "\n")


def refuse_other_run(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError if `folder` belongs to a run with other settings."""
    if problem := difference(folder, settings):
        raise UserError(
            f"output_dir: {folder} is in use: {problem}; choose another folder, "
            "--overwrite_output_dir to start over, or --resume_from_checkpoint PATH to go on from "
            "there with the new settings"
        )


def clear(folder: Path) -> None:
    """Delete the checkpoints, the readings and the record of an earlier run, and nothing else."""
    for path in [*folder.glob("checkpoint-*"), *folder.glob(".*.part"), *folder.glob(FOLDER)]:
        logger.warning("removing %s", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / RECORD_FILE).unlink(missing_ok=True)
