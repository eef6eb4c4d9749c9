"""Memory that was freed is taken again without fresh pages from the system, unless the user has decided otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from carp_plugin.training.memory import DECIDED, keep_freed_memory

#: Fills and frees blocks on either side of the 32 MB above which glibc maps; prints the page faults of later rounds.
FAULTS = """
import resource, sys, torch
from carp_plugin.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    for megabytes in (8, 24, 48, 96):
        torch.empty(megabytes * 2**20, dtype=torch.uint8).fill_(1)
for _ in range(4):  # until the heap has found its shape
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    command = [sys.executable, "-W", "ignore", "-c", FAULTS, how]
    environment = {key: value for key, value in os.environ.items() if key not in DECIDED}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc is not the C library here")
def test_a_step_takes_the_pages_of_the_one_before():
    kept, returned = faults("keep"), faults("return")
    assert kept < 0.1 * returned, (kept, returned)


@pytest.mark.parametrize("name", DECIDED)
def test_what_the_user_decided_stands(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()
