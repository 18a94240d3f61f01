"""One name for each metric of preference training, whichever trainer logged it: TRL's.

Nothing is left out: a name that is not known here stays as it was.
"""

import re
from collections.abc import Mapping
from typing import Any

EVAL = "eval_"
STEP_NAMES = (
    "step",
    "global_step",
    "train/global_step",
    "trainer/global_step",
    "training_step",
    "_step",
    "Step",
)
"""What a log calls its number of optimiser steps; W&B's own count of its lines comes last."""

_NAMES = {
    "log_probs/chosen": "logps/chosen",
    "log_probs/rejected": "logps/rejected",
    "rewards/accuracy": "rewards/accuracies",
    "rewards/margin": "rewards/margins",
    "chosen_reward": "rewards/chosen",
    "reject_reward": "rewards/rejected",
    "acc": "rewards/accuracies",
    "lr": "learning_rate",
}
"""torchtune's, open-instruct's, OpenRLHF's."""

_PREFIXES = (("train/", ""), ("eval/", EVAL), ("test/", EVAL), ("valid/", EVAL))
_MITCHELL = re.compile(r"(\w+?)_(train|eval|test)/(chosen|rejected|accuracies|margins)")
_MITCHELL_LOSS = re.compile(r"loss/(train|eval|test)")


def trl_name(name: str) -> str:
    """What TRL calls the metric; of evaluations with `eval_` before it.

    `rewards_train/chosen` (the DPO paper's code) is `rewards/chosen`, `eval/loss` is `eval_loss`;
    "my run - train/loss" (a table saved from W&B) is `loss`.
    """
    before, name = "", name.rsplit(" - ", 1)[-1]
    for prefix, ours in _PREFIXES:
        if name.startswith(prefix):
            before, name = ours, name.removeprefix(prefix)
            break
    else:
        if name.startswith(EVAL):
            before, name = EVAL, name.removeprefix(EVAL)
    if match := _MITCHELL.fullmatch(name):
        before = before or _split(match[2])
        name = f"{match[1]}/{match[3]}"
    elif match := _MITCHELL_LOSS.fullmatch(name):
        before, name = before or _split(match[1]), "loss"
    return before + _NAMES.get(name, name)


def trl_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """A log line under TRL's names, with the margin where only the two rewards are there.

    Where two names of the line are the same metric, the one that needs no change counts.
    open-instruct's `train_loss` is the loss; in the last line of `transformers` it is the whole
    run's, and stays.
    """
    named = {trl_name(name): value for name, value in line.items() if trl_name(name) != name}
    named |= {name: value for name, value in line.items() if trl_name(name) == name}
    if "train_runtime" not in line and "train_loss" in named:
        named.setdefault("loss", named.pop("train_loss"))
    for split in ("", EVAL):
        ours, theirs = (named.get(f"{split}rewards/{side}") for side in ("chosen", "rejected"))
        if isinstance(ours, int | float) and isinstance(theirs, int | float):
            named.setdefault(f"{split}rewards/margins", ours - theirs)
    return named


def _split(word: str) -> str:
    return "" if word == "train" else EVAL
