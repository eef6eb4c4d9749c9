"""Cases of trials/reports.py about other programs: launchers, start methods, wandb, file systems, sweeps, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any, List

from PIL import Image

from tests.launching import environment
from trials.report_ends import RESUME, by_name, finished
from trials.report_world import KNN, ROOT, TRAIN, Answer, World, case, must

SECONDS = 60.0  # that a sentence about the environment may take


def children(pid: int) -> List[int]:
    """Processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@case("7", "wandb without a key; in a folder that cannot be written to; offline and resumed")
def _wandb(world: World) -> None:
    home = world.home / "nohome"
    home.mkdir()
    unset = {"UNSET": ("WANDB_API_KEY", "WANDB_MODE"), "HOME": home}
    evaluated = "evaluation.enabled=True"
    answer = world.process("wandb.enabled=True", evaluated, **unset).refused("wandb")
    must(not world.out.exists() or not world.checkpoints(), "it was trained before")
    offline = ("wandb.enabled=True", "wandb.offline=True", RESUME)
    answer = world.process(*offline, evaluated, WANDB_DIR="/proc/no", **unset).spoke()
    must(answer.code in (0, 2), f"exit code {answer.code}")
    if answer.code:
        answer.refused("wandb")
    folder = world.home / "logs"
    folder.mkdir()
    for i, limit in enumerate((["++max_time=00:00:00:01"], [])):
        running = world.start("max_epochs=3", *offline, *limit, WANDB_DIR=folder, **unset)
        world.note(running.answer()).spoke()
        must(i == 0 or world.step() == 27, "the second process did not end the run")
    found = {path.name.rsplit("-", 1)[1] for path in folder.rglob("offline-run-*") if path.is_dir()}
    must(len(found) == 1, f"{len(found)} offline runs, 1 is right")


START = "import multiprocessing as m\nm.set_start_method({!r}, force=True)\n"


@case("8", "spawn and forkserver as the way to start workers")
def _start_methods(world: World) -> str:
    world.train("evaluation.enabled=True").ran()
    whole = world.weights()
    for method in ("spawn", "forkserver"):
        world.out = world.home / method
        paths = world.sitecustomize(START.format(method))
        world.process("evaluation.enabled=True", "data.num_workers=1", **paths).ran()
        must(world.weights() == whole, f"{method}: other weights than without workers")
    flags = ["--pretrained_checkpoint_dir", str(world.last()), "--k", "5", "--num_workers", "1"]
    world.process(*flags, script=KNN, **paths).ran()
    return "both train the bits of num_workers=0; the k-NN reads with a worker too"


@case("13", "a stray LOCAL_RANK, RANK, NODE_RANK without a launcher")
def _stray(world: World) -> str:
    said = []
    pairs: List[Any] = [
        ({"LOCAL_RANK": 0}, ["devices=2", "++strategy=ddp"]),
        ({"LOCAL_RANK": 1}, []),
        ({"RANK": 0, "WORLD_SIZE": 1}, []),
        ({"NODE_RANK": 0}, []),
    ]
    for variables, overrides in pairs:
        answer = world.note(world.start(*overrides, **variables).answer(SECONDS))
        names = " ".join(f"{key}={value}" for key, value in variables.items())
        must(answer.code is not None, f"{names}: hung for {SECONDS:.0f} s")
        if answer.code == 0:  # one process is what such an environment means
            alone = str(variables) in (str({"RANK": 0, "WORLD_SIZE": 1}), str({"NODE_RANK": 0}))
            must(alone and world.step() == 9, f"{names}: trained as if it were a rank of many")
        else:
            answer.refused(next(iter(variables)))
        said.append(f"{names}: {answer.line()[:120]}")
    return "; ".join(said)


@case("23", "a sweep after other overrides, with one bad value; a sweep of two processes a job")
def _sweep(world: World) -> None:
    answer = world.process("-m", "optimizer.lr=0.001,-1,0.002").spoke()
    must("unrecognized arguments" not in answer.err, "flags must stand first")
    must(len(world.summaries()) == 2, f"{len(world.summaries())} of 2 good jobs ended")
    must(answer.code not in (0, None), "the exit code does not tell that a job failed")
    world.out = world.home / "ddp"
    many = ("seed=0,1", "devices=2", "++strategy=ddp", "optimizer.batch_size=4", "-m")
    answer = world.process(*many).spoke()
    if answer.code == 0:
        must(len(world.summaries()) == 2, f"{len(world.summaries())} of 2 jobs ended")
    else:
        answer.refused("devices")


