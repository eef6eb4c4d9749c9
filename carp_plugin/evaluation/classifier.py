"""What evaluations that train a classifier share: on a frozen backbone (linear evaluation) or with it (fine-tuning)."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import torch
import torch.nn as nn
from lightning.pytorch import LightningModule, Trainer
from rich.table import Table

from carp_plugin.data.labelled import LabelledData
from carp_plugin.data.loaders import say_bad_images
from carp_plugin.evaluation.features import extract
from carp_plugin.settings.trainer import Run
from carp_plugin.terminal import say
from carp_plugin.training.plan import Plan
from carp_plugin.training.run import TrainingRun

#: Of so few classes every label is among the first five.
FEW = 5


class ClassifierRun(TrainingRun, ABC):
    """A classifier's training that is ready to go, on the backbone it stands on.

    Args:
        settings: of the evaluation.
        args: what ``args.json`` will hold.
        model: images (N, 3, H, W) to a dictionary with ``logits`` (N, C).
        data: labelled images.
        plan: the numbers of the run.
        kind: its checkpoints go to ``checkpoint.dir``/kind.
    """

    def __init__(
        self,
        settings: Run,
        args: Mapping[str, Any],
        model: LightningModule,
        data: LabelledData,
        plan: Plan,
        kind: str,
    ) -> None:
        super().__init__(settings, args, model, plan, data.train, kind)
        self.data = data

    def go(self) -> Dict[str, Any]:
        """Trains, measures, prints the table and writes the summary."""
        self.resumed_from, wandb_run_id = self.resume()
        if self.resumed_from is not None:
            self.check_resumed(self.resumed_from)
        trainer = self.trainer(wandb_run_id)
        started = time.time()
        self.fit(trainer, self.data.train, self.data.val)
        seconds = time.time() - started
        say_bad_images(self.data.train)
        self.check_trained()
        if not trainer.is_global_zero:
            return {}
        hits = self._hits(trainer)
        summary = self.summary(hits, trainer, self.seconds(seconds))
        where = self.write(summary)
        say(self.closing(summary))
        say(where)
        return {**summary, "correct": hits[:, 0].tolist(), "epochs": self.history.epochs}

    def check_resumed(self, path: Path) -> None:
        """Whether what a checkpoint holds can be gone on with; raises a UserError where it cannot."""

    def check_trained(self) -> None:
        """Whether training left what it must leave; raises a UserError where it did not."""

    @abstractmethod
    def summary(self, hits: torch.Tensor, trainer: Trainer, seconds: float) -> Dict[str, Any]:
        """What ``summary.json`` holds."""

    @abstractmethod
    def closing(self, summary: Dict[str, Any]) -> Table:
        """The table that a run ends with."""

    @torch.no_grad()
    def _hits(self, trainer: Trainer) -> torch.Tensor:
        """Whether the label is the first, and whether it is among the first five: (N, 2) bool, in order."""
        device = self.plan.machine.device
        quiet = self.settings.enable_progress_bar is False
        with trainer.precision_plugin.forward_context():
            logits_NC, targets_N = extract(
                _Logits(self.model).to(device),
                self.data.val,
                device,
                title="" if quiet else "predictions of the last epoch's layer",
            )
        ranks = logits_NC.topk(min(FEW, logits_NC.size(1)), dim=1).indices
        right = ranks == targets_N[:, None]
        return torch.stack([right[:, 0], right.any(dim=1)], dim=1)

    def accuracies(self, hits: torch.Tensor) -> Dict[str, Any]:
        """Accuracies in percent of the last epoch and of the best one by top-1, the first of equals.

        Args:
            hits: (N, 2) bool, top-1 and top-5 of the last epoch.
        """
        top1, top5 = (rounded(value) for value in (hits.float().mean(dim=0) * 100).tolist())
        best_top1, best_top5, best_epoch = self._best(top1, top5)
        return {
            "top1": top1,
            "top5": top5,
            "best_top1": best_top1,
            "best_top5": best_top5,
            "best_epoch": best_epoch,
            "last_epoch": self.history.last,
        }

    def _best(self, top1: float, top5: float) -> Tuple[float, float, int]:
        measured = [epoch for epoch in self.history.epochs if "val_acc1" in epoch]
        if not measured:
            return top1, top5, self.settings.max_epochs - 1
        best = max(measured, key=lambda epoch: epoch["val_acc1"])
        best_top5 = best.get("val_acc5", 100.0)  # not logged where it always is
        return rounded(best["val_acc1"]), rounded(best_top5), int(best["epoch"])


class _Logits(nn.Module):
    """A model with ``logits`` as images (N, 3, H, W) to logits (N, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)["logits"]


def rounded(percent: float) -> float:
    """Three decimals: averages over batches in float32 are exact to no more."""
    return round(percent, 3)
