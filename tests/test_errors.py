"""Sentences for what other programs' errors mean."""

import pytest

from carp_plugin.commands.cli import saying_mistakes
from carp_plugin.errors import worker_ended

KILLED = "DataLoader worker (pid 7989) is killed by signal: Killed. "
BUS = (
    "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
LEFT = "DataLoader worker (pid(s) 3, 4) exited unexpectedly"


@pytest.mark.parametrize(
    "text, words",
    [
        (KILLED, ["process 7989", "killed by signal: Killed", "ran out of memory"]),
        (BUS, ["process 12", "killed by signal: Bus error;", "/dev/shm is full", "shm size"]),
        (LEFT, ["process 3, 4", "exited unexpectedly", "ran out of memory"]),
    ],
)
def test_a_worker_that_ended_is_named_with_the_likely_reason(text, words):
    said = worker_ended(RuntimeError(text))
    assert all(word in said for word in words)


def test_other_errors_are_not_taken_for_a_worker():
    assert worker_ended(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert worker_ended(ValueError(KILLED)) is None
    assert worker_ended(RuntimeError("Caught ValueError in DataLoader worker process 0.")) is None


@pytest.mark.parametrize("text", [KILLED, BUS, LEFT])
def test_every_command_leaves_with_2_and_one_sentence(text, capsys):
    with pytest.raises(SystemExit) as left, saying_mistakes():
        raise RuntimeError(text)
    assert left.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: a worker that reads images") and "--num_workers 0" in said
