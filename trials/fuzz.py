"""Hundreds of broken configurations and image files: each earns one sentence, and nothing hangs or is lost.

python trials/fuzz.py --seed 0
python trials/fuzz.py --seed 1 --configs 30 --images 10 --processes 0 --json fuzz.json

Scripts run one after another inside a worker process (:mod:`trials.fuzz_worker`), and some of the refused command
lines once more as processes of their own. Beside every case lie a checkpoint and images, which must stay as they are.
Ends with 1 if a case failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import yaml
from omegaconf import OmegaConf
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.common import write_result  # noqa: E402
from carp_plugin import register  # noqa: E402
from carp_plugin.terminal import say  # noqa: E402
from tests.finetune_helpers import finetune_cfg  # noqa: E402
from tests.helpers import image_folder, small_cfg  # noqa: E402
from tests.linear_helpers import linear_cfg, write_checkpoint  # noqa: E402
from trials.fuzz_configs import make  # noqa: E402
from trials.fuzz_images import KINDS  # noqa: E402
from trials.fuzz_keys import Case, World, every_key  # noqa: E402

_SECONDS = 120  # that a case may take; it is a hang if it takes longer
_QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        kind: its class.
        command: script and arguments.
        verdict: ``"refused"``, ``"done"``, or what was wrong with it.
        said: the sentence of a refusal, or the warnings of a run.
        good: whether that is as it should be.
        seconds: that it took.
        keys: of the configuration that it touched.
    """

    kind: str
    command: List[str]
    verdict: str
    said: str
    good: bool
    seconds: float
    keys: List[str]


