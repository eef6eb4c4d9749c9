"""One pretraining run, from a composed configuration to its summary; does what the host's main_pretrain.py does."""

from __future__ import annotations

import inspect
import logging
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, cast

import torch
import torch.nn as nn
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.wandb import WandbLogger
from lightning.pytorch.strategies.ddp import DDPStrategy
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError

from carp_plugin import register
from carp_plugin.callbacks.checkpoint import AtomicCheckpointIO, Checkpointer, check_checkpoint
from carp_plugin.callbacks.history import History, write_json
from carp_plugin.callbacks.momentum import ResumeMomentum
from carp_plugin.config import checked, plain
from carp_plugin.convolutions import use_one_pixel_convolutions
from carp_plugin.data.loaders import count_files, labelled_loaders, pretrain_dali, pretrain_loader
from carp_plugin.devices import is_main_process
from carp_plugin.errors import UserError
from carp_plugin.evaluation.features import FeatureEvaluator, linear_accuracy
from carp_plugin.host import METHODS, AutoResumer, AutoUMAP, make_contiguous, omegaconf_select
from carp_plugin.report import (
    Plan,
    Row,
    closing,
    losses,
    opening,
    plan_of,
    provenance,
    say,
    signs_of_collapse,
    warnings_of,
)


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
        UserError: a key of ``method_kwargs`` that the method needs is missing.
    """
    try:
        model = METHODS[cfg.method](cfg)
    except ConfigAttributeError as error:
        raise UserError(
            f"{error.full_key} is missing from the configuration; {cfg.method} needs it."
        ) from error
    make_contiguous(model)
    if cfg.accelerator == "cpu":
        use_one_pixel_convolutions(model)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    # An OmegaConf list of betas would reach the optimizer's state, which torch's weights_only then refuses.
    model.extra_optimizer_args = plain(cfg.optimizer.kwargs)
    return model


class Run:
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
        self.cfg, self.model, self.plan = cfg, model, plan
        self.train, self.labelled = train, labelled
        self.resumed_from: Optional[Path] = None
        wanted = omegaconf_select(cfg, "evaluation.enabled", True) and is_main_process()
        self.evaluator = FeatureEvaluator(
            labelled if wanted else None,
            device=torch.device("cpu" if cfg.accelerator == "cpu" else "cuda"),
            k=omegaconf_select(cfg, "evaluation.k", 20),
            temperature=omegaconf_select(cfg, "evaluation.temperature", 0.07),
        )
        self.checkpointer = None
        if cfg.checkpoint.enabled:
            folder = Path(cfg.checkpoint.dir) / cfg.method
            self.checkpointer = Checkpointer(
                cfg, folder, cfg.checkpoint.frequency, cfg.checkpoint.keep_prev
            )
        self.history = History(self.checkpointer)

    def go(self) -> Dict[str, Any]:
        """Trains, evaluates, prints the table and writes the summary.

        Returns:
            Dict[str, Any]: the summary.
        """
        rows = [self._random_row()]
        self.resumed_from, wandb_run_id = self._resume()
        trainer = self._trainer(wandb_run_id)
        started = time.time()
        self._fit(trainer)
        seconds = time.time() - started
        if not trainer.is_global_zero:
            return {}
        rows += self._trained_rows()
        rows = [row for row in rows if row.knn is not None or row.linear is not None]
        if rows:
            say(closing(rows, self.cfg.method, self.evaluator.k))
        say(losses(self.history.last))
        for sign in self._collapse():
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
        backbones = [
            ("student", "backbone", "val_acc1"),
            ("teacher", "momentum_backbone", "momentum_val_acc1"),
        ]
        rows = []
        for name, attribute, metric in backbones:
            backbone = getattr(self.model, attribute, None)
            if backbone is not None:
                features = self.evaluator.features(backbone, f"the {name}")
                knn = None if features is None else self.evaluator.knn(features)
                rows.append(Row(name, knn, self.history.last.get(metric)))
        return rows

    def _resume(self) -> Tuple[Optional[Path], Optional[str]]:
        """The checkpoint to go on from, and its wandb run."""
        cfg = self.cfg
        if cfg.resume_from_checkpoint is not None:
            path = Path(cfg.resume_from_checkpoint)
            if not path.is_file():
                raise UserError(
                    f"resume_from_checkpoint={path} does not exist; give a .ckpt file, or leave it out."
                )
            check_checkpoint(path, self.model)
            return path, None
        if not cfg.auto_resume.enabled:
            return None, None
        folder = Path(cfg.checkpoint.dir) / cfg.method
        resumer = AutoResumer(folder, max_hours=cfg.auto_resume.max_hours)
        found, wandb_run_id = resumer.find_checkpoint(cfg)
        if found is None:
            return None, None
        check_checkpoint(Path(found), self.model)
        say(
            f"resuming from {found}, a run of the same settings (auto_resume.enabled=False starts anew)"
        )
        return Path(found), wandb_run_id

    def _callbacks(self) -> List[Callback]:
        cfg = self.cfg
        # The history stands before the checkpointer, so that a checkpoint holds its own epoch.
        callbacks: List[Callback] = [ResumeMomentum(), self.history]
        if self.checkpointer is not None:
            callbacks.append(self.checkpointer)
        if omegaconf_select(cfg, "auto_umap.enabled", False):
            if AutoUMAP is None:
                raise UserError(
                    "auto_umap.enabled=True needs UMAP, which is not installed; `pip install carp-plugin[umap]`."
                )
            folder = Path(cfg.auto_umap.dir) / cfg.method
            callbacks.append(AutoUMAP(cfg.name, logdir=folder, frequency=cfg.auto_umap.frequency))
        if cfg.wandb.enabled:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        return callbacks

    def _logger(self, wandb_run_id: Optional[str]) -> Any:
        cfg = self.cfg
        if not cfg.wandb.enabled:
            return False
        logger = WandbLogger(
            name=cfg.name,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            offline=cfg.wandb.offline,
            resume="allow" if wandb_run_id else None,
            id=wandb_run_id,
        )
        logger.watch(self.model, log="gradients", log_freq=100)
        logger.log_hyperparams(plain(cfg))
        return logger

    def _trainer(self, wandb_run_id: Optional[str]) -> Trainer:
        """Lightning's trainer with every argument of it that the configuration names."""
        cfg = self.cfg
        valid = inspect.signature(Trainer.__init__).parameters
        kwargs = {key: value for key, value in plain(cfg).items() if key in valid}
        strategy = cfg.strategy or "auto"
        kwargs.update(
            logger=self._logger(wandb_run_id),
            callbacks=self._callbacks(),
            enable_checkpointing=False,
            strategy=DDPStrategy(find_unused_parameters=False) if strategy == "ddp" else strategy,
            plugins=[AtomicCheckpointIO()],
            # Lightning counts processes on a CPU and names cards elsewhere.
            devices=len(cfg.devices) if cfg.accelerator == "cpu" else list(cfg.devices),
        )
        kwargs.setdefault("enable_model_summary", False)
        kwargs.setdefault("log_every_n_steps", max(1, min(50, self.plan.steps_per_epoch)))
        try:
            return Trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError, ModuleNotFoundError) as error:
            raise UserError(
                f"Lightning's trainer refuses these settings: {' '.join(str(error).split())}"
            ) from error

    def _fit(self, trainer: Trainer) -> None:
        """Trains; an interrupted run says what is left of it."""
        loaders: Dict[str, Any] = {"datamodule": self.train}
        if self.cfg.data.format != "dali":
            loaders = {
                "train_dataloaders": self.train,
                "val_dataloaders": self.labelled and self.labelled[1],
            }
        if "weights_only" in inspect.signature(trainer.fit).parameters:  # lightning 2.6 and later
            loaders["weights_only"] = True
        try:
            trainer.fit(self.model, ckpt_path=self.resumed_from, **loaders)
        except SystemExit:
            if not trainer.interrupted:
                raise
            raise KeyboardInterrupt(self._interrupted(trainer)) from None

    def _last_checkpoint(self) -> Optional[Path]:
        """The newest checkpoint of this run: written by it, or the one it was resumed from."""
        last = getattr(self.checkpointer, "last_ckpt", None)
        return self.resumed_from if last is None else Path(last)

    def _interrupted(self, trainer: Trainer) -> str:
        last = self._last_checkpoint()
        where = f"interrupted in epoch {trainer.current_epoch} at step {trainer.global_step}; "
        if last is None:
            return where + "no checkpoint had been written."
        again = (
            "the same command resumes from it"
            if self.cfg.auto_resume.enabled
            else (f"resume with resume_from_checkpoint='{last}'")
        )
        return where + f"the last checkpoint is {last}, {again}."

    def _collapse(self) -> List[str]:
        if self.cfg.method != "carp":
            return []
        return signs_of_collapse(self.history.last, self.cfg.method_kwargs.partition_size)

    def _summary(self, rows: List[Row], trainer: Trainer, seconds: float) -> Dict[str, Any]:
        last = self._last_checkpoint()
        summary = {
            "method": self.cfg.method,
            "name": self.cfg.name,
            "seed": self.cfg.seed,
            "accuracy": [vars(row) for row in rows],
            "last_epoch": self.history.last,
            "signs_of_collapse": self._collapse(),
            "steps": trainer.global_step,
            "seconds": round(seconds, 1),
            "checkpoint": None if last is None else str(last),
            **provenance(self.cfg),
        }
        if last is None:
            say("no checkpoint was written (checkpoint.enabled=False)")
        elif last == self.resumed_from:
            say(f"the run had finished already; its checkpoint is {last}")
        else:
            path = last.with_name("summary.json")
            write_json(path, summary)
            say(f"checkpoint {last}\nsummary    {path}")
        return summary
