"""Time and peak memory of a call; imports nothing but torch, for the processes that are measured."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

import torch


class PeakMemory:
    """Largest memory within a ``with`` block beyond what was held when it began: ``.bytes`` afterwards.

    On CUDA what torch allocated; on Linux the resident memory of the process, whose mark is reset first; elsewhere how
    far the process's high-water mark rose, which misses what stayed below an earlier peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device
        self._start = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")
            self._start = _linux_memory("VmRSS")
        else:
            self._start = _high_water_mark()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _linux_memory("VmHWM") if sys.platform == "linux" else _high_water_mark()
        self.bytes = peak - self._start


def _linux_memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 2**10
    raise OSError(f"/proc/self/status has no {key}")


def _high_water_mark() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10


def memory_of(device: torch.device) -> int:
    """Bytes that the device could still give; on systems that do not tell, all of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of one call, in seconds, with the device idle before and after."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def in_turns(
    calls: Mapping[str, Callable[[], Any]], turns: int, device: torch.device
) -> Dict[str, List[float]]:
    """Seconds of every call in every turn; a machine that is busy for a while slows all of them."""
    seconds: Dict[str, List[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call, device))
    return seconds


def medians(runs: Mapping[str, List[float]]) -> Dict[str, float]:
    """The median of each list that is not empty."""
    return {name: statistics.median(values) for name, values in runs.items() if values}
