"""What follows from the settings: devices, steps and the rates that the optimizer is really given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List

from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.parts import CarpKwargs
from carp_plugin.settings.pretraining import Pretraining
from carp_plugin.settings.trainer import Run
from carp_plugin.training.devices import Machine


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, in numbers.

    Attributes:
        machine: what it trains on.
        images: training images.
        classes: of the data set.
        batches_per_epoch: batches of an epoch and process.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps of the run.
        global_batch: images of an optimizer step, over devices, nodes and accumulated batches.
        lr: peak learning rate: ``optimizer.lr`` x batch of all processes / 256, and in a pretraining and a fine-tuning
            x accumulated batches, which the host's linear model leaves out. Of the backbone in a fine-tuning.
        classifier_lr: of the online classifier, or of a fine-tuning's; 0 where the run has none.
        min_lr: final learning rate, which the batch does not scale; accumulated batches do, as they do ``lr``. In a
            fine-tuning what is left of ``lr``.
    """

    machine: Machine
    images: int
    classes: int
    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    global_batch: int
    lr: float
    classifier_lr: float
    min_lr: float

    def as_dict(self) -> Dict[str, Any]:
        """As json takes it."""
        return {**vars(self), "machine": self.machine.as_dict()}


def plan_of(settings: Run, machine: Machine, images: int, classes: int) -> Plan:
    """Derives the numbers of a run.

    Args:
        settings: of a pretraining, a linear evaluation or a fine-tuning.
        machine: what it trains on.
        images: number of training images.
        classes: of the data set.
    """
    optimizer: Any = settings.optimizer  # type: ignore[attr-defined]
    accumulated = settings.accumulate_grad_batches
    batches = images // machine.world // optimizer.batch_size
    limit = settings.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = -(-batches // accumulated)
    total = steps * settings.max_epochs
    batch = optimizer.batch_size * machine.world
    scale, classifier_scale, times = batch / 256, 1.0, 1
    if isinstance(settings, Pretraining):
        times = (
            accumulated  # the host's methods multiply their rates by it, its linear model does not
        )
        if settings.data.val_path is not None:  # the host scales it only where it validates
            classifier_scale = scale
    min_lr = getattr(settings.scheduler, "min_lr", 0.0) * times
    if isinstance(settings, Finetune):
        times, classifier_scale = accumulated, scale
        min_lr = optimizer.lr * scale * times * lowered(settings)
    return Plan(
        machine=machine,
        images=images,
        classes=classes,
        batches_per_epoch=batches,
        steps_per_epoch=steps,
        total_steps=total if settings.max_steps == -1 else min(total, settings.max_steps),
        global_batch=batch * accumulated,
        lr=optimizer.lr * scale * times,
        classifier_lr=getattr(optimizer, "classifier_lr", 0.0) * classifier_scale * times,
        min_lr=min_lr,
    )


def lowered(settings: Finetune) -> float:
    """The factor of the last epoch's rates in a fine-tuning."""
    scheduler: Any = settings.scheduler
    if scheduler.name != "step":
        return 1.0
    return scheduler.gamma ** sum(step < settings.max_epochs for step in scheduler.lr_decay_steps)


def warnings_of(settings: Pretraining, plan: Plan) -> List[str]:
    """Sentences about settings that are allowed but unlikely to be meant."""
    said = []
    if plan.min_lr > plan.lr:
        said.append(
            f"scheduler.min_lr={plan.min_lr:.4g} is above the effective learning rate {plan.lr:.4g}: the host scales "
            "optimizer.lr by the batch but never min_lr."
        )
    schedule = settings.scheduler
    if schedule.name == "warmup_cosine" and schedule.warmup_epochs >= settings.max_epochs:
        said.append(
            f"scheduler.warmup_epochs={schedule.warmup_epochs:g} of max_epochs={settings.max_epochs} leave "
            "nothing after the warm-up: the learning rate only rises."
        )
    said += left_out(settings, plan)
    kwargs = settings.method_kwargs
    if isinstance(kwargs, CarpKwargs):
        views = settings.large_crops * 2 + settings.small_crops
        rows = views * settings.optimizer.batch_size * plan.machine.world
        B = kwargs.partition_size
        if rows < B:
            said.append(
                f"a global batch has {rows} rows ({views} views of student and teacher), fewer than the "
                f"partition_size B = {B}: their mean cannot be uniform over a block, and the entropy term "
                f"loses its meaning; use a larger batch or "
                f"method_kwargs.partition_size={_power_below(rows)} or less (section 6.2)."
            )
    if settings.knn_eval.enabled and (settings.data.no_labels or settings.data.val_path is None):
        said.append(
            "knn_eval is switched off: without labelled validation images it has nothing to measure."
        )
    return said


def left_out(settings: Run, plan: Plan) -> List[str]:
    """Whole batches that take fewer than three quarters of the images, unless fewer are asked for."""
    if settings.limit_train_batches is not None or not plan.images:
        return []
    batch = settings.optimizer.batch_size  # type: ignore[attr-defined]  # of either kind of run
    own = plan.images // plan.machine.world
    batches = own // batch
    taken = batches * batch * plan.machine.world
    if taken >= plan.images * 3 / 4 or not batches:
        return []
    fits = own // (batches + 1) if own // (batches + 1) > 1 else own // batches
    return [
        f"an epoch takes {taken} of the {plan.images} images, for only whole batches are trained on; "
        f"optimizer.batch_size={fits} takes more."
    ]


def _power_below(rows: int) -> int:
    return 1 << (max(rows, 1).bit_length() - 1)
