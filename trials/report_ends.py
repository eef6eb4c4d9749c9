"""Cases of trials/reports.py about how a run ends, goes on, or begins anew, and what it says of it."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Tuple

from tests.launching import environment
from trials.report_cases import linear_config
from trials.report_world import LINEAR, ROOT, TRAIN, World, case, must

RESUME = "auto_resume.enabled=True"


def by_name(path: Path) -> str:
    """The override that goes on from a checkpoint."""
    return f"++resume_from_checkpoint='{path}'"


def finished(world: World) -> None:
    """One run, with a summary that names a checkpoint that is there."""
    must(Path(world.summary()["checkpoint"]).is_file(), "the summary names no checkpoint")


@case("1", "the reader of a pipe leaves (… | head -1), and the same command again")
def _pipe(world: World) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / TRAIN), *world.command(RESUME)]
    process = subprocess.Popen(
        command, cwd=world.home, env=environment(COLUMNS=200), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    try:
        process.wait(150)
    finally:
        process.kill()
    finished(world)
    world.train(RESUME).ran()
    finished(world)


@case("2", "killed between the last checkpoint and the summary, and the same command again")
def _no_summary(world: World) -> None:
    world.train(RESUME).ran()
    weights = world.weights()
    for path in world.out.rglob("summary.json"):
        path.unlink()
    answer = world.train(RESUME).ran()
    finished(world)
    must(world.weights() == weights, "other weights")
    must(world.summary()["steps"] == 9, "the summary counts other steps than the run's")
    answer.says("summary")


@case("3", "trained on with more epochs: the rate never climbs back, nor falls tau")
def _longer(world: World) -> None:
    world.train("max_epochs=2").ran()
    first = world.last()
    before = max(world.rates(first))
    answer = world.train("max_epochs=4", by_name(first)).spoke()
    if answer.code:
        answer.refused("max_epochs")
        return
    rates = [max(world.rates(path)) for path in world.checkpoints() if path.parent != first.parent]
    must(rates, "nothing was trained")
    must(all(rate <= before * (1 + 1e-9) for rate in rates), f"rates {rates} after {before}")
    last = sorted(world.out.rglob("metrics.json"), key=lambda path: path.stat().st_mtime)[-1]
    tau = [float(value) for value in re.findall(r'"tau": ([\d.e-]+)', last.read_text())]
    must(tau == sorted(tau), f"tau falls: {tau}")
    answer.says("schedule")


@case("4", "stopped within an epoch and resumed by name with half the batch")
def _other_batch(world: World) -> None:
    world.train("++max_steps=4").ran()
    first = world.last()
    answer = world.train(by_name(first), "optimizer.batch_size=4").spoke()
    if answer.code:
        answer.refused("optimizer.batch_size")
        return
    answer.says("optimizer.batch_size")
    steps = 4 + (72 - 4 * 8) // 4
    must(world.step() == steps, f"{world.step()} steps, {steps} see every image once")


@case("5", "a time limit, twice: each process trains for as long")
def _time_limit(world: World) -> None:
    limit = ("max_epochs=200", "++max_time=00:00:00:03", RESUME)
    one = world.train(*limit).spoke()
    first = world.step()
    must(re.search(r"step \d+ of 1800", one.text), "it does not say at which step of how many")
    answer = world.train(*limit).spoke()
    must("had finished already" not in answer.text, "it says that it had finished")
    must(world.step() > first, f"the second process trained nothing: step {world.step()}")
    must(answer.code == one.code, f"exit codes {one.code} and {answer.code}")


def signalled(world: World, number: int, *overrides: str, **how: Any) -> Tuple[int, str]:
    """Sends a signal once the first epoch is saved; the exit code and what was printed."""
    running = world.start("max_epochs=200", *overrides, **how)
    running.until(world.checkpoints)
    running.send(number)
    answer = world.note(running.answer(60)).spoke()
    return answer.code or 0, answer.text


@case("14", "SIGHUP and SIGUSR1 as SIGTERM; under nohup it goes on")
def _signals(world: World) -> str:
    said = []
    for number in (signal.SIGHUP, signal.SIGUSR1):
        code, text = signalled(world, number)
        must(code == 128 + number, f"{number.name}: exit code {code}, {128 + number} is right")
        must("saved" in text or "checkpoint" in text, f"{number.name}: no sentence")
        must(
            world.step() >= 9 and str(world.last()) in text,
            f"{number.name}: what was saved is not named",
        )
        said.append(f"{number.name}: {code} at step {world.step()}")
        shutil.rmtree(world.out)
    running = world.start("max_epochs=3", HANGUP_IGNORED=True)
    running.until(world.checkpoints)
    running.send(signal.SIGHUP)
    world.note(running.answer()).ran()
    finished(world)
    must(world.step() == 27, "the run under nohup was ended")
    return "; ".join(said) + "; nohup: went on to step 27"


@case("15", "stopped, and the same images lie under another path")
def _moved(world: World) -> None:
    whole = world.stopped(RESUME)
    world.images = world.images.rename(world.home / "elsewhere")
    answer = world.train("max_epochs=2", RESUME).ran()
    answer.says("resuming from")
    finished(world)
    must(world.weights() == whole, "other weights than the unbroken run's")


@case("27", "a folder has one owner: a second run beside it, and a resume after kill -9")
def _owner(world: World) -> str:
    command = ("max_epochs=200", RESUME)
    one = world.start(*command)
    one.until(world.checkpoints)
    owned = world.last().parent
    two = world.start(*command)
    two.until(lambda: len({path.parent for path in world.out.rglob(".lock")}) > 1)
    must("resuming from" not in two.text, "it resumes a run that still trains")
    two.until(lambda: re.search("another process|in use|still train|is trained", two.text), 20)
    must(one.process.poll() is None, "the first run was ended")
    two.kill()
    one.kill()
    shutil.rmtree(max((p.parent for p in world.out.rglob(".lock") if p.parent != owned), key=str))
    three = world.start(*command)
    three.until(lambda: "resuming from" in three.text)
    must(str(owned) in three.text, "it resumes another run")
    three.kill()
    return "the second began in a folder of its own and said why; after kill -9 of the first a third resumed"


@case("28", "stopped with one thread, resumed with two")
def _threads(world: World) -> None:
    world.stopped(RESUME)
    answer = world.process("max_epochs=2", RESUME, OMP_NUM_THREADS=2).ran()
    answer.says("resuming from")
    then, now = (re.search(word, answer.text) for word in (r"\b1 thread\b", r"\b2 (threads|now)"))
    must(then and now, "the numbers of threads are not said")


@case("2a", "a warm-up longer than the run: the printed rate is the rate that is reached")
def _long_warmup(world: World) -> None:
    answer = world.train("scheduler.warmup_epochs=5").spoke()
    if answer.code:
        answer.refused("warmup")
        return
    printed = re.search(r"learning rate\s+([\d.e-]+)", answer.text)
    must(printed, "no learning rate is printed")
    assert printed
    reached = world.rates()[0]  # the backbone's
    near = math.isclose(float(printed.group(1)), reached, rel_tol=0.05)
    must(
        near or any("warmup_epochs" in said for said in answer.warnings),
        f"{printed.group(1)} printed, {reached:.3g} reached, unsaid",
    )


@case("2b", "accumulated gradients: the printed steps are those that are made")
def _accumulated(world: World) -> None:
    answer = world.train("accumulate_grad_batches=2", "max_epochs=2").ran()
    printed = re.search(r"(\d+) an epoch, (\d+) in 2 epochs", answer.text)
    must(printed, "no steps are printed")
    assert printed
    must(int(printed.group(2)) == world.step(), f"{printed.group(2)} printed, {world.step()} made")
    must(
        "16 images" in answer.text or "accumul" in answer.text, "the images of a step are not said"
    )


@case("3a", "stopped, and the same command with another rate: why it does not go on")
def _other_rate(world: World) -> None:
    world.stopped(RESUME)
    answer = world.train("max_epochs=2", RESUME, "optimizer.lr=0.002").ran()
    answer.says("not resumed", "optimizer.lr was", "is 0.002")


@case("3b", "stopped, and gone on with after more than auto_resume.max_hours")
def _too_old(world: World) -> None:
    world.stopped(RESUME)
    long_ago = time.time() - 40 * 3600
    for path in world.out.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    answer = world.train("max_epochs=2", RESUME).ran()
    answer.says("auto_resume.max_hours")
    must("resuming from" not in answer.text, "it resumed")


@case("6a", "SIGHUP in a linear evaluation")
def _hangup_linear(world: World) -> None:
    world.train().ran()
    linear_config(world, max_epochs=500)
    flags = ["--config-path", str(world.home), "--config-name", "linear"]
    running = world.start(*flags, script=LINEAR)
    running.until(lambda: list((world.home / "linear").rglob("*.ckpt")))
    running.send(signal.SIGHUP)
    answer = world.note(running.answer(60)).spoke()
    must(answer.code == 129, f"exit code {answer.code}, 129 is right")
    answer.says(".ckpt")


@case("6b", "SIGUSR1, and the same command: the weights of the run that was never stopped")
def _usr1_and_on(world: World) -> None:
    long = ("max_epochs=4", RESUME)
    world.train(*long).ran()
    whole = world.weights()
    shutil.rmtree(world.out)
    running = world.start(*long)
    running.until(world.checkpoints)
    running.send(signal.SIGUSR1)
    answer = world.note(running.answer(60)).spoke()
    must(answer.code == 138, f"exit code {answer.code}, 138 is right")
    must(world.step() < 36, "it had ended before it was stopped")
    world.train(*long).ran().says("resuming from")
    finished(world)
    must(world.weights() == whole, "other weights")
