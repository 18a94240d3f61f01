"""A loss or gradient that is not finite: which rows and which tensor, saved before the end."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenq.errors import UserError
from tokenq.storage import write_text
from tokenq.training.scores import Scores

FILE = "nan_batch.json"


@dataclass(frozen=True)
class Trace:
    """What one micro-batch computed: its row numbers and named tensors, detached."""

    rows: tuple[int, ...]
    tensors: dict[str, Tensor]

    def not_finite(self) -> list[str]:
        """Names of the tensors that hold a NaN or an infinity."""
        return [name for name, value in self.tensors.items() if not torch.isfinite(value).all()]


def named_tensors(scores: Scores) -> dict[str, Tensor]:
    """Return what a batch's answers scored, by the name that an error message gives it."""
    sources = {"logps": scores.logps, "ref_logps": scores.ref_logps or [], **scores.features}
    sides = {0: "chosen", 1: "rejected"} if scores.batch.kind == "preference" else {}
    tensors: dict[str, list[Tensor]] = {}
    places = scores.batch.places()
    for name, rows in sources.items():
        for (_, number), row in zip(places, rows, strict=False):
            tensors.setdefault(f"{name} of {sides.get(number, 'completion')}", []).append(row)
    return {name: torch.cat(rows).detach() for name, rows in tensors.items()}


def first_bad_gradients(model: nn.Module, most: int = 5) -> list[str]:
    """Names of the first parameters whose gradient is not finite."""
    bad = []
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            bad.append(name)
            if len(bad) == most:
                break
    return bad


def describe(traces: Iterable[Trace], model: nn.Module) -> tuple[list[int], list[str]]:
    """Return the rows and the tensors to blame: log-probs and losses before gradients."""
    traces = list(traces)
    guilty = [trace for trace in traces if trace.not_finite()]
    if guilty:
        names = sorted({name for trace in guilty for name in trace.not_finite()})
        return sorted({row for trace in guilty for row in trace.rows}), names
    names = [f"gradient of {name}" for name in first_bad_gradients(model)]
    return sorted({row for trace in traces for row in trace.rows}), names


@dataclass(frozen=True)
class Finding:
    """Where a run met a number that is not finite: optimiser step, rows of the source, tensors."""

    step: int
    rows: list[int]
    tensors: list[str]

    def save(self, path: Path) -> None:
        """Write the finding as JSON, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    def error(self, path: Path) -> UserError:
        """Return the error that ends the run; `path` is where the finding was saved."""
        shown = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        return UserError(
            f"step {self.step}: {', '.join(self.tensors[:3]) or 'the gradient norm'} is not finite "
            f"(rows {shown}; saved in {path}); check these rows and the weights, or lower "
            "learning_rate"
        )