FAULT = """
import builtins, io, os
real, mark, often = builtins.open, {mark!r}, {often}
def opened(path, *rest, **more):
    if str(path).endswith('train/c0/3.png') and len(os.listdir(mark)) < often:
        real(os.path.join(mark, str(len(os.listdir(mark)))), 'w').close()
        raise OSError({number}, os.strerror({number}), str(path))
    return real(path, *rest, **more)
builtins.open = io.open = opened
"""


def faulty(world: World, number: int, often: int, *overrides: str) -> Answer:
    """A pretraining in which the first readings of an image fail."""
    mark = world.home / f"marks{number}-{often}"
    mark.mkdir()
    code = FAULT.format(mark=str(mark), often=often, number=number)
    answer = world.process(*overrides, **world.sitecustomize(code))
    must(list(mark.iterdir()), "the fault was never met")
    return answer.spoke()


@case("25", "an I/O error (ESTALE, EMFILE) at one image, once")
def _once(world: World) -> str:
    world.train().ran()
    whole = world.weights()
    for number in (116, 24):
        world.out = world.home / f"fault{number}"
        answer = faulty(world, number, 1).ran()
        must(world.weights() == whole, f"{os.strerror(number)}: other weights than without it")
        must("takes its place" not in answer.err, "another image takes its place")
    return "the weights are those of a run without the fault"


@case("8a", "an I/O error (EIO) that stays is named for what it is")
def _stays(world: World) -> None:
    answer = faulty(world, 5, 100_000, "data.max_bad_fraction=0.5")
    answer.refused("3.png", "Input/output error")
    must("max_bad_fraction" not in answer.err.splitlines()[-1], "it is called a bad image")


@case("26", "photographs of 13,500 x 13,500, and of 10,000 x 10,000 with two workers")
def _large(world: World) -> None:
    path = world.images / "train" / "c0" / "0.png"
    Image.new("L", (13_500, 13_500)).save(path, compress_level=1)
    world.train().spoke().says("data.max_pixels=")
    Image.new("L", (10_000, 10_000)).save(path, compress_level=1)
    answer = world.process("max_epochs=2", "data.num_workers=2", quiet=False).ran()
    said = [
        line for line in answer.err.splitlines() if "pixels" in line or "DecompressionBomb" in line
    ]
    must(len(said) <= 1, f"said {len(said)} times")


@case("4b", "stopped within an epoch and resumed by name on two devices")
def _other_devices(world: World) -> None:
    world.train("++max_steps=4").ran()
    answer = world.process(by_name(world.last()), "devices=2", "++strategy=ddp").spoke()
    if answer.code:
        answer.refused("device", "optimizer.batch_size")
        return
    answer.says("devices")
    must(world.step() in (4 + 2, 4 + 3), f"{world.step()} steps, 6 or 7 see every image once")


@case("4a", "a terminal that knows ASCII only, and one that is closed")
def _terminals(world: World) -> str:
    for part in ("train", "val"):
        (world.images / part / "c5").rename(world.images / part / "猫é")
    narrow = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": 0}
    answer = world.process("evaluation.enabled=True", **narrow)
    finished(world)
    answer.ran()
    world.out = world.home / "closed"
    command = [sys.executable, "-W", "ignore", str(ROOT / TRAIN), *world.command()]
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    done = subprocess.run(closed, cwd=world.home, env=environment(), timeout=150)
    finished(world)
    return f"ASCII: 0, closed: {done.returncode}; both have their summary"


@case("5a", "a worker that reads images is killed")
def _killed_worker(world: World) -> None:
    running = world.start("max_epochs=200", "data.num_workers=1")
    running.until(lambda: world.checkpoints() and children(running.process.pid))
    # of its children, the one that reads: forked, it has the command line of the run
    for pid in children(running.process.pid):
        os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    answer = world.note(running.answer(SECONDS)).spoke()
    must(time.monotonic() - started < SECONDS, "no sentence in a minute")
    must(answer.code not in (0, None), "the exit code does not tell")
    must(len(answer.errors) == 1, f"{len(answer.errors)} sentences")
    answer.says("worker")
    must(world.step() >= 9, "nothing was saved")


@case("5b", "SLURM's environment of two tasks, and settings for one")
def _slurm(world: World) -> None:
    variables = {"SLURM_NTASKS": 2, "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0}
    variables.update(
        SLURM_JOB_ID=7, SLURM_JOB_NAME="train", SLURM_NNODES=1, SLURM_NTASKS_PER_NODE=2
    )
    answer = world.note(world.start(**variables, SLURM_NODELIST="localhost").answer(SECONDS))
    if answer.code == 0:
        must(world.step() == 9, "trained as if it were a rank of many")
    else:
        answer.refused("SLURM")
