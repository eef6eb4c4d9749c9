"""The budgets of the loss (`loss.py --quick` and `--step`): three runs of each, the median and a verdict."""

from __future__ import annotations

import argparse
import statistics
from typing import Any, Dict, List, Sequence

from rich.progress import track
from rich.table import Table

from benchmarks.common import Record, about, device_named, settings_of
from benchmarks.formulations import FORMS, Case, extra_bytes, seconds
from benchmarks.measuring import medians
from benchmarks.processes import Died, in_own_process
from benchmarks.training import head_step_memory
from carp_plugin.errors import UserError
from carp_plugin.terminal import say

RUNS = 3
TURNS_SECONDS = 30.0  # that the turns of a run take together

#: What the fused loss is compared with, by what, and the largest ratio.
BUDGETS = (
    ("bare", "seconds", 1.2),
    ("materialised", "seconds", 1 / 3),
    ("materialised", "bytes", 1 / 6),
)
TIME_CASE, MEMORY_CASE = Case(128, 65536, 512), Case(256, 65536, 512)
FLAT_CASES = tuple(Case(n, k, 512) for n, k in ((64, 65536), (128, 65536), (256, 65536)))
FLAT_CASES += (Case(512, 65536, 512), Case(256, 262144, 512), Case(512, 262144, 512))
FLAT = 1.5  # largest extra memory over the smallest, while N * K grows 32 times
STEP_CASE, STEP_LIMIT = Case(256, 262144, 512), 3e9


def run_quick(args: argparse.Namespace) -> None:
    """The budgets: three runs of each, the median of their ratios, a verdict."""
    device = device_named(args.device)
    record = Record(args.out / "loss_quick.json", settings_of(device), args.fresh)
    jobs = [(f"time, run {run}", TIME_CASE, "") for run in range(RUNS)]
    for run in range(RUNS):
        for form in ("fused", "materialised"):
            jobs.append((f"memory of {form}, run {run}", MEMORY_CASE, form))
        jobs += [(f"memory at {case.name}, run {run}", case, "fused") for case in FLAT_CASES]
    for name, case, form in track(jobs, description="runs"):
        if name in record.results:
            continue
        try:
            if form:
                result: Any = in_own_process(extra_bytes, case, form, str(device))
            else:
                turns = in_own_process(seconds, case, FORMS, str(device), TURNS_SECONDS, 5)
                result = medians(turns)
        except Died as error:
            raise UserError(f"{name} ({case.name}) could not be measured: {error}.") from error
        record.add(name, result)
    verdicts = [*budgets(record.results), flatness(record.results)]
    record.write(verdicts=verdicts)
    say(verdict_table(verdicts))
    say(about(record.content["settings"]))
    say(f"written to {record.path}")


def budgets(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Ratios of the fused loss to another form in every run, with the budget for their median."""
    verdicts = []
    for form, what, limit in BUDGETS:
        if what == "seconds":
            pairs = [(r["fused"], r[form]) for r in _runs(results, "time, run")]
        else:
            pairs = list(
                zip(
                    _runs(results, "memory of fused, run"), _runs(results, f"memory of {form}, run")
                )
            )
        case = TIME_CASE if what == "seconds" else MEMORY_CASE
        title = f"{'time' if what == 'seconds' else 'extra memory'} / {form}, {case.name}"
        verdicts.append(_verdict(title, [ours / other for ours, other in pairs], limit))
    return verdicts


def flatness(results: Dict[str, Any]) -> Dict[str, Any]:
    """How far the fused loss's extra memory grows while N * K grows 32 times, in every run."""
    runs = zip(*(_runs(results, f"memory at {case.name}, run") for case in FLAT_CASES))
    title = f"extra memory, largest / smallest while N K grows {_span(FLAT_CASES):.0f} times"
    return _verdict(title, [max(run) / min(run) for run in runs], FLAT)


def _span(cases: Sequence[Case]) -> float:
    return max(case.work for case in cases) / min(case.work for case in cases)


def _runs(results: Dict[str, Any], name: str) -> List[Any]:
    return [results[f"{name} {run}"] for run in range(RUNS)]


def _verdict(title: str, ratios: Sequence[float], limit: float) -> Dict[str, Any]:
    median = statistics.median(ratios)
    verdict = "within" if median <= limit else "over"
    return {
        "what": title,
        "runs": list(ratios),
        "median": median,
        "budget": limit,
        "verdict": verdict,
    }


def verdict_table(verdicts: Sequence[Dict[str, Any]]) -> Table:
    """A row for every budget."""
    shown = Table(title=f"the fused loss against its budgets, {RUNS} runs")
    for column in ("ratio of", "runs", "median", "budget", ""):
        shown.add_column(column, justify="left" if column in ("ratio of", "") else "right")
    for v in verdicts:
        runs = " ".join(f"{ratio:.3f}" for ratio in v["runs"])
        shown.add_row(v["what"], runs, f"{v['median']:.3f}", f"{v['budget']:.3f}", v["verdict"])
    return shown


def run_step(args: argparse.Namespace) -> None:
    """Peak memory of training steps of head, prototypes, loss, optimizer and momentum update."""
    device = device_named(args.device)
    record = Record(args.out / "loss_step.json", settings_of(device), args.fresh)
    for run in track(range(RUNS), description="runs"):
        if f"run {run}" not in record.results:
            try:
                found = in_own_process(head_step_memory, STEP_CASE, str(device))
            except Died as error:
                raise UserError(f"the step ({STEP_CASE.name}) did not end: {error}.") from error
            record.add(f"run {run}", found)
    runs = _runs(record.results, "run")
    over = [run["bytes_over_model"] for run in runs]
    verdict = _verdict(
        f"GB over the model, {STEP_CASE.name}", [b / 1e9 for b in over], STEP_LIMIT / 1e9
    )
    record.write(verdicts=[verdict])
    say(verdict_table([verdict]))
    say(
        f"the model (parameters, gradients, optimizer state, momentum copies): {runs[0]['model_bytes'] / 1e9:.2f} GB; "
        f"a step of {statistics.median(run['seconds'] for run in runs):.1f} s"
    )
    say(about(record.content["settings"]))
    say(f"written to {record.path}")
