"""What a case of trials/reports.py has at hand: small images, the project's scripts, and a way to say what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from PIL import Image

from carp_plugin.evaluation.linear import fingerprint
from carp_plugin.training.state import place_in_name
from tests.launching import environment
from trials.fuzz import Worker

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 100.0  # seconds within which a process must have ended; it is a hang if it takes longer
PARTS = {"train": 12, "val": 4}  # images of each of six classes

#: Small; every case adds to it, and what it adds counts.
SMALL = (
    "max_epochs=1 optimizer.batch_size=8 method_kwargs.proj_hidden_dim=32 method_kwargs.num_prototypes=64 "
    "method_kwargs.partition_size=8 accelerator=cpu evaluation.enabled=False enable_progress_bar=False "
    "checkpoint.frequency=1"
).split()

TRAIN, KNN, LINEAR = "main_pretrain.py", "main_knn.py", "main_linear.py"


class Wrong(Exception):
    """A fact that is not as it should be."""


class NotRun(Exception):
    """Why a case cannot be run on this machine."""


def must(fact: Any, otherwise: str) -> None:
    """Holds a fact.

    Raises:
        Wrong: it is none.
    """
    if not fact:
        raise Wrong(otherwise)


class Answer(NamedTuple):
    """What a command left; ``code`` is None where it hung."""

    code: Optional[int]
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that was printed, on one line."""
        return " ".join(f"{self.out} {self.err}".split())

    @property
    def errors(self) -> List[str]:
        """The sentences of mistakes."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def warnings(self) -> List[str]:
        """The sentences of what is odd."""
        return [
            line for line in f"{self.out}\n{self.err}".splitlines() if line.startswith("warning: ")
        ]

    @property
    def images(self) -> int:
        """The number of training images that the opening block gives."""
        found = re.search(r"\bdata (\d+) images", self.text)
        must(found, "the opening block gives no number of images")
        assert found
        return int(found.group(1))

    def line(self) -> str:
        """What was printed, in one line: the errors, or else the warnings, or else the last words."""
        words = [line for line in (self.err + self.out).splitlines() if line.strip(" {}")]
        words = [
            line for line in words if not line.lstrip().startswith(("{", "│", "└", "summary "))
        ]
        said = self.errors or self.warnings or words[-1:]
        return f"[{'hung' if self.code is None else self.code}] " + " | ".join(said)

    def ran(self) -> Answer:
        """Itself, if it ended well."""
        self.spoke()
        must(self.code == 0, f"exit code {self.code}")
        return self

    def refused(self, *words: str) -> Answer:
        """Itself, if it ended with one sentence that has these words."""
        self.spoke()
        must(self.code == 2, f"exit code {self.code}, 2 is right")
        must(len(self.errors) == 1, f"{len(self.errors)} sentences")
        return self.says(*words)

    def spoke(self) -> Answer:
        """Itself, if it ended, and without a trace."""
        must(self.code is not None, "hung")
        must("Traceback (most recent" not in self.out + self.err, "a stack trace")
        return self

    def says(self, *words: str) -> Answer:
        """Itself, if it printed every one of these."""
        for word in words:
            must(word.lower() in self.text.lower(), f"nothing says {word!r}")
        return self

    def warns(self, *words: str) -> Answer:
        """Itself, if one sentence of a warning or an error has all of these."""
        said = [line.lower() for line in self.warnings + self.errors]
        held = any(all(word.lower() in line for word in words) for line in said)
        must(held, f"no sentence warns of {' '.join(words)!r}")
        return self


class Running:
    """A process of its own, with what it prints in files."""

    def __init__(self, folder: Path, command: Sequence[str], **variables: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._files = [folder / f"{number}.out", folder / f"{number}.err"]
        hup = variables.pop("HANGUP_IGNORED", False)
        unset = variables.pop("UNSET", ())
        variables = environment(**{"COLUMNS": 200, **variables})
        for name in unset:
            variables.pop(name, None)
        with open(self._files[0], "w") as out, open(self._files[1], "w") as err:
            self.process = subprocess.Popen(
                ["nohup", *command] if hup else list(command),
                cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return " ".join(path.read_text(errors="replace") for path in self._files)

    def until(self, true: Callable[[], Any], seconds: float = LIMIT) -> None:
        """Waits until something is so.

        Raises:
            Wrong: the process ended before, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while not true():
            if self.process.poll() is not None:
                raise Wrong(f"ended too soon: {self.answer().line()[:200]}")
            must(time.monotonic() < deadline, "hung")
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Sends a signal to the process itself."""
        self.process.send_signal(number)

    def answer(self, seconds: float = LIMIT) -> Answer:
        """How it ended; it is killed if it does not."""
        code: Optional[int] = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(seconds)
        self.kill()
        out, err = (path.read_text(errors="replace") for path in self._files)
        return Answer(code, out, err)

    def kill(self) -> None:
        """Ends whatever is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class World:
    """A folder of its own for a case.

    Args:
        home: the folder; is made.
        kept: the images, which each case gets a copy of.
        worker: that runs scripts.
    """

    def __init__(self, home: Path, kept: Path, worker: Worker) -> None:
        self.home, self._worker = home, worker
        self.images, self.out = home / "d", home / "out"
        shutil.copytree(kept, self.images)
        self.said: Optional[Answer] = None
        self._running: List[Running] = []

    # -- commands

    def command(self, *overrides: str) -> List[str]:
        """Arguments of a pretraining of the images."""
        paths = [f"data.{part}_path={self.images / part}" for part in PARTS]
        return [
            "--config-name",
            "carp.yaml",
            *paths,
            *SMALL,
            f"checkpoint.dir={self.out}",
            *overrides,
        ]

    def train(self, *overrides: str) -> Answer:
        """A pretraining, within the worker."""
        return self.script(TRAIN, *self.command(*overrides))

    def script(self, name: str, *arguments: str) -> Answer:
        """A script, within the worker."""
        self.said = Answer(**self._worker.run(name, arguments, self.home))
        return self.said

    def start(
        self, *overrides: str, script: str = TRAIN, quiet: bool = True, **variables: Any
    ) -> Running:
        """A pretraining, or another script with these arguments, as a process of its own."""
        arguments = self.command(*overrides) if script == TRAIN else list(overrides)
        silence = ["-W", "ignore"] if quiet else []
        command = [sys.executable, *silence, str(ROOT / script), *arguments]
        self._running.append(Running(self.home / "runs", command, **variables))
        return self._running[-1]

    def process(self, *overrides: str, **how: Any) -> Answer:
        """The same, to its end."""
        return self.note(self.start(*overrides, **how).answer())

    def note(self, answer: Answer) -> Answer:
        """Keeps it as what was printed."""
        self.said = answer
        return answer

    def close(self) -> None:
        """Leaves nothing behind."""
        for running in self._running:
            running.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    # -- what was written

    def checkpoints(self) -> List[Path]:
        """All of them, the furthest last."""
        return sorted(self.out.rglob("*.ckpt"), key=place_in_name)

    def last(self) -> Path:
        """The furthest checkpoint."""
        must(self.checkpoints(), "no checkpoint was written")
        return self.checkpoints()[-1]

    def content(self, path: Optional[Path] = None) -> Dict[str, Any]:
        """Of the furthest checkpoint, or of another."""
        return torch.load(path or self.last(), map_location="cpu", weights_only=True)

    def weights(self, path: Optional[Path] = None) -> str:
        """A fingerprint of them."""
        return fingerprint(self.content(path)["state_dict"])

    def step(self, path: Optional[Path] = None) -> int:
        """Optimizer steps behind the checkpoint."""
        return int(self.content(path)["global_step"])

    def rates(self, path: Optional[Path] = None) -> List[float]:
        """The rate of every group of parameters in a checkpoint."""
        groups = self.content(path)["optimizer_states"][0]["param_groups"]
        return [group["lr"] for group in groups]

    def summaries(self) -> List[Dict[str, Any]]:
        """Every summary.json."""
        return [json.loads(path.read_text()) for path in sorted(self.out.rglob("summary.json"))]

    def summary(self) -> Dict[str, Any]:
        """The only one."""
        found = self.summaries()
        must(len(found) == 1, f"{len(found)} files summary.json, 1 is right")
        return found[0]

    def epochs(self) -> List[Dict[str, Any]]:
        """What the only metrics.json says of every epoch."""
        (path,) = self.out.rglob("metrics.json")
        found = json.loads(path.read_text())
        return found if isinstance(found, list) else found["epochs"]

    def stopped(self, *overrides: str) -> str:
        """Trains two epochs and leaves what a kill after the first would; the weights that the second ended with."""
        self.train("max_epochs=2", *overrides).ran()
        whole = self.weights()
        self.last().unlink()
        for path in self.out.rglob("summary.json"):
            path.unlink()
        return whole

    # -- images

    def write(self, path: str, size: int = 40, seed: int = 0) -> Path:
        """One more image, at a path below the images."""
        whole = self.images / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        _picture(np.random.default_rng(seed), size, seed).save(whole)
        return whole

    def flat(self) -> Path:
        """The training images without folders, under ``flat``."""
        folder = self.images / "flat"
        folder.mkdir()
        for path in sorted((self.images / "train").rglob("*.*")):
            shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
        return folder

    def sitecustomize(self, code: str) -> Dict[str, str]:
        """Variables under which every Python begins with this code."""
        folder = self.home / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": str(folder)}


