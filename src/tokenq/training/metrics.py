"""Weighted means of metrics over micro-batches and processes, averaged over optimiser steps."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

Cell = tuple[float, float]
"""Weighted sum and weight of one metric in one step."""


class MetricWindow:
    """Metrics since the last time they were logged.

    Within a step a metric is the exact weighted mean over micro-batches and processes; over the
    steps of the window it is the plain mean, as TRL logs it. Values stay on the device until they
    are read, so that adding them waits for nothing.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, list[tuple[Tensor, Tensor]]]] = []
        self._restored: list[dict[str, Cell]] = []

    def begin_step(self) -> None:
        """Open the next step; what is added from now on belongs to it."""
        self._steps.append(defaultdict(list))

    def add(self, name: str, value: Tensor, weight: Tensor) -> None:
        """Add a mean `value` over `weight` terms (0-dim tensors) to the current step."""
        self._steps[-1][name].append((value.detach() * weight, weight))

    def cells(self) -> list[dict[str, Cell]]:
        """Return this process's sums of every step."""
        names = [(i, name) for i, step in enumerate(self._steps) for name in step]
        sums = [
            torch.stack(
                [torch.stack([s.double(), w.double()]) for s, w in self._steps[i][name]]
            ).sum(0)
            for i, name in names
        ]
        cells: list[dict[str, Cell]] = [dict(step) for step in self._restored]
        cells += [{} for _ in range(len(self._steps))]
        if sums:
            offset = len(self._restored)
            for (i, name), (total, weight) in zip(names, torch.stack(sums).tolist(), strict=True):
                cells[offset + i][name] = (total, weight)
        return cells

    def restore(self, cells: list[dict[str, Cell]], *, first: bool = True) -> None:
        """Put back the sums that a checkpoint kept.

        They are those of all processes, so only the `first` one takes them; the others take as many
        empty steps, without which their next steps would be merged into the restored ones.
        """
        self._restored = cells if first else [{} for _ in cells]
        self._steps = []

    def clear(self) -> None:
        """Forget everything, after it has been logged."""
        self._steps, self._restored = [], []


def merge(processes: Iterable[list[dict[str, Cell]]]) -> list[dict[str, Cell]]:
    """Add up the cells of several processes, step by step."""
    merged: list[dict[str, Cell]] = []
    for cells in processes:
        merged += [{} for _ in range(len(cells) - len(merged))]
        for step, process_step in zip(merged, cells, strict=False):
            for name, (total, weight) in process_step.items():
                before = step.get(name, (0.0, 0.0))
                step[name] = (before[0] + total, before[1] + weight)
    return merged


def means(cells: list[dict[str, Cell]]) -> dict[str, float]:
    """Mean over steps of each metric's weighted mean; steps without the metric do not count."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for step in cells:
        for name, (total, weight) in step.items():
            if weight:
                by_name[name].append(total / weight)
    return {name: sum(values) / len(values) for name, values in by_name.items()}
