"""Keeps the runs of a comparison going, each in a process of its own, and goes on where it was stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from carp_plugin.compare.plan import Job, Plan
from carp_plugin.errors import UserError
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.history import write_json

#: Files of a run's folder, and the module that does what the first one says.
JOB, RESULT, LOG = "job.json", "result.json", "log.txt"
WORKER = "carp_plugin.commands.worker"
_POLL_SECONDS = 0.5


def run(plan: Plan, finished: Callable[[List[Dict[str, Any]]], None]) -> List[Dict[str, Any]]:
    """Does the runs that have no result yet.

    Args:
        plan: of the comparison.
        finished: called with the results so far whenever there is one more.

    Returns:
        List[Dict[str, Any]]: the result of every run, in the plan's order.

    Raises:
        UserError: another process works in the same folder, or what lies there was made with other settings.
        KeyboardInterrupt: with a sentence that says what is finished.
    """
    with _alone(plan.root):
        waiting = [job for job in plan.jobs if _prepare(job, folder_of(plan, job))]
        if len(waiting) < len(plan.jobs):
            say(f"{len(plan.jobs) - len(waiting)} of {len(plan.jobs)} runs are finished already")
        try:
            _Pool(plan, waiting, finished).go()
        except KeyboardInterrupt:
            done = len(_results(plan))
            raise KeyboardInterrupt(
                f"interrupted; {done} of {len(plan.jobs)} runs are finished, the same command does the rest."
            ) from None
        return _results(plan)


def folder_of(plan: Plan, job: Job) -> Path:
    """Where a run keeps its files."""
    return plan.root / "runs" / job.name


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One comparison at a time works in a folder; the lock goes with the process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "w")
    except OSError as error:
        raise UserError(
            f"dir={root} cannot be written to ({error.strerror}); give another one."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another main_compare.py works in {root}; wait for it, or give another dir."
            ) from None
        yield


def _prepare(job: Job, folder: Path) -> bool:
    """Makes a run's folder ready; False when its result stands.

    Raises:
        UserError: the folder holds a run of other settings.
    """
    wanted = {
        "label": job.label,
        "method": job.method,
        "seed": job.seed,
        "trial": job.trial,
        "settings": job.settings,
    }
    path = folder / JOB
    if path.is_file():
        difference = _difference(json.loads(path.read_text()), json.loads(json.dumps(wanted)))
        if difference:
            raise UserError(
                f"{folder} was made with other settings ({difference}); give another dir, or delete that folder."
            )
        result = folder / RESULT
        if result.is_file() and json.loads(result.read_text())["status"] != "failed":
            return False
        result.unlink(missing_ok=True)
        return True
    shutil.rmtree(folder, ignore_errors=True)  # killed before its job was written
    folder.mkdir(parents=True)
    write_json(path, wanted)
    return True


def _difference(old: Any, new: Any, path: str = "") -> Optional[str]:
    """The first key at which two trees of json differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if old == new else f"{path} was {old!r}, now {new!r}"


def _results(plan: Plan) -> List[Dict[str, Any]]:
    """The results that stand, with their files named from the comparison's folder."""
    results = []
    for job in plan.jobs:
        folder = folder_of(plan, job)
        path = folder / RESULT
        if path.is_file():
            result = json.loads(path.read_text())
            for key in ("checkpoint", "correct", "gallery"):
                if result.get(key):
                    result[key] = str((folder / result[key]).relative_to(plan.root))
            results.append(result)
    return results


class _Pool:
    """Some runs at a time, with a bar for each and one for all."""

    def __init__(self, plan: Plan, waiting: List[Job], finished: Callable) -> None:
        self.plan, self.waiting, self.finished = plan, list(waiting), finished
        self.running: Dict[str, Tuple[Job, subprocess.Popen, Any]] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[unit]}"),
            TimeElapsedColumn(),
            console=Console(),
            disable=not sys.stdout.isatty(),
        )

    def go(self) -> None:
        total = len(self.waiting)
        with self.bars:
            overall = self.bars.add_task("all runs", total=total, unit="runs")
            try:
                while self.waiting or self.running:
                    while self.waiting and len(self.running) < self.plan.settings.jobs:
                        self._start(self.waiting.pop(0))
                    time.sleep(_POLL_SECONDS)
                    self._poll()
                    self.bars.update(
                        overall, completed=total - len(self.waiting) - len(self.running)
                    )
            finally:
                for _, process, _ in self.running.values():
                    process.kill()

    def _start(self, job: Job) -> None:
        folder = folder_of(self.plan, job)
        package = Path(__file__).resolve().parents[2]
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(package), *filter(None, [environment.get("PYTHONPATH")])]
        )
        environment["PYTHONUNBUFFERED"] = "1"
        if job.settings["threads"]:
            environment["OMP_NUM_THREADS"] = str(job.settings["threads"])
        with open(folder / LOG, "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(folder)],
                stdin=subprocess.PIPE,  # never written to: its end tells the run that we are gone
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        epochs = job.settings["pretrain"]["max_epochs"]
        bar = self.bars.add_task(job.name, total=epochs, unit="epochs")
        self.running[job.name] = (job, process, bar)

    def _poll(self) -> None:
        for name, (job, process, bar) in list(self.running.items()):
            folder = folder_of(self.plan, job)
            if process.poll() is None:
                self.bars.update(bar, completed=_epochs(folder))
                continue
            del self.running[name]
            self.bars.remove_task(bar)
            path = folder / RESULT
            if not path.is_file():
                self._lost(job, process.returncode, path)
            result = json.loads(path.read_text())
            say(_line(job, result), None if result["status"] == "ok" else "yellow")
            if not self.plan.settings.keep_checkpoints:
                _drop_checkpoints(folder)
            self.finished(_results(self.plan))

    def _lost(self, job: Job, code: int, path: Path) -> None:
        """A process that left no result: killed from outside, most often for want of memory."""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        result = {"label": job.label, "method": job.method, "seed": job.seed, "trial": job.trial}
        why = f"its process {how}; see {path.with_name(LOG)}."
        write_json(path, {**result, "status": "failed", "why": why})


def _epochs(folder: Path) -> int:
    """Epochs that a run has finished."""
    for path in folder.glob("pretrain/*/*/metrics.json"):
        try:
            return len(json.loads(path.read_text()))
        except (OSError, ValueError):
            return 0
    return 0


def _drop_checkpoints(folder: Path) -> None:
    for path in folder.rglob("*.ckpt"):
        path.unlink()


def _line(job: Job, result: Dict[str, Any]) -> str:
    """What is said when a run is finished."""
    if result["status"] == "failed":
        return f"{job.name}: failed: {result['why']}"
    k = str(result["config"].get("evaluation", {}).get("k", 20))
    said = []
    for network in ("student", "teacher"):
        measured = result["accuracy"].get(network)
        if measured and measured["knn"]:
            backbone = measured["knn"]["backbone"]
            said.append(f"{network} {backbone.get(k, next(iter(backbone.values())))[0]:.2f}")
    seconds = sum(result["seconds"].values()) - result["seconds"]["training"]
    status = "" if result["status"] == "ok" else f", {result['status']}: {result['why']}"
    return f"{job.name}: k-NN {', '.join(said)} %, {seconds:.0f} s{status}"
