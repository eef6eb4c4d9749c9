"""How long a command takes to say its help or to refuse a wrong key, against what importing Hydra alone takes.

python benchmarks/start.py                     each start seven times: a minute on two cores
python benchmarks/start.py --turns 1           a look at it

The starts take turns, so that a slow minute hits all alike; a first turn, which compiles modules and fills the disk's
cache, is not counted. Ratios are to Hydra's import in the same turn. Memory is the peak of the process (launch.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import torch
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import about, settings_of, write_result
from carp_plugin.commands.cli import saying_mistakes, silence_third_parties
from carp_plugin.errors import UserError
from carp_plugin.terminal import say

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "benchmarks" / "launch.py"
BUDGET = 4.0  # times Hydra's import
REFERENCE = "import hydra"


class Start(NamedTuple):
    """A call of Python, and how it has to end."""

    arguments: Tuple[str, ...]
    code: int = 0
    said: str = ""  # on standard error


#: Recipe of a command that takes one; the others take flags.
RECIPES = {
    "main_pretrain.py": "carp.yaml",
    "main_linear.py": "carp.yaml",
    "main_finetune.py": "carp.yaml",
    "main_compare.py": "photos.yaml",
}
OFFLINE = ("main_knn.py", "main_evaluate.py", "main_umap.py")


def starts() -> Dict[str, Start]:
    """Every start by its name, the reference first."""
    found = {REFERENCE: Start(("-c", "import hydra"))}
    for script in (*RECIPES, *OFFLINE):
        found[f"{script} --help"] = Start((script, "--help"))
    for script, recipe in RECIPES.items():
        found[f"{script} max_epoch=3"] = Start(
            (script, "--config-name", recipe, "max_epoch=3"), 2, "max_epoch is not a key of"
        )
    for script in OFFLINE:
        # With the flag that must be given, which is asked for before another is refused.
        found[f"{script} --kk 5"] = Start(
            (script, "--pretrained_checkpoint_dir", "RUN", "--kk", "5"), 2, "--kk is not a flag of"
        )
    return found


def launched(name: str, start: Start) -> Dict[str, float]:
    """Seconds and peak memory in MB of one start.

    Raises:
        UserError: it ended otherwise than it has to; its time would be that of something else.
    """
    launch = [sys.executable, "-I", "-S", str(LAUNCH), sys.executable, *start.arguments]
    answer = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    code = found.pop("code")
    if code != start.code or start.said not in answer.stderr:
        last = (answer.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(
            f"{name} ended with {code} and said {last!r}; expected {start.code} and {start.said!r}: mend the command "
            "before its start is measured."
        )
    return found


def measure(calls: Mapping[str, Start], turns: int) -> Dict[str, List[Dict[str, float]]]:
    """What every start took, turn by turn; a turn before the first is not counted."""
    runs: Dict[str, List[Dict[str, float]]] = {name: [] for name in calls}
    for turn in track(range(-1, turns), description="turns"):
        for name, start in calls.items():
            found = launched(name, start)
            if turn >= 0:
                runs[name].append(found)
    return runs


def summary(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Dict[str, Dict[str, Any]]:
    """Medians of every start, and its ratio to the reference of the same turn with a verdict."""
    found = {}
    for name, taken in runs.items():
        pairs = zip(taken, runs[REFERENCE])
        ratio = statistics.median(own["seconds"] / other["seconds"] for own, other in pairs)
        found[name] = {
            **{key: statistics.median(run[key] for run in taken) for key in taken[0]},
            "ratio": ratio,
            "verdict": "within" if ratio <= BUDGET else "over",
        }
    return found


def table(medians: Mapping[str, Mapping[str, Any]], turns: int) -> Table:
    """A row for every start."""
    shown = Table(title=f"starts of the commands, median of {turns}; budget {BUDGET:g} x")
    for column in ("", "seconds", "peak memory, MB", f"x {REFERENCE}", "budget"):
        shown.add_column(column, justify="left" if column in ("", "budget") else "right")
    for name, one in medians.items():
        numbers = f"{one['seconds']:.3f}", f"{one['megabytes']:.0f}", f"{one['ratio']:.2f}"
        shown.add_row(name, *numbers, "" if name == REFERENCE else one["verdict"])
    return shown


def run(args: argparse.Namespace) -> None:
    """Measures, shows and writes.

    Raises:
        UserError: a number below 1, a start that ends otherwise than it has to, or a file that cannot be written.
    """
    if args.turns < 1:
        raise UserError(f"--turns {args.turns}: expected a whole number of at least 1.")
    runs = measure(starts(), args.turns)
    medians = summary(runs)
    say(table(medians, args.turns))
    over = [name for name in medians if name != REFERENCE and medians[name]["verdict"] == "over"]
    say(f"over {BUDGET:g} x: {', '.join(over) or 'none'}")
    content = {"budget": BUDGET, "turns": args.turns, "starts": medians, "runs": runs}
    write_result(args.json, content)
    say(about(settings_of(torch.device("cpu"))))
    say(f"written to {args.json}")


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="starts of each that are counted")
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/start.json"))
    args = parser.parse_args()
    silence_third_parties()
    with saying_mistakes():
        run(args)


if __name__ == "__main__":
    main()
