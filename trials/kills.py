"""Kills a training at random, resumes it each time, and compares what it ends with to a run that was never touched.

python trials/kills.py                             20 kills at random moments, 10 while a checkpoint is being written
python trials/kills.py --kills 2 --writes 1        a shorter trial

Each kill is SIGKILL, which no process can see coming. The training is main_pretrain.py on tiny images, started anew
with the same command after every kill; where it ends before all kills are spent, the next run begins in a new folder.
Every weight, buffer and optimizer state of every run that ended must be, bit for bit, that of the run without kills;
where a whole checkpoint was left, the next process must go on from it and not begin anew, and no kill may set back what
was saved. Prints a table, writes JSON, and exits with 1 if one of these is not so.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set

import torch
from omegaconf import OmegaConf
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import write_result
from carp_plugin.evaluation.linear import fingerprint
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.checkpoint import damage
from carp_plugin.training.state import place_in_name
from tests.helpers import image_folder, small_cfg

ROOT = Path(__file__).resolve().parent.parent
_WRITING = "*.ckpt.*.part"
LIMIT = 300.0  # seconds within which a process must have ended or been killed


class Trial:
    """One training that is killed and resumed.

    Args:
        home: folder for images, configuration and runs.
        epochs: of a run.
        seed: of the moments of the kills.
    """

    def __init__(self, home: Path, epochs: int, seed: int) -> None:
        self.home, self.random = home, random.Random(seed)
        cfg = small_cfg(image_folder(home / "images"), max_epochs=epochs)
        cfg.auto_resume = {"enabled": True}
        cfg.evaluation = {"enabled": False}
        OmegaConf.save(cfg, home / "run.yaml")
        self.runs = 0
        self.kills: List[Dict[str, Any]] = []
        self.ended: List[Dict[str, str]] = []
        self.startup = self.seconds = 0.0
        self.resumed = self.begun_anew = self.set_back = 0
        self._had: List[Path] = []
        self._homes: Set[Path] = set()

    @property
    def folder(self) -> Path:
        """The checkpoint folder of the present run."""
        return self.home / f"run{self.runs}"

    def start(self) -> subprocess.Popen:
        """The command, the same every time."""
        self._had = [path for path in self.checkpoints() if damage(path) is None]
        self._homes = set(self._locks())
        command = [sys.executable, str(ROOT / "main_pretrain.py"), "--config-path", str(self.home)]
        command += ["--config-name", "run", f"checkpoint.dir={self.folder}"]
        with open(self.home / "log.txt", "w") as log:
            return subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log)

    def checkpoints(self, pattern: str = "*.ckpt") -> List[Path]:
        """Of the present run, the furthest last."""
        return sorted(self.folder.rglob(pattern), key=place_in_name)

    def _locks(self) -> List[Path]:
        """One in the folder of every process that began to train."""
        return list(self.folder.rglob(".lock"))

    def account(self) -> None:
        """Notes what the process that has just ended made of the checkpoints it found."""
        self.resumed += "resuming from" in (self.home / "log.txt").read_text()
        if self._had:
            self.begun_anew += bool(set(self._locks()) - self._homes)
            left = [place_in_name(path) for path in self.checkpoints() if damage(path) is None]
            self.set_back += max(left, default=(-1, 0.0)) < place_in_name(self._had[-1])

    def untouched(self) -> Dict[str, str]:
        """A run without a kill; also learns how long things take."""
        started = time.monotonic()
        process = self.start()
        while process.poll() is None and not self.checkpoints():
            time.sleep(0.01)
        self.startup = time.monotonic() - started
        return self._finish(process, started)

    def _finish(self, process: subprocess.Popen, started: float) -> Dict[str, str]:
        process.wait(LIMIT)
        self.seconds = time.monotonic() - started
        if process.returncode:
            raise SystemExit(f"a run failed:\n{(self.home / 'log.txt').read_text()}")
        self.account()
        ended = prints(self.checkpoints()[-1])
        shutil.rmtree(self.folder)
        self.runs += 1
        return ended

    def kill(self, kind: str, due: Callable[[float], Optional[str]]) -> None:
        """Starts or resumes the run and kills it when it is due; a run that ends before that is noted.

        Args:
            kind: of the kill.
            due: takes the seconds since the start; what the process was at when it is time, None before that.
        """
        while True:
            started = time.monotonic()
            process = self.start()
            at = None
            while process.poll() is None and at is None:
                at = due(time.monotonic() - started)
                time.sleep(0.001)
            process.kill()
            seconds = time.monotonic() - started
            process.wait(LIMIT)
            if at is not None and process.returncode == -9:
                break
            self.ended.append(self._finish(process, started))
        self.account()
        torn = self.checkpoints(_WRITING)
        whole = [path for path in self.checkpoints() if damage(path) is None]
        self.kills.append(
            {
                "kind": kind,
                "seconds": round(seconds, 3),
                "at": at,
                "half-written": len(torn),
                "checkpoints": [path.name.rsplit("-ep=", 1)[1] for path in self.checkpoints()],
                "damaged": len(self.checkpoints()) - len(whole),
            }
        )

    def at_random(self) -> None:
        """Kills at a moment between the first import and some epochs on."""
        moment, started = self.random.uniform(0.1, 1.25 * self.startup), time.time()

        def due(now: float) -> Optional[str]:
            if now < moment:
                return None
            if self.checkpoints(_WRITING):
                return "writing a checkpoint"
            begun = any(path.stat().st_mtime >= started for path in self.folder.rglob(".lock"))
            return "training" if begun else "starting"

        self.kill("random", due)

    def while_writing(self) -> None:
        """Kills while a checkpoint is on its way to the disk."""
        left_by_others = set(self.checkpoints(_WRITING))
        part = self.random.uniform(0, 0.8)  # of the time that a write takes
        wait = 0.05 * part
        seen: List[float] = []

        def due(now: float) -> Optional[str]:
            nonlocal wait
            if not self.checkpoints():  # one must stand, or there would be nothing to resume
                return None
            if not set(self.checkpoints(_WRITING)) - left_by_others:
                if seen:  # written faster than that: the next one
                    wait = part * (seen[-1] - seen[0])
                    seen.clear()
                return None
            seen.append(now)
            return "writing a checkpoint" if now >= seen[0] + wait else None

        self.kill("write", due)

    def end(self) -> None:
        """Lets the last run end."""
        self.ended.append(self._finish(self.start(), time.monotonic()))


def prints(path: Path) -> Dict[str, str]:
    """Fingerprints of the weights and of the optimizer in a checkpoint."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    states = content["optimizer_states"][0]["state"]
    optimizer = {
        f"{index}.{key}": torch.as_tensor(value)
        for index, state in states.items()
        for key, value in state.items()
        if value is not None
    }
    return {"weights": fingerprint(content["state_dict"]), "optimizer": fingerprint(optimizer)}


