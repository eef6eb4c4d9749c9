"""Starts main_pretrain.py as a user would, in processes of its own, and knows which are left."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import yaml
from omegaconf import OmegaConf

from tests.helpers import small_cfg

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "main_pretrain.py")

#: What a launcher tells its processes; a test starts from an environment without any of it.
LAUNCHERS = ("RANK", "LOCAL_", "WORLD_", "GROUP_", "ROLE_", "TORCHELASTIC_", "SLURM_", "MASTER_")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def mistakes(self) -> List[str]:
        """The lines that say a mistake of the user's."""
        return [line for line in self.err.splitlines() if "error: " in line]


def write_config(folder: Path, images: Path, **changes: Any) -> List[str]:
    """Writes the small configuration to ``folder`` and returns the arguments that name it."""
    content: Any = OmegaConf.to_container(small_cfg(images, **changes))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return ["--config-path", str(folder), "--config-name", "small.yaml"]


def environment(**more: Any) -> Dict[str, str]:
    """This process's, without what a launcher may have said to it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    return {**kept, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in more.items()}}


class Job:
    """Commands that run side by side, in a group of processes of their own.

    Args:
        folder: that they run in.
        commands: each with its environment.
    """

    def __init__(self, folder: Path, commands: List[Any]) -> None:
        self.processes = []
        for command, variables in commands:
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )

    def ended(self, timeout: float = 200) -> List[Ended]:
        """How each ended.

        Raises:
            subprocess.TimeoutExpired: one did not.
        """
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=timeout)
            found.append(Ended(process.returncode, out, err))
        return found

    def left(self) -> List[int]:
        """Processes of the groups that still live."""
        groups = {process.pid for process in self.processes}
        return [pid for pid in _living() if _group(pid) in groups]

    def kill(self) -> None:
        """Ends whatever is left."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


@contextmanager
def job(folder: Path, *commands: Any) -> Iterator[Job]:
    """A :class:`Job` of which nothing is left afterwards."""
    started = Job(folder, list(commands))
    try:
        yield started
    finally:
        started.kill()


def run(folder: Path, *arguments: str, **variables: Any) -> Ended:
    """main_pretrain.py with these arguments, to its end; no process of it may be left."""
    command = [sys.executable, "-W", "ignore", TRAIN, *arguments]
    with job(folder, (command, environment(**variables))) as started:
        (ended,) = started.ended()
        wait_until(lambda: not started.left(), 20)
    return ended


def summary_of(folder: Path) -> Dict[str, Any]:
    """What the one run in ``folder`` wrote."""
    (path,) = (folder / "trained_models").rglob("summary.json")
    content: Dict[str, Any] = json.loads(path.read_text())
    assert (folder / content["checkpoint"]).is_file()
    return content


def wait_until(true: Any, seconds: float) -> None:
    """Waits until ``true()`` is.

    Raises:
        TimeoutError: it never was.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {seconds} s")
        time.sleep(0.1)


def _living() -> List[int]:
    found = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True).stdout
    pairs = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, state in pairs if not state.startswith("Z")]


def _group(pid: int) -> Optional[int]:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
