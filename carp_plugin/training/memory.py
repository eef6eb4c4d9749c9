"""Memory of the process: how malloc keeps it, and its peak."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

import torch

#: Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

#: By these a user has decided already how malloc is to behave.
DECIDED = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)


def keep_freed_memory() -> bool:
    """Tells malloc to keep what is freed, for training on a CPU; to be called before the model is built.

    glibc maps every block above 32 MB anew and gives freed memory back to the system, which then hands it out page by
    page and filled with zeros. The activations of a step are gigabytes of such blocks. `benchmarks/step.py --memory
    returned` measures what that costs. The process holds the memory of its largest step until it ends.

    Returns:
        bool: whether malloc was told. It is left alone where it is not glibc's, and where one of the environment
        variables in ``DECIDED`` is set.
    """
    if sys.platform != "linux" or any(name in os.environ for name in DECIDED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # -1 is the largest threshold there is; with no maps allowed, large blocks too come from the heap. Both return 1.
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))


def peak_memory_mb() -> int:
    """Peak memory of the process so far, of the device where it is a GPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
