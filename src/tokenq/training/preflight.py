"""What can be known before training to fail: an output folder or disk that cannot take the run."""

import shutil
from pathlib import Path

from torch import nn
from transformers.training_args import OptimizerNames

from tokenq import storage
from tokenq.errors import UserError
from tokenq.training.config import PreferenceConfig

OPTIMIZER_STATES = {"sgd": 0.0, "lion": 1.0, "adafactor": 0.1, "8bit": 0.5, "adam": 2.0}
"""fp32 numbers an optimiser keeps for a trainable parameter, by a part of its name; first match."""


def check_writable(folder: Path) -> None:
    """Create `output_dir` and a file in it; raises UserError where that is not possible."""
    storage.check_writable(folder, "output_dir")


def checkpoint_bytes(model: nn.Module, optimizer: str, save_only_model: bool) -> int:
    """Size of one checkpoint: saved weights and, unless left out, the optimiser's state."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    adapter_only = hasattr(model, "peft_config")
    saved = trainable if adapter_only else list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in saved)
    if save_only_model:
        return weights
    states = next((n for part, n in OPTIMIZER_STATES.items() if part in optimizer), 2.0)
    if optimizer == "sgd":
        states = 0.0
    return weights + int(sum(p.numel() for p in trainable) * states * 4)


def needed_bytes(model: nn.Module, args: PreferenceConfig, saves: int) -> int:
    """Bytes of all checkpoints that exist at once, and of the final weights."""
    optimizer = OptimizerNames(args.optim).value
    each = checkpoint_bytes(model, optimizer, args.save_only_model)
    if args.sync_ref_model and not args.save_only_model:
        each += checkpoint_bytes(model, optimizer, save_only_model=True)  # the moving reference
    kept = min(saves, (args.save_total_limit or saves) + 1)  # the new one before an old one goes
    return each * kept + checkpoint_bytes(model, optimizer, save_only_model=True)


def check_disk(model: nn.Module, args: PreferenceConfig, saves: int) -> None:
    """Raise UserError if the disk of the output folder is too small for the checkpoints to come."""
    needed = needed_bytes(model, args, saves)
    free = shutil.disk_usage(args.folder).free
    already = sum(
        path.stat().st_size for path in args.folder.glob("checkpoint-*/*") if path.is_file()
    )
    if needed > free + already:
        raise UserError(
            f"output_dir: {args.output_dir} has {_size(free)} free, but the checkpoints will take "
            f"about {_size(needed)}; free space, or lower save_total_limit, or set save_only_model"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
