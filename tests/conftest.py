"""One thread a process: the tests' tensors are small, and threads that wait for each other cost more than they do."""

import os
import signal

# A shell that runs the tests in its background has them ignore Ctrl-C, nohup has them ignore a closed terminal, and
# their processes with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Training on a CPU keeps the memory that it frees, for its next step (carp_plugin/training/memory.py). A worker of the
# tests trains hundreds of models and would hold the largest of each: here malloc is left alone.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(128 * 1024))

import gc

import pytest
import torch

import carp_plugin
from carp_plugin.settings import hydra_defaults
from tests.narrow import narrow_resnets

torch.set_num_threads(1)
carp_plugin.register()
hydra_defaults.install()


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
def nothing_is_left_in_cycles(narrow):
    """A trainer, its model and its optimizer refer to each other: only the garbage collector frees them."""
    yield
    gc.collect()
