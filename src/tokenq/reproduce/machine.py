"""The machine that results were measured on, for their files; benchmarks name it alike."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Name of the CPU as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
