"""What every training run shares, pretraining or linear evaluation: trainer, resuming, checkpoints and summary."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.wandb import WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.ddp import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from carp_plugin.data.epochs import TracksEpoch, training_order
from carp_plugin.data.loaders import fingerprint_of, fingerprint_of_validation, first_bytes
from carp_plugin.errors import UserError, typed, worker_ended
from carp_plugin.settings.parts import Checkpoint
from carp_plugin.settings.trainer import Run
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.callbacks.checkpoint import (
    AtomicCheckpointIO,
    Checkpointer,
    check_checkpoint,
    damage,
)
from carp_plugin.training.callbacks.history import History, Measure, write_json
from carp_plugin.training.callbacks.host_state import planned_in
from carp_plugin.training.callbacks.interrupt import Stopped, StopsInPeace, duration
from carp_plugin.training.callbacks.randomness import SeedsSteps
from carp_plugin.training.launchers import another_ended
from carp_plugin.training.named import look_at
from carp_plugin.training.plan import Plan
from carp_plugin.training.resume import (
    identity_of,
    machine_here,
    machine_of,
    other_bits,
    run_to_resume,
)
from carp_plugin.training.state import place_in_name


class TrainingRun:
    """A module that is trained with Lightning, checkpointed after every epoch and resumed where it stopped.

    Args:
        settings: of the run.
        args: the host's configuration, which ``args.json`` will hold.
        model: what is trained.
        plan: the numbers of the run.
        train: training loader, or a DALI data module.
        kind: its checkpoints go to ``checkpoint.dir``/kind, each run in a folder of its own.
        measure: further metrics at the end of an epoch; see :class:`History`.
    """

    def __init__(
        self,
        settings: Run,
        args: Mapping[str, Any],
        model: LightningModule,
        plan: Plan,
        train: Any,
        kind: str,
        measure: Optional[Measure] = None,
    ) -> None:
        self.settings, self.model, self.plan = settings, model, plan
        self.identity = identity_of(type(settings))
        self.folder = Path(settings.checkpoint.dir) / kind
        self.resumed_from: Optional[Path] = None
        data, optimizer = _parts(settings)
        self.dali = data.format == "dali"
        #: What ``args.json`` holds: the host's configuration, which images, and what else the bits depend on.
        self.args: Dict[str, Any] = {
            **args,
            "images": plan.images,
            "images_fingerprint": fingerprint_of(data, train),
            "images_bytes": fingerprint_of(data, train, first_bytes),
            "val_images_fingerprint": fingerprint_of_validation(data),
            "machine": machine_here(plan.machine.accelerator),
        }
        #: Optimizer steps that a checkpoint named by the user was planned with, as far as its ``args.json`` tells.
        self.planned: Optional[int] = None
        self.checkpointer: Optional[Checkpointer] = None
        if settings.checkpoint.enabled:
            self.checkpointer = Checkpointer(
                settings.name,
                self.folder,
                settings.checkpoint.frequency,
                settings.checkpoint.keep_prev,
                self.args,
            )
        batch_size = optimizer.batch_size
        order = training_order(train, batch_size)
        self.place = TracksEpoch(order, batch_size, plan.batches_per_epoch)
        self.history = History(self.checkpointer, measure)
        self.signals = StopsInPeace(
            self.checkpointer, settings.accumulate_grad_batches, duration(settings.max_time)
        )

    def resume(self) -> Tuple[Optional[Path], Optional[str]]:
        """The checkpoint to go on from, and its wandb run.

        Raises:
            UserError: ``resume_from_checkpoint`` does not exist or is damaged, or the checkpoint is of another model.
        """
        settings = self.settings
        if settings.resume_from_checkpoint is not None:
            path = Path(settings.resume_from_checkpoint)
            if not path.is_file():
                raise UserError(
                    f"resume_from_checkpoint={path} does not exist; give a .ckpt file, or leave it out."
                )
            wrong = damage(path)
            if wrong is not None:
                raise UserError(wrong + _instead(path))
            content = check_checkpoint(path, self.model)
            named = look_at(
                path, planned_in(content), self.args, settings, self.plan, self.identity
            )
            self.planned = named.planned
            if is_main_process():
                for remark in named.remarks:
                    say(f"warning: {remark}", "yellow")
            self._say_other_bits(path)
            return path, None
        if not settings.auto_resume.enabled:
            return None, None
        found = run_to_resume(
            self.folder,
            self.args,
            self.identity,
            settings.auto_resume.max_hours,
            lead=is_main_process(),
        )
        if is_main_process():
            for remark in found.remarks:
                say(remark, "yellow")
            if found.checkpoint is None and not found.remarks:
                say(f"begun anew: there is no earlier run in {self.folder.resolve()}")
        if found.checkpoint is None:
            return None, None
        check_checkpoint(found.checkpoint, self.model)
        if is_main_process():
            say(
                f"resuming from {found.checkpoint}, a run of the same settings "
                "(auto_resume.enabled=False starts anew)"
            )
            self._say_other_bits(found.checkpoint)
        if self.checkpointer is not None:
            self.checkpointer.resumed = found.checkpoint
        return found.checkpoint, found.wandb_run_id

    def _say_other_bits(self, path: Path) -> None:
        other = other_bits(machine_of(path), self.args["machine"])
        if other is not None and is_main_process():
            say(f"warning: {other}", "yellow")

    def callbacks(self) -> List[Callback]:
        """Place in the training images, seeds, history, checkpointer, signals and, with wandb, the learning rate."""
        # The history stands before the checkpointer, so that a checkpoint holds its own epoch.
        callbacks: List[Callback] = [self.place, SeedsSteps(self.settings.seed), self.history]
        if self.checkpointer is not None:
            callbacks.append(self.checkpointer)
        callbacks.append(self.signals)
        if self.settings.wandb.enabled:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        return callbacks

    def _logger(self, wandb_run_id: Optional[str]) -> Any:
        """wandb's run, begun: what keeps it from beginning is said before time is spent."""
        if not self.settings.wandb.enabled:
            return False
        try:
            return self._wandb(wandb_run_id)
        except Exception as error:  # wandb has many of its own, and lets those of the system and of requests through
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            raise UserError(
                f"Weights & Biases cannot begin a run ({reason}); log in by `wandb login` or WANDB_API_KEY, or use "
                "wandb.offline=True, or wandb.enabled=False."
            ) from error

    def _wandb(self, wandb_run_id: Optional[str]) -> WandbLogger:
        wandb = self.settings.wandb
        logger = WandbLogger(
            name=self.settings.name,
            project=wandb.project,
            entity=wandb.entity,
            offline=wandb.offline,
            save_dir=os.environ.get("WANDB_DIR") or ".",  # which Lightning would overrule
            resume="allow" if wandb_run_id else None,
            id=wandb_run_id,
        )
        logger.watch(self.model, log="gradients", log_freq=100)
        logger.log_hyperparams(self.settings.values())
        return logger

    def trainer(self, wandb_run_id: Optional[str] = None) -> Trainer:
        """Lightning's trainer with every argument of it that the settings name.

        Raises:
            UserError: Lightning refuses the settings, or does not know one of them.
        """
        machine = self.plan.machine
        kwargs = self.settings.given()
        # Lightning's timer counts over all processes and saves nothing
        kwargs.pop("max_time", None)
        valid = inspect.signature(Trainer.__init__).parameters
        for name in set(kwargs) - set(valid):
            raise UserError(
                f"{name} is unknown to Lightning {lightning.__version__}; leave it out, or install a later one."
            )
        strategy = self.settings.strategy or "auto"
        kwargs.update(
            accelerator=machine.accelerator,
            num_nodes=machine.nodes,
            logger=self._logger(wandb_run_id),
            callbacks=self.callbacks(),
            enable_checkpointing=False,
            strategy=DDPStrategy(find_unused_parameters=False) if strategy == "ddp" else strategy,
            plugins=self._plugins(),
            # Lightning counts processes on a CPU and names cards elsewhere.
            devices=len(machine.devices) if machine.accelerator == "cpu" else list(machine.devices),
        )
        kwargs.setdefault("enable_model_summary", False)
        kwargs.setdefault("log_every_n_steps", max(1, min(50, self.plan.steps_per_epoch)))
        try:
            return Trainer(**kwargs)
        except (
            MisconfigurationException,
            ModuleNotFoundError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise _refused(error) from error

    def _plugins(self) -> List[Any]:
        """Whole checkpoints; and under SLURM jobs that queue again by their script, not by Lightning's handler."""
        plugins: List[Any] = [AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return plugins

    def fit(self, trainer: Trainer, train: Any, val: Any) -> None:
        """Trains, from ``resumed_from`` on; an interrupted run says what is left of it.

        Args:
            trainer: from :meth:`trainer`.
            train: training loader, or a DALI data module, which serves the validation images too.
            val: validation loader, or None.

        Raises:
            Stopped: after a signal or ``max_time``, with a sentence that says how to go on.
            UserError: Lightning refuses the settings, or another process of the run has ended.
        """
        loaders: Dict[str, Any] = {"datamodule": train}
        if not self.dali:
            loaders = {"train_dataloaders": train, "val_dataloaders": val}
        if "weights_only" in inspect.signature(trainer.fit).parameters:  # lightning 2.6 and later
            loaders["weights_only"] = True
        try:
            trainer.fit(self.model, ckpt_path=self.resumed_from, **loaders)
        except SystemExit:
            if not trainer.interrupted:
                raise
            signum = self.signals.signal or signal.SIGINT
            raise Stopped(self._interrupted(trainer), signum) from None
        except MisconfigurationException as error:
            raise _refused(error) from error
        except ValueError as error:
            if "val_check_interval" not in str(error):  # above the batches of an epoch
                raise
            raise _refused(error) from error
        except RuntimeError as error:
            ended = worker_ended(error)
            if ended is not None:
                raise UserError(f"{ended}, data.num_workers=0; {self._left()}") from error
            if trainer.world_size == 1 or not another_ended(error):
                raise
            raise UserError(
                "another process of this run has ended, and with it this one; what it said tells why."
            ) from error

    def last_checkpoint(self) -> Optional[Path]:
        """The newest checkpoint of this run: written by it, or the one it was resumed from."""
        last = getattr(self.checkpointer, "last_ckpt", None)
        return self.resumed_from if last is None else Path(last)

    def _interrupted(self, trainer: Trainer) -> str:
        why = "max_time is over" if self.signals.out_of_time else "interrupted"
        where = (
            f"{why} in epoch {trainer.current_epoch} at step {trainer.global_step} "
            f"of {self.plan.total_steps}; "
        )
        return where + self._left()

    def _left(self) -> str:
        """The last checkpoint and how to go on from it, as the end of a sentence."""
        last = self.last_checkpoint()
        if last is None:
            return "no checkpoint had been written."
        again = (
            "the same command resumes from it"
            if self.settings.auto_resume.enabled
            else f"resume with {typed('resume_from_checkpoint', str(last))}"
        )
        return f"the last checkpoint is {last}, {again}."

    def write(self, summary: Dict[str, Any]) -> str:
        """Writes ``summary.json`` beside the last checkpoint, before anything of it is shown.

        A run that had finished already keeps the summary it has; one that ended before it was written gets it now.

        Returns:
            str: where both are, to be said when the results have been shown.
        """
        last = self.last_checkpoint()
        if last is None:
            return "no checkpoint was written (checkpoint.enabled=False)"
        path = last.with_name("summary.json")
        where = f"checkpoint {last}\nsummary    {path}"
        if last != self.resumed_from:
            write_json(path, summary)
            return where
        if path.is_file():
            return f"the run had finished already; its checkpoint is {last}"
        write_json(path, summary)
        return (
            f"the run had finished already, but its summary was missing and is written now\n{where}"
        )

    def seconds(self, here: float) -> float:
        """Seconds of training: of this process, or, where that had nothing left to train, of all epochs."""
        if self.resumed_from is None or self.last_checkpoint() != self.resumed_from:
            return here
        return sum(epoch.get("train_seconds", 0.0) for epoch in self.history.epochs)


def check_writable(checkpoint: Checkpoint) -> None:
    """Checkpoints can be written to ``checkpoint.dir``, if they are wanted.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    if not checkpoint.enabled:
        return
    folder = Path(checkpoint.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"checkpoint.dir={folder} cannot be made ({error.strerror}); give another folder."
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"checkpoint.dir={folder} cannot be written to; give another folder.")


def _parts(settings: Run) -> Tuple[Any, Any]:
    """Data and optimizer, which every kind of training has, each of its own."""
    return settings.data, settings.optimizer  # type: ignore[attr-defined]


def _refused(error: Exception) -> UserError:
    return UserError(f"Lightning refuses these settings: {' '.join(str(error).split())}")


def _instead(path: Path) -> str:
    """The checkpoint of the same folder that was written before a damaged one, in words."""
    earlier = [
        other for other in path.parent.glob("*.ckpt") if place_in_name(other) < place_in_name(path)
    ]
    for other in sorted(earlier, key=place_in_name, reverse=True):
        if damage(other) is None:
            return f" The one before it is whole: {typed('resume_from_checkpoint', str(other))}."
    return ""
