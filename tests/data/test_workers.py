"""Workers that read images: forked where the system can, whatever the default way to start a process."""

import multiprocessing
import subprocess
import sys

import pytest
import torch

from carp_plugin.data.epochs import epoch_loader
from tests.run_cli import ROOT

SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv[1])
import torch
from carp_plugin.data.epochs import epoch_loader

def local():
    class Local(torch.utils.data.Dataset):  # as the hosts' data sets are
        def __len__(self): return 6
        def __getitem__(self, index): return torch.rand(1), index
    return Local()

print([batch[1].tolist() for batch in epoch_loader(local(), 2, 1, seed=3)])
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_local_data_set_is_read_whatever_the_start_method(method):
    """The default of macOS, and of Linux from Python 3.14 on."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, method],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    without = [batch[1].tolist() for batch in epoch_loader(_Numbers(), 2, 0, seed=3)]
    assert done.stdout.strip() == str(without)


class _Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.rand(1), index


def test_without_workers_nothing_is_started():
    before = set(multiprocessing.active_children())
    loader = epoch_loader(_Numbers(), 2, 0, seed=0)
    assert loader.multiprocessing_context is None and len(list(loader)) == 3
    assert set(multiprocessing.active_children()) <= before
