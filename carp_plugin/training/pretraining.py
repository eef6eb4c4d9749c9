"""One pretraining run, from a composed configuration to its summary; does what the host's main_pretrain.py does."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Dict, List, cast

import torch
import torch.nn as nn
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError

from carp_plugin import register
from carp_plugin.data.loaders import (
    count_files,
    labelled_loaders,
    pretrain_dali,
    pretrain_loader,
    say_bad_images,
)
from carp_plugin.errors import UserError
from carp_plugin.evaluation.curve import KnnCurve
from carp_plugin.evaluation.features import FeatureEvaluator, linear_accuracy
from carp_plugin.host import METHODS, AutoUMAP, make_contiguous, omegaconf_select
from carp_plugin.settings.pretraining import checked, plain
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.callbacks.collapse import CollapseMonitor
from carp_plugin.training.callbacks.finite import FiniteLoss
from carp_plugin.training.callbacks.host_state import RestoresHostState
from carp_plugin.training.convolutions import use_one_pixel_convolutions
from carp_plugin.training.memory import keep_freed_memory
from carp_plugin.training.report import (
    Plan,
    Row,
    closing,
    losses,
    opening,
    plan_of,
    provenance,
    warnings_of,
)
from carp_plugin.training.run import TrainingRun
from carp_plugin.training.state import NETWORKS
from carp_plugin.training.unlabelled import rest_classifiers


def pretrain(cfg: DictConfig) -> Dict[str, Any]:
    """Trains a method as the configuration says and evaluates what came out.

    Args:
        cfg: as Hydra composed it.

    Returns:
        Dict[str, Any]: what ``summary.json`` holds.

    Raises:
        UserError: a mistake in the configuration, the data or the machine's set-up.
    """
    register()
    # Lightning greets, advises and counts devices; the opening block says what of it matters.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cfg = checked(cfg)
    if cfg.accelerator == "cpu":
        keep_freed_memory()
    seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg)
    labelled = labelled_loaders(cfg)
    train: Any
    if cfg.data.format == "dali":
        train, images = pretrain_dali(cfg), count_files(cfg)
        train.val_dataloader = lambda: labelled[1] if labelled else []
    else:
        train = pretrain_loader(cfg)
        images = len(train.dataset)
    plan = plan_of(cfg, images)
    if is_main_process():
        say(opening(cfg, plan))
        for sentence in warnings_of(cfg, plan):
            say(f"warning: {sentence}", "yellow")
    return Run(cfg, model, train, labelled, plan).go()


def build_model(cfg: DictConfig) -> LightningModule:
    """The method, built by the host.

    Raises:
        UserError: a key of ``method_kwargs`` that the method needs is missing, or a value that it cannot be built with.
    """
    try:
        model = METHODS[cfg.method](cfg)
    except ConfigAttributeError as error:
        raise UserError(
            f"{error.full_key} is missing from the configuration; {cfg.method} needs it."
        ) from error
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # The host's constructors take settings unseen and fail wherever they first do not fit; memory too is one.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{cfg.method} on {cfg.backbone.name} cannot be built with these settings ({reason}); check method_kwargs "
            "and backbone.kwargs."
        ) from error
    make_contiguous(model)
    if cfg.data.no_labels:
        rest_classifiers(model)
    if cfg.accelerator == "cpu":
        use_one_pixel_convolutions(model)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    # An OmegaConf list of betas would reach the optimizer's state, which torch's weights_only then refuses.
    model.extra_optimizer_args = plain(cfg.optimizer.kwargs)
    return model


class Run(TrainingRun):
    """A run that is ready to go.

    Args:
        cfg: parsed configuration.
        model: the method.
        train: training loader, or the DALI data module.
        labelled: loaders for evaluation, or None.
        plan: the numbers of the run.
    """

    def __init__(
        self, cfg: DictConfig, model: LightningModule, train: Any, labelled: Any, plan: Plan
    ) -> None:
        self.train, self.labelled = train, labelled
        wanted = omegaconf_select(cfg, "evaluation.enabled", True) and is_main_process()
        self.evaluator = FeatureEvaluator(
            labelled if wanted else None,
            device=torch.device("cpu" if cfg.accelerator == "cpu" else "cuda"),
            k=omegaconf_select(cfg, "evaluation.k", 20),
            temperature=omegaconf_select(cfg, "evaluation.temperature", 0.07),
        )
        frequency = omegaconf_select(cfg, "evaluation.frequency", 0)
        super().__init__(
            cfg,
            model,
            plan,
            train,
            folder=Path(cfg.checkpoint.dir) / cfg.method,
            measure=KnnCurve(self.evaluator, frequency),
        )
        self.monitor = CollapseMonitor(stop=omegaconf_select(cfg, "collapse.stop", False))

    def go(self) -> Dict[str, Any]:
        """Trains, evaluates, prints the table and writes the summary.

        Returns:
            Dict[str, Any]: the summary.

        Raises:
            UserError: training was ended by ``collapse.stop``; the summary is written.
        """
        rows = [self._random_row()]
        self.resumed_from, wandb_run_id = self.resume()
        trainer = self.trainer(wandb_run_id)
        started = time.time()
        self.fit(trainer, self.train, self.labelled and self.labelled[1])
        seconds = time.time() - started
        say_bad_images(self.train)
        if trainer.is_global_zero:
            summary = self._close(rows, trainer, seconds)
        else:
            summary = {}
        if self.monitor.stopped:
            raise UserError(
                f"training was stopped after epoch {trainer.current_epoch - 1} of {self.cfg.max_epochs}: "
                f"{self.monitor.signs[0]} collapse.stop=False would have gone on."
            )
        return summary

    def _close(self, rows: List[Row], trainer: Trainer, seconds: float) -> Dict[str, Any]:
        """What there is to say after the last step, and the summary."""
        rows += self._trained_rows()
        rows = [row for row in rows if row.knn is not None or row.linear is not None]
        if rows:
            say(closing(rows, self.cfg.method, self.evaluator.k))
        say(losses(self.history.last))
        for sign in self.monitor.signs:
            say(f"warning: collapse: {sign}", "yellow")
        return self._summary(rows, trainer, seconds)

    def _random_row(self) -> Row:
        """The backbone before the first step; its linear layer is trained on features computed once."""
        name = "random, before training"
        features = self.evaluator.features(
            cast(nn.Module, self.model.backbone), "the random backbone"
        )
        if features is None:
            return Row(name, None, None)
        accuracy = linear_accuracy(
            *features,
            epochs=self.cfg.max_epochs,
            batch_size=self.cfg.optimizer.batch_size,
            lr=self.cfg.optimizer.classifier_lr,
            optimizer=self.cfg.optimizer.name,
            seed=self.cfg.seed,
        )
        return Row(name, self.evaluator.knn(features), accuracy)

    def _trained_rows(self) -> List[Row]:
        """Student, and teacher where the method has one; the linear column is the online classifier's."""
        rows = []
        for name, attribute in NETWORKS.items():
            backbone = getattr(self.model, attribute, None)
            if backbone is None:
                continue
            knn = self.history.last.get(f"knn_{name}")  # measured after the last epoch already
            if knn is None:
                features = self.evaluator.features(backbone, f"the {name}")
                knn = None if features is None else self.evaluator.knn(features)
            metric = "val_acc1" if name == "student" else "momentum_val_acc1"
            rows.append(Row(name, knn, self.history.last.get(metric)))
        return rows

    def callbacks(self) -> List[Callback]:
        """Those of every run, what watches this one, the host's state, and the pictures that are asked for."""
        cfg = self.cfg
        callbacks: List[Callback] = [RestoresHostState(), FiniteLoss(self.checkpointer)]
        if omegaconf_select(cfg, "collapse.enabled", True):
            callbacks.append(self.monitor)  # before the history, which keeps its metrics
        callbacks += super().callbacks()
        if omegaconf_select(cfg, "auto_umap.enabled", False):
            if AutoUMAP is None:
                raise UserError(
                    "auto_umap.enabled=True needs UMAP, which is not installed; `pip install carp-plugin[umap]`."
                )
            folder = Path(cfg.auto_umap.dir) / cfg.method
            callbacks.append(AutoUMAP(cfg.name, logdir=folder, frequency=cfg.auto_umap.frequency))
        return callbacks

    def _summary(self, rows: List[Row], trainer: Trainer, seconds: float) -> Dict[str, Any]:
        last = self.last_checkpoint()
        summary = {
            "method": self.cfg.method,
            "name": self.cfg.name,
            "seed": self.cfg.seed,
            "accuracy": [vars(row) for row in rows],
            "last_epoch": self.history.last,
            "signs_of_collapse": self.monitor.signs,
            "steps": trainer.global_step,
            "seconds": round(seconds, 1),
            "checkpoint": None if last is None else str(last),
            **provenance(self.cfg),
        }
        self.write(summary)
        return summary
