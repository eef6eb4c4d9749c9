"""``main_evaluate.py``: several protocols on the frozen features of one checkpoint, in one table."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from rich.table import Table

from carp_plugin.commands import transfer
from carp_plugin.commands.saving import check_file, save
from carp_plugin.data.loaders import drawn_of, say_bad_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation.offline import Prepared, machine_of_evaluation, prepare
from carp_plugin.evaluation.protocols import PROTOCOLS, images_of
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
        UserError: a mistake in the flags, the checkpoint or the data; of one protocol, once the others are written.
    """
    check_file(flags.json_file)
    on_own = flags.datasets is None and any(PROTOCOLS[name].labelled for name in flags.protocols)
    run = prepare(flags, labelled=on_own)
    images = images_of(
        run.pretrained,
        run.trained,
        run.networks(),
        {"train": run.train, "val": run.val} if run.train else {},
        run.device,
        flags.protocols,
        getattr(torch, flags.feature_dtype),
        flags.seed,
    )
    datasets = transfer.transfer(images, flags) if flags.datasets else {}
    results: Results = {}
    seconds: Dict[str, float] = {}
    failed: Optional[UserError] = None
    for name in dict.fromkeys(flags.protocols):
        if datasets and PROTOCOLS[name].labelled:
            continue
        started, before = time.perf_counter(), images.seconds
        try:
            results[name] = PROTOCOLS[name].measure(images, getattr(flags, name))
        except UserError as error:  # said when the others are safe
            failed = failed or error
            continue
        seconds[name] = time.perf_counter() - started - (images.seconds - before)
    if failed and not (results or datasets):
        raise failed
    say_bad_images(run.train)
    if datasets:
        say(transfer.table(datasets, f"{run.pretrained.method}, %"))
    if results:
        counted = f", {len(run.val.dataset)} validation images" if run.val else ""
        say(table(results, f"{run.pretrained.method}{counted}, %"))
        say(costs(images.seconds, seconds))
    for remark in remarks_of(results) + transfer_remarks(datasets):
        say(remark, "yellow" if remark.startswith("warning:") else None)
    summary = _summary(run, flags, images, results, seconds)
    summary["datasets"] = transfer.as_dict(datasets, flags)
    save(summary, run.pretrained.path, "evaluation", flags.json_file)
    if failed:
        raise failed
    return summary


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
            shown.add_row(title_, measure, *(one.shown(measure) for one in found.values()))
        shown.add_section()
    return shown


def costs(features: float, seconds: Dict[str, float]) -> str:
    """What the features and each protocol took."""
    each = ", ".join(f"{PROTOCOLS[name].title} {spent:.1f} s" for name, spent in seconds.items())
    return f"features {features:.1f} s, computed once; {each}; peak memory {peak_memory_mb()} MB"


def remarks_of(results: Results) -> List[str]:
    """What is to be known of the numbers, each sentence once."""
    said: List[Tuple[str, str]] = []
    for name, found in results.items():
        for result in found.values():
            said += [(PROTOCOLS[name].title, remark) for remark in result.remarks]
    return [_of(title, remark) for title, remark in dict.fromkeys(said)]


def transfer_remarks(datasets: Mapping[str, transfer.Transferred]) -> List[str]:
    """The same of every data set, whose name stands before them."""
    return [
        _of(name, remark) for name, one in datasets.items() for remark in remarks_of(one.results)
    ]


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
        "subsets": drawn_of(data, run.train, run.val) if run.train else {},
        "train_images": len(run.train.dataset) if run.train else None,
        "val_images": len(run.val.dataset) if run.val else None,
        "transform": " ".join(str(images.transform).split()),
        "transform_of_others": " ".join(str(images.whole).split()),
        "feature_dtype": f"{flags.feature_dtype} unit rows",
        **provenance(machine_of_evaluation(run.device), pretrained.args),
    }
