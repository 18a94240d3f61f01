"""How this process gets its memory back: glibc's allocator, tuned for tensors that come and go."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB for reuse; return whether that could be set.

    By default every freed tensor above a few MiB goes back to the kernel, and the next one of that
    size is faulted in again page by page and zeroed. A training step on CPU allocates the same
    tensors over and over, so that is pure loss. Holds for the whole process; on other C libraries
    nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
