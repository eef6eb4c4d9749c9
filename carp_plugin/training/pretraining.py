"""One pretraining run: the method from its settings, trained, watched and summed up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Protocol, Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from carp_plugin.data.folders import check_data, count_classes, prepare_data_folder
from carp_plugin.data.loaders import say_bad_images
from carp_plugin.errors import UserError
from carp_plugin.host import METHODS, AutoUMAP, make_contiguous
from carp_plugin.host.cfg import plain, pretrain_cfg
from carp_plugin.methods.known import check_pretraining
from carp_plugin.settings.pretraining import Pretraining
from carp_plugin.terminal import say
from carp_plugin.training.callbacks.collapse import CollapseMonitor
from carp_plugin.training.callbacks.finite import FiniteLoss
from carp_plugin.training.callbacks.history import Measure
from carp_plugin.training.callbacks.host_state import RestoresHostState
from carp_plugin.training.convolutions import use_one_pixel_convolutions
from carp_plugin.training.devices import Machine, machine_of
from carp_plugin.training.plan import Plan
from carp_plugin.training.report import Row, closing, doubts_on, losses, provenance
from carp_plugin.training.run import TrainingRun, check_writable
from carp_plugin.training.state import TRAINING_BUFFERS, fit, read_checkpoint
from carp_plugin.training.unlabelled import rest_classifiers


class Evaluator(Protocol):
    """What measures the features of a run, as :class:`carp_plugin.evaluation.online.OnlineEvaluation` does."""

    @property
    def curve(self) -> Measure:
        """Measures at the end of epochs."""

    @property
    def k(self) -> int:
        """Neighbours of the k-NN."""

    def before(self, model: Any, settings: Pretraining, plan: Plan) -> Row:
        """The backbone before the first step."""

    def after(self, model: Any, last_epoch: Mapping[str, float]) -> List[Row]:
        """Student and teacher after the last one."""


def check_run(settings: Pretraining) -> Machine:
    """Everything about a pretraining that can be wrong before it begins; writes the embedded images if it is to.

    Returns:
        Machine: what it will train on.

    Raises:
        UserError: the first mistake found.
    """
    check_pretraining(settings)
    machine = machine_of(settings)
    data = settings.data
    prepare_data_folder(data.prepare, data.train_path)
    check_data(data.dataset, data.train_path, data.val_path, data.format, data.no_labels)
    check_writable(settings.checkpoint)
    return machine


def build_model(settings: Pretraining, machine: Machine) -> LightningModule:
    """The method, built by the host.

    Args:
        settings: of the pretraining.
        machine: what it trains on.

    Returns:
        LightningModule: its ``cfg`` is the host's configuration.

    Raises:
        UserError: a key of ``method_kwargs`` that the method needs is missing, or a value that it cannot be built with.
    """
    data = settings.data
    classes = count_classes(data.dataset, data.train_path, data.no_labels)
    cfg = pretrain_cfg(settings.values(), machine.accelerator, machine.devices, classes)
    model = _built(cfg, settings)
    make_contiguous(model)
    if settings.data.no_labels:
        rest_classifiers(model)
    if machine.accelerator == "cpu":
        use_one_pixel_convolutions(model)
    if not settings.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.initial_checkpoint is not None:
        begin_with(model, Path(settings.initial_checkpoint))
    # An OmegaConf list of betas would reach the optimizer's state, which torch's weights_only then refuses.
    model.extra_optimizer_args = plain(cfg.optimizer.kwargs)  # type: ignore[assignment]
    return model


def begin_with(model: LightningModule, path: Path) -> None:
    """Gives a method that is to be trained anew the weights of a checkpoint: backbone, heads, prototypes, teacher.

    Args:
        model: changed in place.
        path: a ``.ckpt`` file of a run of the same method and network.

    Raises:
        UserError: there is no such file, it is torn, or of another model.
    """
    if not path.is_file():
        raise UserError(
            f"initial_checkpoint={path} does not exist; give a .ckpt file, or leave it out."
        )
    state = read_checkpoint(path)["state_dict"]
    own = model.state_dict()
    # a queue or a memory that a method makes when training begins is made anew
    made = [name for name in TRAINING_BUFFERS if name not in own]
    state = {name: tensor for name, tensor in state.items() if name not in made}
    complaint = fit(own, state).complaint()
    if complaint:
        raise UserError(f"initial_checkpoint={path} is of another model: {complaint}.")
    model.load_state_dict(state)


def _built(cfg: Any, settings: Pretraining) -> LightningModule:
    try:
        return METHODS[settings.method](cfg)
    except AttributeError as error:
        key = getattr(error, "full_key", None)  # of a configuration
        if key is None:
            raise
        raise UserError(
            f"{key} is missing from the configuration; {settings.method} needs it."
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
            f"{settings.method} on {settings.backbone.name} cannot be built with these settings ({reason}); check "
            "method_kwargs and backbone.kwargs."
        ) from error


class PretrainingRun(TrainingRun):
    """A run that is ready to go.

    Args:
        settings: of the pretraining.
        model: the method.
        train: training loader, or the DALI data module.
        val: loader of labelled validation images, or None.
        evaluator: measures the features.
        plan: the numbers of the run.
        remarks: sentences on the settings and the data that were said at its beginning, for the summary.
    """

    settings: Pretraining

    def __init__(
        self,
        settings: Pretraining,
        model: LightningModule,
        train: Any,
        val: Any,
        evaluator: Evaluator,
        plan: Plan,
        remarks: Sequence[str] = (),
    ) -> None:
        self.train, self.val, self.evaluator, self.remarks = train, val, evaluator, list(remarks)
        args = plain(model.cfg)
        super().__init__(settings, args, model, plan, train, settings.method, evaluator.curve)
        self.monitor = CollapseMonitor(stop=settings.collapse.stop)

    def go(self) -> Dict[str, Any]:
        """Trains, evaluates, prints the table and writes the summary.

        Returns:
            Dict[str, Any]: the summary.

        Raises:
            UserError: training was ended by ``collapse.stop``; the summary is written.
        """
        self.resumed_from, wandb_run_id = self.resume()
        trainer = self.trainer(
            wandb_run_id
        )  # refused, if it is, before the random network is evaluated
        rows = [self.evaluator.before(self.model, self.settings, self.plan)]
        started = time.time()
        self.fit(trainer, self.train, self.val)
        seconds = time.time() - started
        summary = self._close(rows, trainer, seconds) if trainer.is_global_zero else {}
        say_bad_images(self.train)
        if self.monitor.stopped:
            raise UserError(
                f"training was stopped after epoch {trainer.current_epoch - 1} of {self.settings.max_epochs}: "
                f"{self.monitor.signs[0]} collapse.stop=False would have gone on."
            )
        return summary

    def _close(self, rows: List[Row], trainer: Trainer, seconds: float) -> Dict[str, Any]:
        """The summary, written, and then what there is to say after the last step."""
        rows += self.evaluator.after(self.model, self.history.last)
        rows = [row for row in rows if row.knn is not None or row.linear is not None]
        doubts = doubts_on(rows)
        self.remarks += doubts
        summary = self._summary(rows, trainer, self.seconds(seconds))
        where = self.write(summary)
        if rows:
            say(closing(rows, self.settings.method, self.evaluator.k))
        for doubt in doubts:
            say(doubt, "yellow")
        say(losses(self.history.last))
        for sign in self.monitor.signs:
            say(f"warning: collapse: {sign}", "yellow")
        say(where)
        return summary

    def callbacks(self) -> List[Callback]:
        """Those of every run, what watches this one, the host's state, and the pictures that are asked for."""
        callbacks: List[Callback] = [RestoresHostState(self.planned), FiniteLoss(self.checkpointer)]
        if self.settings.collapse.enabled:
            callbacks.append(self.monitor)  # before the history, which keeps its metrics
        callbacks += super().callbacks()
        umap = self.settings.auto_umap
        if umap.enabled:
            if AutoUMAP is None:
                raise UserError(
                    "auto_umap.enabled=True needs UMAP, which is not installed; `pip install carp-plugin[umap]`."
                )
            folder = Path(umap.dir) / self.settings.method
            callbacks.append(AutoUMAP(self.settings.name, logdir=folder, frequency=umap.frequency))
        return callbacks

    def _summary(self, rows: List[Row], trainer: Trainer, seconds: float) -> Dict[str, Any]:
        last = self.last_checkpoint()
        return {
            "method": self.settings.method,
            "name": self.settings.name,
            "seed": self.settings.seed,
            "accuracy": [vars(row) for row in rows],
            "last_epoch": self.history.last,
            "signs_of_collapse": self.monitor.signs,
            "remarks": self.remarks,
            "steps": trainer.global_step,
            "seconds": round(seconds, 1),
            "checkpoint": None if last is None else str(last),
            "plan": self.plan.as_dict(),
            **provenance(self.plan.machine, self.settings.values()),
        }
