"""`tokenq train` that kills itself with SIGKILL at a chosen moment.

Run as: python killed_training.py MOMENT [arguments of tokenq train]. The moments:

optimizer:N  while optimizer.pt of step N's checkpoint is being written
publish:N    when step N's checkpoint is written but has not got its name yet
rotate:N     after step N's checkpoint has its name, before older ones are deleted
step:N       in step N, after the backward pass
final        while the final model is moved into place
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tokenq.cli.main import main
from tokenq.training import checkpoints, saving, trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_writing_the_optimizer(step: int) -> None:
    save = torch.save

    def half_written(value: Any, path: Any, *args: Any, **options: Any) -> None:
        save(value, path, *args, **options)
        if f"checkpoint-{step}.part" in str(path) and Path(path).name == "optimizer.pt":
            size = os.path.getsize(path)
            os.truncate(path, size // 2)
            die()

    torch.save = half_written


def kill_before(function: str, step: int) -> None:
    original = getattr(checkpoints, function)

    def deadly(staging: Path, final: Path) -> None:
        if final.name == f"checkpoint-{step}":
            die()
        original(staging, final)

    setattr(checkpoints, function, deadly)


def kill_before_rotation(step: int) -> None:
    original = saving.rotate_checkpoints

    def deadly(output_dir: str, **options: Any) -> None:
        if (Path(output_dir) / f"checkpoint-{step}").exists():
            die()
        original(output_dir, **options)

    saving.rotate_checkpoints = deadly


def kill_in_step(step: int) -> None:
    original = trainer.PreferenceTrainer.training_step

    def deadly(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        loss = original(self, *args, **options)
        if self.state.global_step + 1 == step:
            die()
        return loss

    trainer.PreferenceTrainer.training_step = deadly


def kill_in_the_final_save() -> None:
    original = Path.replace

    def deadly(self: Path, target: Any) -> Path:
        if self.parent.name == ".final.part" and self.name == "model.safetensors":
            die()
        return original(self, target)

    Path.replace = deadly


if __name__ == "__main__":
    moment, _, number = sys.argv[1].partition(":")
    arm = {
        "optimizer": lambda: kill_while_writing_the_optimizer(int(number)),
        "publish": lambda: kill_before("publish", int(number)),
        "rotate": lambda: kill_before_rotation(int(number)),
        "step": lambda: kill_in_step(int(number)),
        "final": kill_in_the_final_save,
        "never": lambda: None,
    }
    arm[moment]()
    sys.exit(main(["train", *sys.argv[2:]]))