def _picture(random: np.random.Generator, size: int, label: int) -> Image.Image:
    pixels = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
    pixels[..., label % 3] //= 2 + label
    return Image.fromarray(pixels)


def make_images(root: Path) -> Path:
    """72 + 24 images of 40 px in 6 classes, as the list of cases has them."""
    random = np.random.default_rng(0)
    for part, count in PARTS.items():
        for label in range(6):
            folder = root / part / f"c{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _picture(random, 40, label).save(folder / f"{i}.png")
    return root


class Case(NamedTuple):
    """One situation.

    Attributes:
        number: of the list of reports, or the number of a kind and a letter.
        about: what it stands for.
        play: does it in a world of its own; raises :class:`Wrong` or :class:`NotRun`.
    """

    number: str
    about: str
    play: Callable[[World], Optional[str]]


#: All cases, in the order in which their modules name them.
CASES: Dict[str, Case] = {}


def case(number: str, about: str) -> Callable[[Callable[[World], Optional[str]]], Any]:
    """Enters a function as a case."""

    def enter(play: Callable[[World], Optional[str]]) -> Any:
        assert number not in CASES, number
        CASES[number] = Case(number, about, play)
        return play

    return enter


@contextlib.contextmanager
def world_in(root: Path, kept: Path, worker: Worker) -> Iterator[World]:
    """A world of which nothing is left afterwards."""
    world = World(root, kept, worker)
    try:
        yield world
    finally:
        world.close()
