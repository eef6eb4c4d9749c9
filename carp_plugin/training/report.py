"""What a pretraining run says: the block at its start, the table at its end, and ``summary.json``."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from omegaconf import DictConfig
from rich.table import Table

from carp_plugin import __version__
from carp_plugin.host import HOST, omegaconf_select
from carp_plugin.host.detect import checkout_commit
from carp_plugin.settings.pretraining import plain

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy", "pillow")


@dataclass
class Plan:
    """What a run is going to do, in numbers.

    Attributes:
        images: training images.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps of the run.
        global_batch: images of an optimizer step, over devices, nodes and accumulated batches.
        lr: effective peak learning rate.
        min_lr: effective final learning rate.
    """

    images: int
    steps_per_epoch: int
    total_steps: int
    global_batch: int
    lr: float
    min_lr: float


def plan_of(cfg: DictConfig, images: int) -> Plan:
    """Derives the numbers of a run from its parsed configuration.

    Args:
        cfg: parsed, so that lr is scaled by the batch already.
        images: number of training images.
    """
    world = len(cfg.devices) * cfg.num_nodes
    accumulated = omegaconf_select(cfg, "accumulate_grad_batches", 1) or 1
    batches = images // world // cfg.optimizer.batch_size
    limit = omegaconf_select(cfg, "limit_train_batches")
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = -(-batches // accumulated)
    total = steps * cfg.max_epochs
    max_steps = omegaconf_select(cfg, "max_steps", -1)
    return Plan(
        images=images,
        steps_per_epoch=steps,
        total_steps=total if max_steps in (None, -1) else min(total, max_steps),
        global_batch=cfg.optimizer.batch_size * world * accumulated,
        lr=cfg.optimizer.lr * accumulated,
        min_lr=(omegaconf_select(cfg, "scheduler.min_lr", 0.0) or 0.0) * accumulated,
    )


def opening(cfg: DictConfig, plan: Plan) -> Table:
    """The block that a run opens with."""
    block = Table(show_header=False, box=None, padding=(0, 1))
    world = f"{len(cfg.devices)} x {cfg.accelerator}" + (
        f", {cfg.num_nodes} nodes" if cfg.num_nodes > 1 else ""
    )
    threads = f", {torch.get_num_threads()} threads" if cfg.accelerator == "cpu" else ""
    crops = " + ".join(f"{a.num_crops} of {a.crop_size} px" for a in cfg.augmentations)
    rows = [
        ("host", str(HOST)),
        ("method", f"{cfg.method} on {cfg.backbone.name} (carp-plugin {__version__})"),
        (
            "data",
            f"{plan.images} images, {cfg.data.num_classes} classes, {cfg.data.train_path} ({cfg.data.format})",
        ),
        ("views", crops),
        ("device", f"{world}{threads}, precision {omegaconf_select(cfg, 'precision', '32-true')}"),
        ("global batch", f"{plan.global_batch} images"),
        (
            "learning rate",
            f"{_rates(cfg, plan)} ({cfg.optimizer.name}, {cfg.scheduler.name}; lr = optimizer.lr x batch / 256)",
        ),
    ]
    if cfg.method == "carp":
        K, B = cfg.method_kwargs.num_prototypes, cfg.method_kwargs.partition_size
        rows.append(
            (
                "prototypes",
                f"K = {K}, B = {B}: {K // B} blocks, {cfg.method_kwargs.partition} partition",
            )
        )
    rows.append(
        (
            "steps",
            f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in {cfg.max_epochs} epochs; seed {cfg.seed}",
        )
    )
    for row in rows:
        block.add_row(*row)
    return block


def _rates(cfg: DictConfig, plan: Plan) -> str:
    """The learning rates that a run begins and ends with."""
    if cfg.scheduler.name == "none":
        return f"{plan.lr:.4g} throughout"
    if cfg.scheduler.name == "step":
        return f"{plan.lr:.4g}, lowered at epochs {list(cfg.scheduler.lr_decay_steps)}"
    return f"{plan.lr:.4g} to {plan.min_lr:.4g}"


def warnings_of(cfg: DictConfig, plan: Plan) -> List[str]:
    """Sentences about settings that are allowed but unlikely to be meant."""
    said = []
    if plan.min_lr > plan.lr:
        said.append(
            f"scheduler.min_lr={plan.min_lr:.4g} is above the effective learning rate {plan.lr:.4g}: the host scales "
            "optimizer.lr by the batch but never min_lr."
        )
    if cfg.method == "carp":
        world = len(cfg.devices) * cfg.num_nodes
        views = cfg.data.num_large_crops * 2 + cfg.data.num_small_crops
        rows = views * cfg.optimizer.batch_size * world
        B = cfg.method_kwargs.partition_size
        if rows < B:
            said.append(
                f"a global batch has {rows} rows ({views} views of student and teacher), fewer than the "
                f"partition_size B = {B}: their mean cannot be uniform over a block, and the entropy term "
                f"loses its meaning; use a larger batch or partition_size={_power_below(rows)} or less (section 6.2)."
            )
    if omegaconf_select(cfg, "knn_eval.enabled", False) and (
        cfg.data.no_labels or cfg.data.val_path is None
    ):
        said.append(
            "knn_eval is switched off: without labelled validation images it has nothing to measure."
        )
    return said


def _power_below(rows: int) -> int:
    return 1 << (max(rows, 1).bit_length() - 1)


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


def provenance(cfg: DictConfig) -> Dict[str, Any]:
    """Everything that defines a result: host, versions, machine and resolved configuration, as json takes it."""
    return {
        "commit": checkout_commit(Path(__file__).resolve().parents[2]),
        "host": HOST.as_dict(),
        "versions": {
            "carp-plugin": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "machine": {
            "device": f"{len(cfg.devices)} x {cfg.accelerator}",
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "config": plain(cfg),
    }


def _version(name: str) -> Optional[str]:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
