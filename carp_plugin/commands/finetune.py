"""``main_finetune.py``: a pretrained network trained on with labels, all of it, and how good it becomes."""

from __future__ import annotations

import logging
from typing import Any, Dict, Tuple

from carp_plugin import register
from carp_plugin.data.folders import check_data, count_classes, prepare_data_folder
from carp_plugin.data.labelled import labelled_data
from carp_plugin.data.remarks import remarks_on, say_remarks
from carp_plugin.evaluation.checkpoint import agrees, load_pretrained
from carp_plugin.evaluation.finetune import (
    FinetuneRun,
    Start,
    build_model,
    opening,
    random_backbone,
    remarks_on_subset,
    with_head,
)
from carp_plugin.host import BACKBONES
from carp_plugin.methods.known import check_optimizer, one_of
from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.trained import TrainedView
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.convolutions import use_one_pixel_convolutions
from carp_plugin.training.devices import machine_of
from carp_plugin.training.memory import keep_freed_memory
from carp_plugin.training.plan import left_out, plan_of
from carp_plugin.training.run import check_writable
from carp_plugin.training.state import find_checkpoint


def finetune(settings: Finetune) -> Dict[str, Any]:
    """Trains a pretrained backbone and a classifier on it with labels, and measures both on the validation images.

    Deterministic on the CPU, given the seed, and the same whether it was interrupted and resumed or not.

    Args:
        settings: of the fine-tuning.

    Returns:
        Dict[str, Any]: accuracies in percent of the last epoch (``top1``, ``top5``) and of the best one by top-1
        (``best_top1``, ``best_top5``, ``best_epoch``, counted from 0), top-5 as None where there are five classes or
        fewer; ``correct``, a bool for each validation image in the order of the data set, whether the last epoch's
        network gets it right; ``epochs``, a dictionary of metrics for each; ``labels``, which images had theirs used;
        ``seconds`` of training; and what ``summary.json`` holds besides. Empty on ranks other than 0.

    Raises:
        UserError: a mistake in the settings, the checkpoint, the data or the machine's set-up.
    """
    register()
    # Lightning greets, advises and counts devices; the opening block says what of it matters.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    check_optimizer(settings.optimizer)
    if settings.pretrained_feature_extractor is not None:
        find_checkpoint(settings.pretrained_feature_extractor)
    machine = machine_of(settings)
    data, batch_size = settings.data, settings.optimizer.batch_size
    prepare_data_folder(data.prepare, data.train_path)
    check_data(data)
    check_writable(settings.checkpoint)
    start, statistics = _start(settings)
    if machine.accelerator == "cpu":
        keep_freed_memory()
        use_one_pixel_convolutions(start.backbone)
    images = labelled_data(
        data,
        statistics,
        batch_size,
        machine.world,
        settings.seed,
        settings.dali.device,
        settings.labels,
    )
    classes = count_classes(data.dataset, data.train_path)
    plan = plan_of(settings, machine, images.images, classes)
    remarks = [f"warning: {sentence}" for sentence in left_out(settings, plan)]
    remarks += [*remarks_on_subset(images, classes), *remarks_on(data)]
    if is_main_process():
        say(opening(settings, start, images, plan))
        say_remarks(remarks)
    model = build_model(settings, start, plan)
    return FinetuneRun(settings, start, model, images, plan, remarks).go()


def _start(settings: Finetune) -> Tuple[Start, TrainedView]:
    """The network to begin with, and the statistics that its images are normalised by.

    Raises:
        UserError: the checkpoint cannot be used, or a backbone that the host does not have.
    """
    named, path = settings.backbone, settings.pretrained_feature_extractor
    if path is None:
        one_of("backbone.name", named.name, BACKBONES)
        name = str(named.name)
        backbone = random_backbone(name, named.kwargs or {}, settings.data.dataset, settings.seed)
        return Start(backbone, name, None), TrainedView()
    pretrained = load_pretrained(path)
    agrees(pretrained, {"backbone.name": named.name, "backbone.kwargs": named.kwargs})
    trained = pretrained.trained
    if settings.weights == "random":
        backbone = random_backbone(
            trained.backbone.name, trained.backbone.kwargs, trained.data.dataset, settings.seed
        )
        return Start(backbone, trained.backbone.name, None), trained.view
    network = with_head(pretrained, settings.network, settings.head_layers)
    start = Start(network, trained.backbone.name, pretrained, settings.head_layers)
    return start, trained.view
