"""What the machine can do, measured: the matrix-product rate that bounds a training step."""

import statistics
import time
from typing import Any

import torch

from tokenq.reproduce.machine import processor_name


def gemm_rate(rows: int, hidden: int, inner: int, repeats: int = 15) -> float:
    """Return the median FLOP/s of the three fp32 products of a linear layer's training step.

    [rows, hidden] x [hidden, inner] forward, and the gradients of input and weight; median over
    `repeats` of the three together.
    """
    x, w, g = torch.randn(rows, hidden), torch.randn(inner, hidden), torch.randn(rows, inner)
    rates = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        torch.mm(g, w)
        torch.mm(g.t(), x)
        rates.append(3 * 2 * rows * hidden * inner / (time.perf_counter() - start))
    return statistics.median(rates[2:])


def describe(threads: int) -> dict[str, Any]:
    """Return what a reader needs to place the numbers."""
    import importlib.metadata as metadata

    packages = ("torch", "transformers", "trl", "accelerate", "peft")
    return {
        "processor": processor_name(),
        "threads": threads,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in packages},
    }
