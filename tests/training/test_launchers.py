"""What a launcher says to a process, and a run of two processes that goes wrong."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from carp_plugin.commands.cli import saying_mistakes
from carp_plugin.errors import UserError
from carp_plugin.terminal import is_first_of_node, is_main_process
from carp_plugin.training.callbacks.interrupt import part_in_peace
from carp_plugin.training.devices import machine_of
from carp_plugin.training.launchers import another_ended
from tests.helpers import image_folder, small_settings
from tests.launching import LAUNCHERS, TRAIN, environment, job, run, wait_until, write_config
from tests.training.test_interruption import assert_same

TWO = ["devices=2", "strategy=ddp", "optimizer.batch_size=4", "evaluation.enabled=False"]

ELASTIC = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_NAME": "carp", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
SLURM_TASKS = {**SLURM, "SLURM_NTASKS_PER_NODE": "2"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def launched(monkeypatch):
    """Puts a launcher's variables in place of those that are there."""

    def put(variables):
        for key in [key for key in os.environ if key.startswith((*LAUNCHERS, "NODE_RANK"))]:
            monkeypatch.delenv(key)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)

    return put


# (who starts, what it says, the first of all?, the first of its node?)
PLACES = [
    ("nobody", {}, True, True),
    ("torchrun, the first", {**ELASTIC, "RANK": "0", "LOCAL_RANK": "0"}, True, True),
    ("torchrun, second node", {**ELASTIC, "RANK": "2", "LOCAL_RANK": "0"}, False, True),
    ("torchrun, the last", {**ELASTIC, "RANK": "3", "LOCAL_RANK": "1"}, False, False),
    ("Lightning, second process", {"LOCAL_RANK": "1", "NODE_RANK": "0"}, False, False),
    ("Lightning, second node", {"NODE_RANK": "1"}, False, True),
    ("srun, the first", {**SLURM_TASKS, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True, True),
    ("srun, second node", {**SLURM_TASKS, "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, False, True),
    ("srun, the last", {**SLURM_TASKS, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False, False),
    ("a shell of SLURM", {**SLURM, "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}, True, True),
]


@pytest.mark.parametrize(
    "variables, main, first", [p[1:] for p in PLACES], ids=[p[0] for p in PLACES]
)
def test_each_process_knows_its_place(variables, main, first, launched):
    launched(variables)
    assert (is_main_process(), is_first_of_node()) == (main, first)


MISMATCHES = [
    (
        ELASTIC,
        8,
        2,
        r"torchrun started 4 processes, but 8 devices on 2 nodes .* devices=2 num_nodes=2",
    ),
    (
        SLURM_TASKS,
        4,
        1,
        r"SLURM has tasks-per-node=2 and nodes=2, but .*devices=4 and num_nodes=1.*devices=2 num_nodes=2",
    ),
    (SLURM, 2, 2, r"use --nodes=2 --ntasks-per-node=2 in place of --ntasks"),
    ({"SLURM_NTASKS": "1"}, 2, 1, r"srun must start one task a device"),
]


@pytest.mark.parametrize("variables, devices, nodes, says", MISMATCHES)
def test_processes_that_would_wait_for_others_say_so(
    variables, devices, nodes, says, launched, images
):
    launched(variables)
    with pytest.raises(UserError, match=says):
        machine_of(small_settings(images, devices=devices, num_nodes=nodes))


@pytest.mark.parametrize(
    "variables", [ELASTIC, SLURM_TASKS, {**SLURM, "SLURM_JOB_NAME": "bash"}, {}]
)
def test_as_many_devices_as_processes_are_right(variables, launched, images):
    launched(variables)
    machine = machine_of(small_settings(images, devices=2, num_nodes=2))
    assert (machine.devices, machine.nodes, machine.world) == ((0, 1), 2, 4)


def test_synchronised_batch_norm_needs_gpus_where_there_are_several_processes(launched, images):
    launched({})
    with pytest.raises(
        UserError, match="synchronises batch norm on GPUs alone; add sync_batchnorm=False"
    ):
        machine_of(small_settings(images, devices=2, sync_batchnorm=True))
    machine_of(small_settings(images, devices=1, sync_batchnorm=True))


@pytest.mark.parametrize(
    "message, lost",
    [
        ("[pair.cc:561] Connection closed by peer [127.0.0.1]:62596. This is typically", True),
        ("NCCL communicator was aborted on rank 0", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_lost_process_is_told_from_other_failures(message, lost):
    assert another_ended(RuntimeError(message)) == lost


@pytest.mark.slow
def test_an_image_that_one_rank_cannot_read_ends_all_and_is_named_once(images, tmp_path):
    bad = image_folder(tmp_path / "bad")
    (bad / "train" / "class_0" / "0.png").write_bytes(b"not an image")
    named = write_config(tmp_path / "configs", bad, data__max_bad_fraction=0)
    ended = run(tmp_path, *named, *TWO)  # which shows that no process is left
    assert ended.code == 2 and "Traceback" not in ended.out + ended.err, ended
    own = [line for line in ended.mistakes if "class_0/0.png cannot be read" in line]
    others = [line for line in ended.mistakes if "another process of this run has ended" in line]
    assert len(own) == 1 and len(own) + len(others) == len(ended.mistakes), ended.err
    assert not list(tmp_path.rglob("summary.json"))


def test_a_process_that_was_told_to_stop_is_not_killed_as_the_others_leave(monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    left = SimpleNamespace(poll=lambda: None, returncode=143, pid=7, send_signal=killed.append)
    observers = [_ChildProcessObserver(1, [left], sleep_period=0.05) for _ in range(2)]
    observers[0].start()
    observers[0].join()
    assert len(killed) == 2  # as Lightning does, which this is about
    killed.clear()
    observers[1]._sleep_period = 0.5
    observers[1].start()
    part_in_peace()
    observers[1].join()
    assert killed == []


@pytest.mark.slow
def test_sigterm_ends_both_ranks_after_a_checkpoint_and_resumed_they_end_as_a_whole_run(
    images, tmp_path
):
    named = write_config(tmp_path / "configs", images, max_epochs=8, auto_resume={"enabled": True})
    command = [sys.executable, "-W", "ignore", TRAIN, *named, *TWO]
    with job(tmp_path, (command, environment())) as started:
        wait_until(lambda: list(tmp_path.rglob("*.ckpt")), 150)
        os.kill(started.processes[0].pid, signal.SIGTERM)
        (ended,) = started.ended(60)
        wait_until(lambda: not started.left(), 20)
    assert ended.code == 128 + signal.SIGTERM, ended
    assert ended.err.count("interrupted in epoch") == 1 and "Traceback" not in ended.err
    assert not list(tmp_path.rglob("*.part"))
    resumed = run(tmp_path, *named, *TWO)
    assert resumed.code == 0 and resumed.out.count("resuming from") == 1, resumed
    whole = run(tmp_path, *named, *TWO, "checkpoint.dir=whole")
    assert whole.code == 0, whole
    ends = []
    for folder in ("trained_models", "whole"):
        (path,) = (tmp_path / folder).rglob("*-ep=7.ckpt")
        content = torch.load(path, weights_only=True)
        ends.append({key: content[key] for key in ("state_dict", "optimizer_states")})
    assert_same(*ends)


STRAYS = [
    ({"LOCAL_RANK": "0"}, "says LOCAL_RANK=0, .* `unset LOCAL_RANK`, or start it with torchrun"),
    ({"LOCAL_RANK": "1"}, "says LOCAL_RANK=1"),
    ({"RANK": "0", "WORLD_SIZE": "1"}, "says RANK=0, WORLD_SIZE=1, .* `unset RANK WORLD_SIZE`"),
    ({"NODE_RANK": "0"}, "says NODE_RANK=0"),
    ({"GROUP_RANK": "1", "MASTER_ADDR": "a"}, "says GROUP_RANK=1"),
]


@pytest.mark.parametrize("variables, says", STRAYS, ids=[str(s[0]) for s in STRAYS])
def test_a_variable_that_a_launcher_has_left_behind_is_named(variables, says, launched, tmp_path):
    """Lightning would wait for the others for ever, or train as rank 1 of nothing."""
    launched(variables)
    for devices in (1, 2):
        with pytest.raises(UserError, match=says):
            machine_of(small_settings(tmp_path, devices=devices, strategy="ddp"))


def test_the_process_that_is_taken_for_another_rank_says_so_itself(launched, tmp_path, capsys):
    """Of several ranks the first speaks; here there is no first."""
    launched({"LOCAL_RANK": "1"})
    with pytest.raises(SystemExit) as left, saying_mistakes():
        machine_of(small_settings(tmp_path))
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: the environment says LOCAL_RANK=1")


def test_processes_that_are_started_by_hand_know_their_master(launched, tmp_path):
    by_hand = {"LOCAL_RANK": "0", "NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    launched(by_hand)
    assert machine_of(small_settings(tmp_path, devices=1, num_nodes=2)).world == 2
    launched({})
    assert machine_of(small_settings(tmp_path)).world == 1