def table(result: Dict[str, Any]) -> Table:
    """Every kill, and how the runs ended."""
    ended, reference = result["ended"], result["untouched"]
    same = sum(one == reference for one in ended)
    shown = Table(
        title=f"{len(result['kills'])} kills; {same} of {len(ended)} runs ended with the weights and the optimizer "
        f"of the run without kills, {reference['weights'][:12]}; {result['resumed']} processes resumed"
    )
    for column in ("kill", "after, s", "the process was", "checkpoints left", "damaged"):
        shown.add_column(column, justify="right" if "," in column else "left")
    for i, kill in enumerate(result["kills"], start=1):
        left = ", ".join(kill["checkpoints"]) or "none"
        if kill["half-written"]:
            left += f" (+ {kill['half-written']} half-written, set aside)"
        shown.add_row(
            f"{i} {kill['kind']}", f"{kill['seconds']:.2f}", kill["at"], left, str(kill["damaged"])
        )
    return shown


def trial(kills: int, writes: int, epochs: int, seed: int, home: Path) -> Dict[str, Any]:
    """Runs the trial; what the JSON holds."""
    one = Trial(home, epochs, seed)
    untouched = one.untouched()
    for i in range(kills + writes):
        one.at_random() if i < kills else one.while_writing()
        last = one.kills[-1]
        print(f"kill {i + 1} of {kills + writes}: {last['at']}, {last['seconds']} s", flush=True)
    one.end()
    return {
        "seed": seed,
        "epochs": epochs,
        "untouched": untouched,
        "kills": one.kills,
        "ended": one.ended,
        "all_equal": all(ended == untouched for ended in one.ended),
        "damaged": sum(kill["damaged"] for kill in one.kills),
        "resumed": one.resumed,
        "begun anew beside a whole checkpoint": one.begun_anew,
        "set back": one.set_back,
    }


def good(result: Dict[str, Any]) -> bool:
    """Whether the trial showed what it is to show."""
    wrong = ("damaged", "begun anew beside a whole checkpoint", "set back")
    return result["all_equal"] and result["resumed"] > 0 and not any(result[key] for key in wrong)


def main() -> int:
    """Runs the trial in a folder of its own, which is removed if all went well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="at random moments")
    parser.add_argument("--writes", type=int, default=10, help="while a checkpoint is written")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("results/trials/kills.json"))
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    result = trial(args.kills, args.writes, args.epochs, args.seed, home)
    say(table(result))
    write_result(args.json, result)
    say(f"written to {args.json}")
    if not good(result):
        say(f"error: a run differs, or a checkpoint was damaged or not used; see {home}", "red")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
