"""Situations from public reports, rebuilt with small images: each is run again and judged by what it leaves.

python trials/reports.py                          all of them: a table, and results/trials/reports.json
python trials/reports.py --cases 1,5,14           some of them
python trials/reports.py --cases 1a,1b --json reports.json

A number is a case of a list of public reports; a number with a letter is one more of a kind of fault (1 what the folder
holds, 2 what is printed, 3 going on, 4 after the last step, 5 other programs, 6 ways to end, 7 numbers to question,
8 the file system, 9 small data). Where it can be, a script runs inside a worker process (:mod:`trials.fuzz_worker`);
signals, launchers and start methods have processes of their own. A case that this machine cannot run says why.
Ends with 1 if a case is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.common import write_result  # noqa: E402
from carp_plugin.errors import UserError, did_you_mean  # noqa: E402
from carp_plugin.terminal import say  # noqa: E402
from trials import report_cases, report_ends, report_launchers  # noqa: E402, F401
from trials.fuzz import Worker  # noqa: E402
from trials.report_world import CASES, Case, NotRun, Wrong, make_images, world_in  # noqa: E402


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        number: of the case.
        about: what it stands for.
        said: what the last of its commands printed, in one line, or what was found.
        verdict: ``"ok"``, ``"not ok: …"`` or ``"not run: …"``.
        seconds: that it took.
    """

    number: str
    about: str
    said: str
    verdict: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing is wrong, so far as is known."""
        return not self.verdict.startswith("not ok")


def outcome(case: Case, root: Path, kept: Path, worker: Worker) -> Outcome:
    """Runs a case in a folder of its own and judges it."""
    started, found = time.perf_counter(), None
    home = root / f"case{case.number}"
    with world_in(home, kept, worker) as world:
        try:
            found = case.play(world)
            verdict = "ok"
        except NotRun as why:
            verdict = f"not run: {why}"
        except Wrong as why:
            verdict = f"not ok: {why}"
        except Exception as why:  # what the case reads was not there, or in another form
            verdict = f"not ok: {type(why).__name__}: {why}"
        said = found or (world.said.line() if world.said else "")
    said = " ".join(said.replace(str(home), "…").replace(str(ROOT), ".").split())
    verdict = " ".join(verdict.replace(str(home), "…").split())
    return Outcome(case.number, case.about, said, verdict, round(time.perf_counter() - started, 1))


def chosen(numbers: Optional[str]) -> List[Case]:
    """The cases of ``--cases``; all, in order, where none is named.

    Raises:
        UserError: there is none of that number.
    """
    order = sorted(CASES, key=lambda name: (not name.isdigit(), int(name.rstrip("abc")), name))
    if numbers is None:
        return [CASES[name] for name in order]
    names = [name.strip() for name in numbers.split(",")]
    for name in names:
        if name not in CASES:
            raise UserError(f"--cases: there is no case {name!r}{did_you_mean(name, order)}")
    return [CASES[name] for name in names]


def reports(cases: Sequence[Case], root: Path) -> List[Outcome]:
    """Runs cases one after another below an empty folder."""
    kept, worker, outcomes = make_images(root / "kept"), Worker(), []
    quiet = not sys.stdout.isatty()
    try:
        for case in track(cases, "cases", disable=quiet, transient=True):
            outcomes.append(outcome(case, root, kept, worker))
            if quiet:
                last = outcomes[-1]
                print(f"{last.number}: {last.verdict}, {last.seconds} s", flush=True)
    finally:
        worker.stop()
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row a case."""
    red = sum(not one.good for one in outcomes)
    shown = Table(
        title=f"{len(outcomes)} situations from public reports, {red} not as they should be"
    )
    for column in ("case", "stands for", "printed now", "verdict", "s"):
        shown.add_column(column, justify="right" if column in ("case", "s") else "left")
    for one in outcomes:
        said = one.said if len(one.said) < 200 else one.said[:199] + "…"
        row = (one.number, one.about, said, one.verdict, f"{one.seconds:.0f}")
        shown.add_row(
            *(cell.replace("[", r"\[") for cell in row), style=None if one.good else "red"
        )
    return shown


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the trial; 0 if nothing is wrong."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--cases", help="their numbers, as 1,5,14 or 1a; all where left out")
    flags.add_argument("--json", type=Path, default=Path("results/trials/reports.json"))
    args = flags.parse_args(arguments)
    try:
        cases = chosen(args.cases)
    except UserError as error:
        flags.error(str(error))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reports-") as root:
        outcomes = reports(cases, Path(root))
    say(table(outcomes))
    wrong = [one.number for one in outcomes if not one.good]
    left = [one.number for one in outcomes if one.verdict.startswith("not run")]
    seconds = round(time.perf_counter() - started)
    write_result(
        args.json,
        {
            "seconds": seconds,
            "wrong": wrong,
            "not run": left,
            "cases": [one._asdict() for one in outcomes],
        },
    )
    say(
        f"{len(outcomes)} cases, {len(wrong)} not as they should be, {len(left)} not run, {seconds} s; "
        f"written to {args.json}"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
