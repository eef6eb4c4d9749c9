"""``main_pretrain.py``: a method trained as the settings say, and what came of it."""

from __future__ import annotations

import logging
from typing import Any, Dict, List

from lightning.pytorch import seed_everything

from carp_plugin.data.folders import count_classes
from carp_plugin.data.loaders import (
    dali_files,
    drawn_of,
    labelled_loaders,
    pretrain_dali,
    pretrain_loader,
)
from carp_plugin.data.remarks import remarks_on, say_remarks
from carp_plugin.evaluation.online import OnlineEvaluation
from carp_plugin.settings.pretraining import Pretraining
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.memory import keep_freed_memory
from carp_plugin.training.plan import plan_of, warnings_of
from carp_plugin.training.pretraining import PretrainingRun, build_model, check_run
from carp_plugin.training.report import opening


def pretrain(settings: Pretraining) -> Dict[str, Any]:
    """Trains a method as the settings say and evaluates what came out.

    Args:
        settings: of the pretraining.

    Returns:
        Dict[str, Any]: what ``summary.json`` holds; empty on ranks other than 0.

    Raises:
        UserError: a mistake in the settings, the data or the machine's set-up.
    """
    # Lightning greets, advises and counts devices; the opening block says what of it matters.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    machine = check_run(settings)
    data, batch_size = settings.data, settings.optimizer.batch_size
    if machine.accelerator == "cpu":
        keep_freed_memory()
    seed_everything(settings.seed, verbose=False)
    model = build_model(settings, machine)
    labelled = labelled_loaders(data, settings.augmentations[0], batch_size)
    train: Any
    if data.format == "dali":
        crops = settings.large_crops, settings.small_crops
        views = settings.augmentations
        train = pretrain_dali(data, settings.dali, views, crops, batch_size, machine.world)
        train.val_dataloader = lambda: labelled[1] if labelled else []
        images = len(dali_files(data))
    else:
        train = pretrain_loader(
            data,
            settings.augmentations,
            batch_size,
            machine.world,
            settings.seed,
            settings.debug_augmentations,
            settings.patches,
        )
        images = len(train.dataset)
    classes = count_classes(data.dataset, data.train_path, data.no_labels)
    plan = plan_of(settings, machine, images, classes)
    remarks: List[str] = []
    if is_main_process():
        drawn = drawn_of(data, train, labelled[1] if labelled else None)
        say(opening(settings, plan, drawn))
        remarks = [f"warning: {sentence}" for sentence in warnings_of(settings, plan)]
        remarks += remarks_on(data, data.no_labels)
        say_remarks(remarks)
    evaluator = OnlineEvaluation(labelled, settings.evaluation, machine.device)
    val = labelled[1] if labelled else None
    return PretrainingRun(settings, model, train, val, evaluator, plan, remarks).go()
