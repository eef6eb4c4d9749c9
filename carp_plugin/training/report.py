"""What a pretraining run says: the block at its start, the table at its end, and ``summary.json``."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from rich.table import Table

from carp_plugin import __version__
from carp_plugin.data.used import place
from carp_plugin.host import HOST
from carp_plugin.host.detect import checkout_commit
from carp_plugin.settings.methods import CarlKwargs
from carp_plugin.settings.parts import CarpKwargs, Scheduler
from carp_plugin.settings.pretraining import Pretraining
from carp_plugin.training.devices import Machine
from carp_plugin.training.plan import Plan

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy", "pillow")


def opening(settings: Pretraining, plan: Plan, drawn: Optional[Mapping[str, Any]] = None) -> Table:
    """The block that a run opens with.

    Args:
        settings: of the run.
        plan: its numbers.
        drawn: which images were asked for, of :func:`carp_plugin.data.datasets.subsets_of`.
    """
    machine, data, optimizer = plan.machine, settings.data, settings.optimizer
    threads = f", {torch.get_num_threads()} threads" if machine.accelerator == "cpu" else ""
    classes = "no labels" if data.no_labels else f"{plan.classes} classes"
    crops = " + ".join(f"{a.num_crops} of {a.crop_size} px" for a in settings.augmentations)
    if settings.patches is not None:
        crops += f" + 9 patches of {settings.patches.patch_size} px"
    rows = [
        ("host", str(HOST)),
        (
            "method",
            f"{settings.method} on {settings.backbone.name} (carp-plugin {__version__})",
        ),
        (
            "data",
            f"{plan.images} images, {classes}, {place(data)} ({data.format})",
        ),
        *rows_of(drawn or {}),
        ("views", crops),
        ("device", f"{machine}{threads}, precision {settings.precision or '32-true'}"),
        ("global batch", f"{plan.global_batch} images"),
        (
            "learning rate",
            f"{_rates(settings.scheduler, plan)} ({optimizer.name}, {settings.scheduler.name}; "
            "lr = optimizer.lr x batch / 256)",
        ),
    ]
    kwargs = settings.method_kwargs
    if isinstance(kwargs, CarpKwargs):
        K, B = kwargs.num_prototypes, kwargs.partition_size
        blocks = f"K = {K}, B = {B}: {K // B} blocks, {kwargs.partition} partition"
        rows.append(("prototypes", blocks))
    elif isinstance(kwargs, CarlKwargs):
        rows.append(("prototypes", f"K = {kwargs.num_prototypes}"))
    rows.append(("steps", steps_line(plan, settings.max_epochs, settings.seed)))
    return block_of(rows)


def rows_of(drawn: Mapping[str, Any]) -> List[Tuple[str, str]]:
    """Rows of an opening block: which images were asked for."""
    names = {"train": "training images", "val": "validation images"}
    return [
        (
            names[part],
            f"{some['images']:,} of {some['of']:,} ({some['name']}), sha256 {some['sha256'][:12]}",
        )
        for part, some in drawn.items()
    ]


def steps_line(plan: Plan, max_epochs: int, seed: int) -> str:
    """How long a run is."""
    return (
        f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in {max_epochs} epochs; seed {seed}"
    )


def block_of(rows: Sequence[Tuple[str, str]]) -> Table:
    """Names and what they are, one under the other."""
    block = Table(show_header=False, box=None, padding=(0, 1))
    for row in rows:
        block.add_row(*row)
    return block


def _rates(scheduler: Scheduler, plan: Plan) -> str:
    """The learning rates that a run begins and ends with."""
    if scheduler.name == "none":
        return f"{plan.lr:.4g} throughout"
    if scheduler.name == "step":
        return f"{plan.lr:.4g}, lowered at epochs {list(scheduler.lr_decay_steps or ())}"
    return f"{plan.lr:.4g} to {plan.min_lr:.4g}"


@dataclass
class Row:
    """Accuracies of one backbone in percent; None where they were not measured."""

    features: str
    knn: Optional[float]
    linear: Optional[float]


def closing(rows: List[Row], method: str, k: int) -> Table:
    """The table that a run ends with: accuracies of random, student and teacher features."""
    table = Table(title=f"{method}: accuracy on the validation images, %")
    table.add_column("features of the backbone")
    table.add_column(f"k-NN (k = {k})", justify="right")
    table.add_column("online linear", justify="right")
    for row in rows:
        table.add_row(row.features, _percent(row.knn), _percent(row.linear))
    return table


def doubts_on(rows: Sequence[Row]) -> List[str]:
    """A sentence for each network whose features are worth less than those of the random one.

    Args:
        rows: the first is the backbone before training, if it was measured.
    """
    if not rows or rows[0].knn is None or not rows[0].features.startswith("random"):
        return []
    return [
        f"warning: the {row.features}'s features are worth less than those of the random network "
        f"({row.knn:.2f} against {rows[0].knn:.2f} % k-NN): nothing that tells the classes apart was learnt, or too "
        "little yet."
        for row in rows[1:]
        if row.knn is not None and row.knn < rows[0].knn
    ]


def losses(last_epoch: Dict[str, float]) -> str:
    """What the last epoch of training logged, on one line; accuracies stand in the table."""
    named = {
        key[len("train_") :]: value
        for key, value in last_epoch.items()
        if key.startswith("train_") and "acc" not in key and key != "train_seconds"
    }
    return "last epoch: " + ", ".join(f"{key} {value:.4g}" for key, value in named.items())


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.2f}"


def provenance(machine: Machine, config: Mapping[str, Any]) -> Dict[str, Any]:
    """Everything that defines a result: host, versions, machine and settings, as json takes it.

    Args:
        machine: what it was computed on.
        config: the settings as they were written.
    """
    return {
        "commit": checkout_commit(Path(__file__).resolve().parents[2]),
        "host": HOST.as_dict(),
        "versions": {
            "carp-plugin": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "machine": {
            "device": f"{len(machine.devices)} x {machine.accelerator}",
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "config": dict(config),
    }


def _version(name: str) -> Optional[str]:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
