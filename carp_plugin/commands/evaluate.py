"""``main_evaluate.py``: several protocols on the frozen features of one checkpoint, in one table."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Tuple

import torch
from rich.table import Table

from carp_plugin.commands.saving import check_file, save
from carp_plugin.data.loaders import evaluation_transform, say_bad_images
from carp_plugin.evaluation.offline import Prepared, machine_of_evaluation, prepare
from carp_plugin.evaluation.protocols import PROTOCOLS, besides
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.settings.protocols import Evaluate
from carp_plugin.terminal import say
from carp_plugin.training.memory import peak_memory_mb
from carp_plugin.training.report import provenance
from carp_plugin.training.state import file_sha256

#: Protocol -> column -> result.
Results = Dict[str, Dict[str, Result]]


def evaluate(flags: Evaluate) -> Dict[str, Any]:
    """Runs the protocols that the flags name, and says what came out.

    Returns:
        Dict[str, Any]: what is written.

    Raises:
        UserError: a mistake in the flags, the checkpoint or the data.
    """
    check_file(flags.json_file)
    run = prepare(flags)
    images = images_of(run, flags)
    results: Results = {}
    seconds: Dict[str, float] = {}
    for name in dict.fromkeys(flags.protocols):
        started, before = time.perf_counter(), images.seconds
        results[name] = PROTOCOLS[name].measure(images, getattr(flags, name))
        seconds[name] = time.perf_counter() - started - (images.seconds - before)
    say_bad_images(run.train)
    say(table(results, f"{run.pretrained.method}, {len(run.val.dataset)} validation images, %"))  # type: ignore[arg-type]
    say(costs(images.seconds, seconds))
    for remark in remarks_of(results):
        say(remark, "yellow" if remark.startswith("warning:") else None)
    summary = _summary(run, flags, images, results, seconds)
    save(summary, run.pretrained.path, "evaluation", flags.json_file)
    return summary


def images_of(run: Prepared, flags: Evaluate) -> Images:
    """The images of a checkpoint's data, for any protocol."""
    data, networks = run.trained.data, run.networks()
    return Images(
        networks=networks,
        loaders={"train": run.train, "val": run.val},
        device=run.device,
        transform=evaluation_transform(data.dataset, data.eval_transform, run.trained.view),
        model=run.pretrained.model,
        besides=besides(run.pretrained, flags.protocols, networks, run.device),
        dtype=getattr(torch, flags.feature_dtype),
        seed=flags.seed,
        batch_size=run.trained.optimizer.batch_size,
        num_workers=data.num_workers,
    )


def table(results: Results, title: str) -> Table:
    """A row for every measure of every protocol, a column for every network and its features."""
    shown = Table(title=title, caption="± half of the 95 % interval over images")
    shown.add_column("protocol")
    shown.add_column("measure")
    for column in next(iter(results.values())):
        shown.add_column(column.replace("/", "\n"), justify="right")
    for name, found in results.items():
        measures = dict.fromkeys(measure for one in found.values() for measure in one.scores)
        for number, measure in enumerate(measures):
            title_ = PROTOCOLS[name].title if number == 0 else ""
            shown.add_row(title_, measure, *(cell(one, measure) for one in found.values()))
        shown.add_section()
    return shown


def costs(features: float, seconds: Dict[str, float]) -> str:
    """What the features and each protocol took."""
    each = ", ".join(f"{PROTOCOLS[name].title} {spent:.1f} s" for name, spent in seconds.items())
    return f"features {features:.1f} s, computed once; {each}; peak memory {peak_memory_mb()} MB"


def cell(result: Result, measure: str) -> str:
    """A score with half of its interval."""
    if measure not in result.scores:
        return "-"
    interval = result.interval(measure)
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.2f}"
    return f"{round(result.scores[measure], 2) + 0.0:.2f}{half}"  # without a sign before zero


def remarks_of(results: Results) -> List[str]:
    """What is to be known of the numbers, each sentence once."""
    said: List[Tuple[str, str]] = []
    for name, found in results.items():
        for result in found.values():
            said += [(PROTOCOLS[name].title, remark) for remark in result.remarks]
    return [_of(title, remark) for title, remark in dict.fromkeys(said)]


def _of(title: str, remark: str) -> str:
    warning = "warning: " if remark.startswith("warning: ") else ""
    return f"{warning}{title}: {remark[len(warning) :]}"


def _summary(
    run: Prepared, flags: Evaluate, images: Images, results: Results, seconds: Dict[str, float]
) -> Dict[str, Any]:
    """Everything that defines the numbers, and the numbers, as json takes it."""
    pretrained, data = run.pretrained, run.trained.data
    return {
        "checkpoint": str(pretrained.path),
        "sha256": file_sha256(pretrained.path),
        "tensors": pretrained.tensors,
        "method": pretrained.method,
        "epoch": pretrained.epoch,
        "protocols": {
            name: {
                "title": PROTOCOLS[name].title,
                "settings": getattr(flags, name).model_dump(mode="json"),
                "seconds": round(seconds[name], 2),
                "results": {column: result.as_dict() for column, result in found.items()},
            }
            for name, found in results.items()
        },
        "remarks": [*run.remarks, *remarks_of(results)],
        "passes": images.passes,
        "seconds_of_features": round(images.seconds, 2),
        "peak_memory_mb": peak_memory_mb(),
        "seed": flags.seed,
        "dataset": data.dataset,
        "train_data_path": str(data.train_path),
        "val_data_path": str(data.val_path),
        "train_images": len(run.train.dataset),  # type: ignore[arg-type]
        "val_images": len(run.val.dataset),  # type: ignore[arg-type]
        "transform": " ".join(str(images.transform).split()),
        "feature_dtype": f"{flags.feature_dtype} unit rows",
        **provenance(machine_of_evaluation(run.device), pretrained.args),
    }
