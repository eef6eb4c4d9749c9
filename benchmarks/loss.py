"""The fused loss against the materialised formulation and against its bare matrix products: time and peak memory.

python benchmarks/loss.py            the grid of N, K and B, with a table and a picture: 25 minutes on two cores
python benchmarks/loss.py --quick    the sizes that have a budget, three runs of each: a few minutes
python benchmarks/loss.py --step     memory of a whole training step at N = 256, K = 262,144, over that of the model
python benchmarks/loss.py --sweep    which memory target of the fused loss's chunks is the fastest

What is compared stands in formulations.py. Times are medians of turns taken in one process; memory is the peak of one
forward and backward beyond inputs and gradients, in a process of its own each. Every result is written at once: a run
that was stopped goes on when it is called again, --fresh begins anew.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from math import exp, log
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.budgets import run_quick, run_step
from benchmarks.common import Record, about, device_named, now, settings_of
from benchmarks.formulations import (
    FORMS,
    Case,
    extra_bytes,
    fits,
    seconds,
    seconds_by_target,
)
from benchmarks.measuring import medians
from benchmarks.pictures import growth
from benchmarks.processes import Died, in_own_process
from carp_plugin.commands.cli import saying_mistakes, silence_third_parties
from carp_plugin.errors import UserError
from carp_plugin.evaluation.drawing import write_png
from carp_plugin.terminal import say

IMAGES = (64, 128, 256, 512)
PROTOTYPES = (4096, 16384, 65536, 262144)
BLOCKS = (64, 512, 4096)
TURNS_SECONDS = 8.0  # that the turns of one case take together, where two turns are not longer
TARGETS_MIB = (4, 8, 16, 24, 32, 48, 64, 96)


# ------------------------------------------------------------------------------------------- grid


def grid(args: argparse.Namespace) -> List[Case]:
    """Every size that is asked for; the smallest first, so that a picture of a part is of use.

    Raises:
        UserError: a block that does not divide the prototypes, or a number below 1.
    """
    for name in ("images", "prototypes", "blocks", "dim"):
        values = getattr(args, name)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if value < 1:
                raise UserError(f"--{name} {value}: expected a whole number of at least 1.")
    for k in args.prototypes:
        for b in args.blocks:
            if k % b:
                raise UserError(
                    f"--prototypes {k} is no multiple of --blocks {b}; blocks must be equal."
                )
    cases = [
        Case(n, k, b, args.dim) for n in args.images for k in args.prototypes for b in args.blocks
    ]
    return sorted(cases, key=lambda case: case.work)


def measured(
    case: Case, device: Any, memory_of_products: Callable[[Case, str], Optional[int]]
) -> Dict[str, Any]:
    """Time and memory of one size in every form; a form that cannot be measured says why in ``left_out``."""
    forms, left_out = list(FORMS), {}
    if not fits(case, device):
        forms.remove("materialised")
        left_out["materialised"] = (
            f"would need about {case.materialised_bytes / 2**30:.0f} GiB, more than there is"
        )
    result: Dict[str, Any] = {**case._asdict(), "date": now(), "left_out": left_out}
    try:
        result["turns"] = in_own_process(seconds, case, forms, str(device), TURNS_SECONDS)
    except Died as error:
        left_out["time"] = str(error)
    result["seconds"] = medians(result.get("turns", {}))
    result["bytes"] = {}
    for form in forms:
        try:
            if form in ("bare", "chunked"):
                result["bytes"][form] = memory_of_products(case, form)
            else:
                result["bytes"][form] = in_own_process(extra_bytes, case, form, str(device))
        except Died as error:
            left_out[f"memory, {form}"] = str(error)
    return result


class Products:
    """Memory of the products alone, which does not depend on the block: measured once for N and K."""

    def __init__(self, device: Any, results: Dict[str, Any]) -> None:
        self.device = device
        self.known = {
            (r["images"], r["prototypes"], form): r["bytes"].get(form)
            for r in results.values()
            for form in ("bare", "chunked")
        }

    def __call__(self, case: Case, form: str) -> Optional[int]:
        key = case.images, case.prototypes, form
        if self.known.get(key) is None:
            self.known[key] = in_own_process(extra_bytes, case, form, str(self.device))
        return self.known[key]


def run_grid(args: argparse.Namespace) -> None:
    """Measures what is missing, then shows everything."""
    device = device_named(args.device)
    cases = grid(args)
    record = Record(args.out / "loss.json", settings_of(device, dim=args.dim), args.fresh)
    products = Products(device, record.results)
    missing = [case for case in cases if case.name not in record.results]
    for case in track(missing, description="sizes", disable=not missing):
        record.add(case.name, measured(case, device, products))
    results = [record.results[case.name] for case in cases]
    say(table(results))
    for result in results:
        for what, why in result["left_out"].items():
            say(
                f"N = {result['images']}, K = {result['prototypes']:,}, B = {result['block']}: {what} {why}"
            )
    say(about(record.content["settings"]))
    picture = write_png(
        growth(results, min(args.blocks, key=lambda b: abs(log(b / 512)))), args.out
    )
    say(f"written to {record.path} and {picture}")


def table(results: Sequence[Dict[str, Any]]) -> Table:
    """Every size with the time and memory of the fused loss and its ratios to the others."""
    shown = Table(
        title="the loss, forward and backward: medians, and memory beyond inputs and gradients"
    )
    for column in ("N", "K", "B", "fused, s", "x bare", "x chunked", "x materialised"):
        shown.add_column(column, justify="right")
    for column in ("fused, MB", "materialised, MB", "x materialised"):
        shown.add_column(column, justify="right")
    for r in sorted(results, key=lambda r: (r["images"], r["prototypes"], r["block"])):
        held = r["bytes"]
        shown.add_row(
            str(r["images"]),
            f"{r['prototypes']:,}",
            str(r["block"]),
            _number(r["seconds"].get("fused"), "{:.3f}"),
            *(_ratio(r["seconds"], form) for form in ("bare", "chunked", "materialised")),
            *(_number(held.get(form), "{:.0f}", 1e-6) for form in ("fused", "materialised")),
            _ratio(held, "materialised"),
        )
    return shown


def _number(value: Optional[float], form: str, scale: float = 1) -> str:
    return "-" if value is None else form.format(value * scale)


def _ratio(values: Dict[str, float], to: str) -> str:
    if not values.get(to) or values.get("fused") is None:
        return "-"
    return f"{values['fused'] / values[to]:.2f}"


# ------------------------------------------------------------------------------------------ sweep


def run_sweep(args: argparse.Namespace) -> None:
    """The fused loss with other memory targets, over the chunked products of the same turn."""
    device = device_named(args.device)
    cases = [case for case in grid(args) if case.work <= 1]
    record = Record(args.out / "loss_sweep.json", settings_of(device, dim=args.dim), args.fresh)
    targets = [mib * 2**20 for mib in TARGETS_MIB]
    for case in track(cases, description="sizes"):
        if case.name not in record.results:
            turns = int(min(9, max(3, 2 / case.work)))
            try:
                found = in_own_process(seconds_by_target, case, targets, str(device), turns)
            except Died as error:
                raise UserError(f"{case.name} could not be measured: {error}.") from error
            record.add(case.name, found)
    results = {case: record.results[case.name] for case in cases}
    shown = Table(
        title="fused / chunked products, by the memory target of the fused loss's chunks, MiB"
    )
    for column in ("N", "K", "B", *map(str, TARGETS_MIB)):
        shown.add_column(column, justify="right")
    for label, row in _sweep_rows(results):
        shown.add_row(*label, *(f"{ratio:.2f}" for ratio in row))
    say(shown)
    say(about(record.content["settings"]))
    say(f"written to {record.path}")


def _sweep_rows(
    results: Dict[Case, Dict[str, float]],
) -> Iterator[Tuple[Tuple[str, str, str], List[float]]]:
    """Ratios for each target, size by size, and at last their geometric mean."""
    rows = []
    for case, found in results.items():
        row = [found[str(mib * 2**20)] / found["chunked"] for mib in TARGETS_MIB]
        rows.append(row)
        yield (str(case.images), f"{case.prototypes:,}", str(case.block)), row
    yield ("mean", "", ""), [exp(statistics.fmean(map(log, column))) for column in zip(*rows)]


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--quick", action="store_true", help="the sizes that have a budget, three runs"
    )
    what.add_argument("--step", action="store_true", help="memory of a step at K = 262,144")
    what.add_argument(
        "--sweep", action="store_true", help="memory targets of the chunks, N K <= 128 x 65,536"
    )
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="N of the grid")
    parser.add_argument(
        "--prototypes", type=int, nargs="+", default=PROTOTYPES, help="K of the grid"
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS, help="B of the grid")
    parser.add_argument("--dim", type=int, default=256, help="D of the grid")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder of results"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    args = parser.parse_args()
    silence_third_parties()
    with saying_mistakes():
        run = {"quick": run_quick, "step": run_step, "sweep": run_sweep}
        run.get(next((name for name in run if getattr(args, name)), ""), run_grid)(args)


if __name__ == "__main__":
    main()
