"""Linear evaluation, appendix C.1 of the paper: the host's linear model on a frozen, pretrained backbone.

``linear`` is what ``main_linear.py`` calls. Every run proves that the backbone stayed what it was, weights and running
statistics of batch norm, by a checksum.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Tuple

import torch
import torch.nn as nn
from lightning.pytorch import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from rich.table import Table

from carp_plugin import register
from carp_plugin.data.labelled import LabelledData, labelled_data
from carp_plugin.data.loaders import say_bad_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import Pretrained, advice_silenced
from carp_plugin.evaluation.features import extract
from carp_plugin.host import HOST, LinearModel, make_contiguous, omegaconf_select
from carp_plugin.settings.linear import checked_linear
from carp_plugin.settings.pretraining import plain
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.convolutions import use_one_pixel_convolutions
from carp_plugin.training.memory import keep_freed_memory
from carp_plugin.training.report import Plan, plan_of, provenance
from carp_plugin.training.run import TrainingRun
from carp_plugin.training.state import read_checkpoint


def linear(cfg: DictConfig) -> Dict[str, Any]:
    """Trains a linear layer on the frozen backbone of a checkpoint and measures it on the validation images.

    Deterministic on the CPU, given ``cfg.seed``, and the same whether it was interrupted and resumed or not.

    Args:
        cfg: as Hydra composed it; left as it is.

    Returns:
        Dict[str, Any]: accuracies in percent of the last epoch (``top1``, ``top5``) and of the best one by top-1
        (``best_top1``, ``best_top5``, ``best_epoch``, counted from 0); ``correct``, a bool for each validation image
        in the order of the data set, whether the last epoch's layer gets it right; ``epochs``, a dictionary of metrics
        for each; ``seconds`` of training; and what ``summary.json`` holds besides. Empty on ranks other than 0.

    Raises:
        UserError: a mistake in the configuration, the checkpoint, the data or the machine's set-up, or a backbone that
            did not stay frozen.
    """
    register()
    # Lightning greets, advises and counts devices; the opening block says what of it matters.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cfg, pretrained = checked_linear(copy.deepcopy(cfg))
    backbone = pretrained.network(cfg.network)
    if cfg.accelerator == "cpu":
        keep_freed_memory()
        use_one_pixel_convolutions(backbone)
    data = labelled_data(cfg, pretrained.cfg)
    plan = plan_of(cfg, data.images)
    if is_main_process():
        say(opening(cfg, pretrained, data, plan))
    return LinearRun(cfg, pretrained, build_model(cfg, backbone), data, plan).go()


def build_model(cfg: DictConfig, backbone: nn.Module) -> LightningModule:
    """The host's linear model; the layer's first weights are those of the seed, whatever the backbone.

    Args:
        cfg: parsed configuration.
        backbone: images (N, 3, H, W) to features (N, F).
    """
    seed_everything(cfg.seed, verbose=False)
    with advice_silenced():
        model = LinearModel(backbone, cfg=cfg)
    make_contiguous(model)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    # No OmegaConf object may reach the optimizer's state: torch's weights_only would refuse the checkpoint.
    model.extra_optimizer_args = plain(cfg.optimizer.kwargs)
    # Lightning warns about modules in evaluation mode; the host puts the backbone there at every step.
    return model.train()


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and every bit, in the order of the names.

    Args:
        state: as ``state_dict()`` gives it, buffers and all; memory format and device make no difference.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LinearRun(TrainingRun):
    """A linear evaluation that is ready to go.

    Args:
        cfg: parsed configuration.
        pretrained: what is evaluated.
        model: the host's linear model on its backbone.
        data: labelled images.
        plan: the numbers of the run.
    """

    def __init__(
        self,
        cfg: DictConfig,
        pretrained: Pretrained,
        model: LightningModule,
        data: LabelledData,
        plan: Plan,
    ) -> None:
        super().__init__(cfg, model, plan, data.train, folder=Path(cfg.checkpoint.dir) / "linear")
        self.pretrained, self.data = pretrained, data
        self.frozen = fingerprint(self._backbone_state())

    def _backbone_state(self) -> Mapping[str, torch.Tensor]:
        backbone: Any = self.model.backbone
        return backbone.state_dict()

    def go(self) -> Dict[str, Any]:
        """Trains, measures, prints the table and writes the summary."""
        self.resumed_from, wandb_run_id = self.resume()
        if self.resumed_from is not None:
            self._continue_from(self.resumed_from)
        trainer = self.trainer(wandb_run_id)
        started = time.time()
        self.fit(trainer, self.data.train, self.data.val)
        seconds = time.time() - started
        say_bad_images(self.data.train)
        self.check_frozen()
        if not trainer.is_global_zero:
            return {}
        hits = self._hits(trainer)
        summary = self._summary(hits, trainer, seconds)
        say(closing(summary))
        self.write(summary)
        return {**summary, "correct": hits[:, 0].tolist(), "epochs": self.history.epochs}

    def _continue_from(self, path: Path) -> None:
        """Checks that a run was on the same backbone.

        Raises:
            UserError: the run was on another backbone.
        """
        content = read_checkpoint(path)
        prefix = "backbone."
        state = {
            name[len(prefix) :]: tensor
            for name, tensor in content["state_dict"].items()
            if name.startswith(prefix)
        }
        if fingerprint(state) != self.frozen:
            raise UserError(
                f"{path} was trained on another backbone than the {self.cfg.network} of {self.pretrained.path}; "
                "give the checkpoint of a run on this one, or start anew with auto_resume.enabled=False."
            )

    def check_frozen(self) -> None:
        """Compares the backbone, weights and running statistics, with what was loaded.

        Raises:
            UserError: a bit of it has changed.
        """
        if fingerprint(self._backbone_state()) != self.frozen:
            raise UserError(
                f"the backbone did not stay frozen: its weights or running statistics differ from those of the "
                f"{self.cfg.network} of {self.pretrained.path}, so that the accuracies are no linear evaluation; "
                "take out whatever trains it or leaves it in training mode."
            )

    @torch.no_grad()
    def _hits(self, trainer: Trainer) -> torch.Tensor:
        """Whether the label is the first, and whether it is among the first five: (N, 2) bool, in order."""
        device = torch.device("cpu" if self.cfg.accelerator == "cpu" else "cuda")
        quiet = omegaconf_select(self.cfg, "enable_progress_bar", True) is False
        with trainer.precision_plugin.forward_context():
            logits_NC, targets_N = extract(
                _Logits(self.model).to(device),
                self.data.val,
                device,
                title="" if quiet else "predictions of the last epoch's layer",
            )
        ranks = logits_NC.topk(min(5, logits_NC.size(1)), dim=1).indices
        right = ranks == targets_N[:, None]
        return torch.stack([right[:, 0], right.any(dim=1)], dim=1)

    def _best(self, top1: float, top5: float) -> Tuple[float, float, int]:
        """Top-1, top-5 and number of the best epoch by top-1, the first of equals."""
        measured = [epoch for epoch in self.history.epochs if "val_acc1" in epoch]
        if not measured:
            return top1, top5, self.cfg.max_epochs - 1
        best = max(measured, key=lambda epoch: epoch["val_acc1"])
        return _rounded(best["val_acc1"]), _rounded(best["val_acc5"]), int(best["epoch"])

    def _summary(self, hits: torch.Tensor, trainer: Trainer, seconds: float) -> Dict[str, Any]:
        top1, top5 = (_rounded(value) for value in (hits.float().mean(dim=0) * 100).tolist())
        best_top1, best_top5, best_epoch = self._best(top1, top5)
        last = self.last_checkpoint()
        return {
            "name": self.cfg.name,
            "pretrain_method": self.cfg.pretrain_method,
            "network": self.cfg.network,
            "seed": self.cfg.seed,
            "top1": top1,
            "top5": top5,
            "best_top1": best_top1,
            "best_top5": best_top5,
            "best_epoch": best_epoch,
            "last_epoch": self.history.last,
            "classes": self.cfg.data.num_classes,
            "images": {"train": self.data.images, "val": self.data.val_images},
            "steps": trainer.global_step,
            "seconds": round(seconds, 1),
            "pretrained": {
                "checkpoint": str(self.pretrained.path),
                "sha256": self.cfg.features.sha256,
                "epoch": self.pretrained.epoch,
                "loaded": self.pretrained.sentence,
                "frozen_backbone_sha256": self.frozen,
            },
            "checkpoint": None if last is None else str(last),
            **provenance(self.cfg),
        }


class _Logits(nn.Module):
    """A linear model as images (N, 3, H, W) to logits (N, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)["logits"]