class Worker:
    """A process that runs scripts; a new one takes over from one that hangs or dies."""

    def __init__(self) -> None:
        self.process: Optional[subprocess.Popen] = None

    def run(self, script: str, arguments: Sequence[str], folder: Path) -> Dict[str, Any]:
        """Exit code (None for a hang), output and errors of a script started in a folder."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "trials" / "fuzz_worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_QUIET,
                text=True,
            )
        case = {"script": script, "arguments": list(arguments), "folder": str(folder)}
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout  # both are pipes
        try:
            stdin.write(json.dumps(case) + "\n")
            stdin.flush()
            ready = select.select([stdout], [], [], _SECONDS)[0]
            line = stdout.readline() if ready else None
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.stop()
        return {"code": None, "out": "", "err": "no answer" if line is None else "the worker died"}

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def build_world(root: Path) -> World:
    """Images, configurations and a checkpoint for all cases, under ``root``."""
    register()
    images = image_folder(root / "images")
    checkpoint = write_checkpoint(root / "kept", images)
    world = World(images, root / "configs", checkpoint, root / "broken")
    world.configs.mkdir()
    world.broken.mkdir()
    small = small_cfg(images, max_epochs=1, evaluation={"enabled": False})
    comparison = small_cfg(images, max_epochs=1)
    own = {"knn": {"k": [5], "temperature": 0.07, "features": ["backbone"]}, "methods": ["carp"]}
    own.update(linear=None, gallery={"rows": 2, "columns": 2}, settings={})
    for key, value in own.items():
        OmegaConf.update(comparison, key, value, force_add=True)
    for name, cfg in {
        "small": small,
        "linear": linear_cfg(images, checkpoint, max_epochs=1),
        "finetune": finetune_cfg(images, checkpoint, max_epochs=1),
        "compare": comparison,
    }.items():
        content = OmegaConf.to_container(cfg)
        assert isinstance(content, dict)  # a configuration is
        if name == "compare":
            del content["method"], content["seed"]
        (world.configs / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return world


def image_cases(seed: int, count: int, world: World) -> List[Case]:
    """Pretrainings on a folder with one odd file, the kinds of files in turn."""
    dice, numbers = random.Random(seed), np.random.default_rng(seed)
    cases = []
    for i in range(count):
        name = list(KINDS)[i % len(KINDS)]
        kind = KINDS[name]
        folder = world.broken / f"images{i}"
        for split in ("train", "val"):
            for path in sorted((world.images / split).glob("*/[01].png")):
                target = folder / split / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
        split, allowed = dice.choice(["train", "train", "train", "val"]), dice.choice([0.01, 0.2])
        bad = folder / split / f"class_{dice.randrange(6)}" / "odd.png"
        bad.write_bytes(kind.make(numbers))
        fails = None if kind.readable is None else not kind.readable
        if fails and split == "train" and allowed > 0.1:
            fails = False  # replaced, and named
        arguments = [f"--config-path={world.configs}", "--config-name=small.yaml"]
        arguments += [f"data.{name}_path={folder / name}" for name in ("train", "val")]
        arguments += [f"data.max_bad_fraction={allowed}", "checkpoint.enabled=False"]
        arguments += [f"optimizer.batch_size={13 if split == 'train' else 12}"]
        arguments += [f"data.num_workers={dice.choice([0, 0, 1])}"]
        named = [str(bad)] if kind.readable is False else []
        cases.append(Case(f"image: {name}", "main_pretrain.py", arguments, fails, named))
    return cases


def judge(case: Case, answer: Dict[str, Any]) -> Tuple[str, str]:
    """What became of a case and what was said; an unlawful end begins with ``"FAILED"``."""
    err = [line for line in answer["err"].splitlines() if line.strip()]
    errors = [line for line in err if line.startswith("error: ")]
    warnings = [line for line in err if line.startswith("warning: ")]
    said = (errors or warnings or err or [""])[-1]
    if answer["code"] is None:
        return f"FAILED: {answer['err']}", said
    if "Traceback" in answer["out"] + answer["err"]:
        return "FAILED: stack trace", said
    if answer["code"] == 2:
        if len(errors) != 1 or err[-1] != errors[0] or len(errors) + len(warnings) != len(err):
            return "FAILED: not one line", " | ".join(err[:6])
        if case.fails is False:
            return "FAILED: refused", said
    elif answer["code"] != 0:
        return f"FAILED: exit code {answer['code']}", said
    elif case.fails:
        return "FAILED: not refused", said
    named = case.keys if case.kind.startswith("image: ") else ()
    if not all(name in answer["err"] for name in named):
        return "FAILED: file not named", said
    return ("refused" if answer["code"] == 2 else "done"), said


def fuzz(
    seed: int, configs: int, images: int, processes: int, root: Path
) -> Tuple[List[Outcome], List[str]]:
    """Runs all cases.

    Args:
        seed: of all of them.
        configs: number of broken configurations and command lines.
        images: number of odd image files.
        processes: refused command lines that are run as processes too.
        root: an empty folder for everything.

    Returns:
        Tuple[List[Outcome], List[str]]: of every case, and what is wrong besides.
    """
    world = build_world(root)
    before = _hashes(root)
    cases = [*make(seed, configs, world), *image_cases(seed, images, world)]
    worker, outcomes = Worker(), []
    quiet = not sys.stdout.isatty()
    try:
        for case in track(cases, "cases", disable=quiet, transient=True):
            outcomes.append(_outcome(case, worker, world, root / "case"))
    finally:
        worker.stop()
    refused = [case for case, outcome in zip(cases, outcomes) if outcome.verdict == "refused"]
    sample = random.Random(seed).sample(refused, min(processes, len(refused)))
    for case in track(sample, "processes", disable=quiet, transient=True):
        process = case._replace(kind="process of its own", fails=True, keys=())
        outcomes.append(_outcome(process, None, world, root / "case"))
    lost = [f"{name} was changed or deleted" for name in _changed(before, _hashes(root))]
    return outcomes, lost


def _outcome(case: Case, worker: Optional[Worker], world: World, folder: Path) -> Outcome:
    """Runs a case in a fresh folder beside a checkpoint of an earlier run."""
    earlier = folder / "trained_models" / "carp" / "earlier"
    earlier.mkdir(parents=True)
    kept = [world.checkpoint, world.checkpoint.with_name("args.json")]
    for path in kept:
        os.link(path, earlier / path.name)
    stamps = [os.stat(path) for path in kept]
    started = time.perf_counter()
    if worker is None:
        command = [sys.executable, "-W", "ignore", str(ROOT / case.script), *case.arguments]
        answer = _process(command, folder)
    else:
        answer = worker.run(case.script, case.arguments, folder)
    seconds = time.perf_counter() - started
    verdict, said = judge(case, answer)
    for path, stamp in zip(kept, stamps):
        now = earlier / path.name
        if not now.is_file() or _stamp(os.stat(now)) != _stamp(stamp):
            verdict, said = "FAILED: lost", f"{path.name} of the earlier run"
    shutil.rmtree(folder)
    good = not verdict.startswith("FAILED")
    command = [case.script, *case.arguments]
    keys = [] if case.kind.startswith("image: ") else list(case.keys)
    return Outcome(case.kind, command, verdict, said, good, round(seconds, 2), keys)


def _process(command: List[str], folder: Path) -> Dict[str, Any]:
    try:
        done = subprocess.run(
            command, cwd=folder, env=_QUIET, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"code": None, "out": "", "err": "no answer"}
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def _stamp(stat: os.stat_result) -> Tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _hashes(root: Path) -> Dict[str, str]:
    """SHA-256 of every image, configuration and checkpoint that no case may touch."""
    paths = [path for name in ("images", "configs", "kept") for path in (root / name).rglob("*")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if path.is_file()
    }


def _changed(before: Dict[str, str], after: Dict[str, str]) -> List[str]:
    return [name for name in before if after.get(name) != before[name]]


def _without(root: str, outcome: Outcome) -> Outcome:
    """The outcome with another name for the folder that is gone after the trial."""
    command = [part.replace(root, "FOLDER") for part in outcome.command]
    return outcome._replace(command=command, said=outcome.said.replace(root, "FOLDER"))


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row a class: how many cases, what became of them, and the shortest sentence of a refusal."""
    shown = Table(title="fuzz", show_lines=False)
    for column in ("class", "cases", "refused", "ran", "failed", "for example"):
        shown.add_column(
            column, justify="right" if column not in ("class", "for example") else "left"
        )
    for kind in sorted({outcome.kind for outcome in outcomes}):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        count = Counter(outcome.verdict if outcome.good else "failed" for outcome in of_kind)
        said = sorted(
            (o.said for o in of_kind if o.said),
            key=lambda text: (not text.startswith("error"), len(text)),
        )
        numbers = [len(of_kind), count["refused"], count["done"], count["failed"]]
        example = re.sub(r"/\S*/(?=[^/\s])", "…/", said[len(said) // 4]) if said else "-"
        shown.add_row(kind, *map(str, numbers), example[:150])
    return shown


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the trial; 0 if every case ended as it should."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--configs", type=int, default=600)
    flags.add_argument("--images", type=int, default=100)
    flags.add_argument(
        "--processes", type=int, default=10, help="run as processes of their own too"
    )
    flags.add_argument("--json", type=Path, default=Path("results/trials/fuzz.json"))
    args = flags.parse_args(arguments)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        outcomes, lost = fuzz(args.seed, args.configs, args.images, args.processes, Path(root))
        outcomes = [_without(root, outcome) for outcome in outcomes]
    say(table(outcomes))
    failed = [outcome for outcome in outcomes if not outcome.good]
    for outcome in failed:
        say(f"{outcome.verdict}: {' '.join(outcome.command)}\n    {outcome.said}", "red")
    for sentence in lost:
        say(f"FAILED: {sentence}", "red")
    seconds = round(time.perf_counter() - started)
    hit = {key for outcome in outcomes for key in outcome.keys}
    content = {
        "seed": args.seed,
        "keys": f"{len(hit & set(every_key()))} of {len(every_key())}",
        "seconds": seconds,
        "failed": len(failed),
        "lost": lost,
        "cases": [outcome._asdict() for outcome in outcomes],
    }
    write_result(args.json, content)
    say(
        f"{len(outcomes)} cases, {len(failed)} failed, {len(lost)} files lost, {seconds} s; written to {args.json}"
    )
    return int(bool(failed or lost))


if __name__ == "__main__":
    sys.exit(main())
