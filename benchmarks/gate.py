"""Contestants in processes of their own that take one step at a time, on request.

Separate processes give each its own peak memory; the requests let steps alternate, so that a
machine that changes its speed changes it for all.
"""

import multiprocessing as mp
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback


class Gate(TrainerCallback):
    """Wait for a request before every optimiser step; answer with its time and the peak memory."""

    def __init__(self, pipe: Connection) -> None:
        """`pipe` leads to :func:`contestants`."""
        self.pipe = pipe

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Start the clock when asked."""
        self.pipe.send("ready")
        self.pipe.recv()
        self.usage = resource.getrusage(resource.RUSAGE_SELF)
        self.start = time.perf_counter()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Stop it when the weights are updated."""
        seconds = time.perf_counter() - self.start
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.pipe.send(
            {
                "seconds": seconds,
                "user": usage.ru_utime - self.usage.ru_utime,
                "system": usage.ru_stime - self.usage.ru_stime,
                "peak_gib": usage.ru_maxrss / 2**20,
            }
        )


def _work(name: str, job: Any, threads: int, pipe: Connection) -> None:
    os.environ.update(
        OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1"
    )
    import torch

    from benchmarks.contestants import CONTESTANTS

    torch.set_num_threads(threads)
    CONTESTANTS[name](job, Gate(pipe)).train()
    pipe.send("done")


@contextmanager
def contestants(jobs: dict[str, Any], threads: int) -> Iterator[dict[str, Connection]]:
    """Start a process for each named job; yield a pipe to each that waits before its first step."""
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, job in jobs.items():
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(name, job, threads, there), daemon=True)
        process.start()
        there.close()
        if here.recv() != "ready":
            raise RuntimeError(f"{name} did not get to its first step")
        pipes[name] = here
        processes.append(process)
    try:
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def take_step(pipe: Connection) -> dict[str, float]:
    """Let one contestant take one optimiser step; return its measurements."""
    pipe.send("go")
    measured: dict[str, float] = pipe.recv()
    pipe.recv()  # "ready" for the next, or "done"
    return measured
