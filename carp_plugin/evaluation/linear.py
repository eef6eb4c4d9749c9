"""Linear evaluation, appendix C.1 of the paper: the host's linear model on a frozen, pretrained backbone.

Every run proves that the backbone stayed what it was, weights and running statistics of batch norm, by a checksum.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

import torch
import torch.nn as nn
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rich.table import Table

from carp_plugin.data.labelled import LabelledData
from carp_plugin.data.used import place
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import Pretrained, advice_silenced, agrees
from carp_plugin.evaluation.classifier import FEW, ClassifierRun
from carp_plugin.host import HOST, LinearModel, make_contiguous
from carp_plugin.host.cfg import linear_cfg, plain
from carp_plugin.settings.linear import Linear
from carp_plugin.training.plan import Plan
from carp_plugin.training.report import block_of, provenance, rows_of, steps_line
from carp_plugin.training.state import file_sha256, read_checkpoint


def build_model(
    settings: Linear, pretrained: Pretrained, plan: Plan, backbone: nn.Module
) -> LightningModule:
    """The host's linear model; the layer's first weights are those of the seed, whatever the backbone.

    Args:
        settings: of the evaluation.
        pretrained: the checkpoint.
        plan: the numbers of the run.
        backbone: images (N, 3, H, W) to features (N, F).

    Raises:
        UserError: the settings name another method or backbone than the checkpoint's.
    """
    values = {**settings.values(), **_of_checkpoint(settings, pretrained)}
    cfg = linear_cfg(values, plan.machine.accelerator, plan.machine.devices, plan.classes)
    seed_everything(settings.seed, verbose=False)
    with advice_silenced():
        model = LinearModel(backbone, cfg=cfg)
    model.cfg = cfg  # the current host's model does not keep it
    make_contiguous(model)
    if not settings.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    # No OmegaConf object may reach the optimizer's state: torch's weights_only would refuse the checkpoint.
    model.extra_optimizer_args = plain(cfg.optimizer.kwargs)
    # Lightning warns about modules in evaluation mode; the host puts the backbone there at every step.
    return model.train()


def check_named(settings: Linear, pretrained: Pretrained) -> None:
    """What the settings name of the checkpoint agrees with it.

    Raises:
        UserError: another method, backbone or another of its arguments.
    """
    ours = {
        "pretrain_method": settings.pretrain_method,
        "backbone.name": settings.backbone.name,
        "backbone.kwargs": settings.backbone.kwargs,
    }
    agrees(pretrained, ours)


def _of_checkpoint(settings: Linear, pretrained: Pretrained) -> Dict[str, Any]:
    """What is taken over from the checkpoint; ``features``, what the layer is trained on, is compared by resume."""
    theirs, transforms = pretrained.named(), settings.data.model_dump(mode="json")
    return {
        "pretrain_method": theirs["pretrain_method"],
        "backbone": {"name": theirs["backbone.name"], "kwargs": theirs["backbone.kwargs"]},
        "features": {
            "sha256": file_sha256(pretrained.path),
            "network": settings.network,
            "train_transform": transforms["train_transform"],
            "eval_transform": transforms["eval_transform"],
        },
    }


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


class LinearRun(ClassifierRun):
    """A linear evaluation that is ready to go.

    Args:
        settings: of the evaluation.
        pretrained: what is evaluated.
        model: the host's linear model on its backbone.
        data: labelled images.
        plan: the numbers of the run.
        remarks: sentences on the settings and the data that were said at its beginning, for the summary.
    """

    settings: Linear

    def __init__(
        self,
        settings: Linear,
        pretrained: Pretrained,
        model: LightningModule,
        data: LabelledData,
        plan: Plan,
        remarks: Sequence[str] = (),
    ) -> None:
        args = plain(model.cfg)
        super().__init__(settings, args, model, data, plan, "linear")
        self.pretrained, self.remarks = pretrained, list(remarks)
        self.frozen = fingerprint(self._backbone_state())

    def _backbone_state(self) -> Mapping[str, torch.Tensor]:
        backbone: Any = self.model.backbone
        return backbone.state_dict()

    def check_resumed(self, path: Path) -> None:
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
                f"{path} was trained on another backbone than the {self.settings.network} of {self.pretrained.path}; "
                "give the checkpoint of a run on this one, or start anew with auto_resume.enabled=False."
            )

    def check_trained(self) -> None:
        """Compares the backbone, weights and running statistics, with what was loaded.

        Raises:
            UserError: a bit of it has changed.
        """
        if fingerprint(self._backbone_state()) != self.frozen:
            raise UserError(
                f"the backbone did not stay frozen: its weights or running statistics differ from those of the "
                f"{self.settings.network} of {self.pretrained.path}, so that the accuracies are no linear evaluation; "
                "take out whatever trains it or leaves it in training mode."
            )

    def summary(self, hits: torch.Tensor, trainer: Trainer, seconds: float) -> Dict[str, Any]:
        """What ``summary.json`` holds."""
        last = self.last_checkpoint()
        return {
            "name": self.settings.name,
            "pretrain_method": self.pretrained.method,
            "network": self.settings.network,
            "seed": self.settings.seed,
            **self.accuracies(hits),
            "remarks": self.remarks,
            "classes": self.plan.classes,
            "images": {"train": self.data.images, "val": self.data.val_images},
            "subsets": self.data.drawn,
            "steps": trainer.global_step,
            "seconds": round(seconds, 1),
            "pretrained": {
                "checkpoint": str(self.pretrained.path),
                "sha256": self.args["features"]["sha256"],
                "epoch": self.pretrained.epoch,
                "loaded": self.pretrained.sentence,
                "frozen_backbone_sha256": self.frozen,
            },
            "checkpoint": None if last is None else str(last),
            "plan": self.plan.as_dict(),
            **provenance(self.plan.machine, self.settings.values()),
        }

    def closing(self, summary: Dict[str, Any]) -> Table:
        """The table that a run ends with."""
        return closing(summary)


def opening(settings: Linear, pretrained: Pretrained, data: LabelledData, plan: Plan) -> Table:
    """The block that a run opens with."""
    optimizer, scheduler = settings.optimizer, settings.scheduler
    backbone = pretrained.trained.backbone.name
    lr = f"{plan.lr:.4g} ({optimizer.name}, {scheduler.name}; lr = optimizer.lr x batch / 256)"
    return block_of(
        [
            ("host", str(HOST)),
            ("checkpoint", pretrained.sentence),
            ("features", f"{settings.network} of {pretrained.method}, {backbone}, frozen"),
            (
                "data",
                f"{data.images} images to train, {data.val_images} to validate, {plan.classes} classes, "
                f"{place(settings.data)} ({settings.data.format})",
            ),
            *rows_of(data.drawn),
            ("device", str(plan.machine)),
            ("global batch", f"{plan.global_batch} images"),
            ("learning rate", lr),
            ("steps", steps_line(plan, settings.max_epochs, settings.seed)),
        ]
    )


def closing(summary: Dict[str, Any]) -> Table:
    """The table that a run ends with."""
    table = Table(
        title=f"{summary['network']} of {summary['pretrain_method']}: linear accuracy, %",
        caption=f"on {summary['images']['val']} validation images, which also chose the best epoch",
    )
    table.add_column("layer of")
    table.add_column("top-1", justify="right")
    few = f" ({summary['classes']} classes: always 100)" if summary["classes"] <= FEW else ""
    table.add_column(f"top-5{few}", justify="right")
    table.add_row("the last epoch", f"{summary['top1']:.2f}", f"{summary['top5']:.2f}")
    best = f"the best epoch, {summary['best_epoch']}"
    table.add_row(best, f"{summary['best_top1']:.2f}", f"{summary['best_top5']:.2f}")
    return table