def _rounded(percent: float) -> float:
    """Three decimals: the host averages over batches in float32, which is exact to no more."""
    return round(percent, 3)


def opening(cfg: DictConfig, pretrained: Pretrained, data: LabelledData, plan: Plan) -> Table:
    """The block that a run opens with."""
    block = Table(show_header=False, box=None, padding=(0, 1))
    lr = f"{plan.lr:.4g} ({cfg.optimizer.name}, {cfg.scheduler.name}; lr = optimizer.lr x batch / 256)"
    rows: Sequence[Tuple[str, str]] = (
        ("host", str(HOST)),
        ("checkpoint", pretrained.sentence),
        ("features", f"{cfg.network} of {cfg.pretrain_method}, {cfg.backbone.name}, frozen"),
        (
            "data",
            f"{data.images} images to train, {data.val_images} to validate, {cfg.data.num_classes} classes, "
            f"{cfg.data.train_path} ({cfg.data.format})",
        ),
        ("device", f"{len(cfg.devices)} x {cfg.accelerator}"),
        ("global batch", f"{plan.global_batch} images"),
        ("learning rate", lr),
        (
            "steps",
            f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in {cfg.max_epochs} epochs; seed {cfg.seed}",
        ),
    )
    for row in rows:
        block.add_row(*row)
    return block


def closing(summary: Dict[str, Any]) -> Table:
    """The table that a run ends with."""
    table = Table(
        title=f"{summary['network']} of {summary['pretrain_method']}: linear accuracy, %",
        caption=f"on {summary['images']['val']} validation images, which also chose the best epoch",
    )
    table.add_column("layer of")
    table.add_column("top-1", justify="right")
    few = f" ({summary['classes']} classes: always 100)" if summary["classes"] <= 5 else ""
    table.add_column(f"top-5{few}", justify="right")
    table.add_row("the last epoch", f"{summary['top1']:.2f}", f"{summary['top5']:.2f}")
    best = f"the best epoch, {summary['best_epoch']}"
    table.add_row(best, f"{summary['best_top1']:.2f}", f"{summary['best_top5']:.2f}")
    return table
