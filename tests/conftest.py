"""One thread a process: the tests' tensors are small, and threads that wait for each other cost more than they do."""

import gc
import os
import signal
from pathlib import Path

# A shell that runs the tests in its background has them ignore Ctrl-C, nohup has them ignore a closed terminal, and
# their processes with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Training on a CPU keeps the memory that it frees, for its next step (carp_plugin/training/memory.py). A worker of the
# tests trains hundreds of models and would hold the largest of each: here malloc is left as it is, by tuning nothing.
os.environ.setdefault("GLIBC_TUNABLES", "")

import pytest
import torch

import carp_plugin
from carp_plugin.settings import hydra_defaults
from tests.narrow import narrow_resnets

torch.set_num_threads(1)
carp_plugin.register()
hydra_defaults.install()

#: Bytes that a process of the tests may hold at most.
LARGEST_WORKER = 3 * 10**9


def peak_memory() -> int:
    """Bytes that this process held at most since it began; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def pytest_runtest_setup(item):
    """What needs a card is skipped where there is none."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none on this machine")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Where the test's tensors are: it runs on the CPU everywhere, and on the first card where there is one."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """What a test writes to the working directory goes where pytest cleans up."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def narrow(request):
    """What is trained in this process is small, unless the module says ``FULL_WIDTH = True``."""
    if getattr(request.module, "FULL_WIDTH", False):
        yield
    else:
        with narrow_resnets():
            yield


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back(narrow):
    """Two workers and what they start have to fit a laptop. A trainer, its model and its optimizer refer to each
    other: only the garbage collector frees them."""
    before = peak_memory()
    yield
    gc.collect()
    assert peak_memory() < LARGEST_WORKER or before >= LARGEST_WORKER, (
        f"this file made its worker grow from {before / 1e9:.1f} to {peak_memory() / 1e9:.1f} GB"
    )
